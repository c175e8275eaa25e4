"""Writes the dashboards as JSON: python -m infra.grafana.generate [--check]."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from infra.grafana.business import business
from infra.grafana.load import load
from infra.grafana.overview import overview
from infra.grafana.sink import sink
from infra.grafana.slo import slo

DIRECTORY: Final = Path(__file__).parent / "dashboards"
DASHBOARDS: Final = {"business": business, "overview": overview, "slo": slo, "sink": sink, "load": load}


def rendered() -> dict[Path, str]:
    """Path → text of every dashboard."""
    return {
        DIRECTORY / f"{name}.json": json.dumps(
            make().build(), cls=JSONEncoder, indent=2, ensure_ascii=False, sort_keys=True
        )
        + "\n"
        for name, make in DASHBOARDS.items()
    }


def drifted() -> list[str]:
    """Names of dashboards whose file is not what the code says, of files without code too."""
    texts = rendered()
    stale = [
        path.name
        for path, text in texts.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    return stale + [path.name for path in DIRECTORY.glob("*.json") if path not in texts]


def main() -> int:
    if "--check" in sys.argv[1:]:
        for name in drifted():
            sys.stderr.write(f"{name} is not what infra/grafana makes; run: make dashboards\n")
        return 1 if drifted() else 0
    for path, text in rendered().items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
