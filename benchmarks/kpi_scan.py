"""A KPI call, answered by the store and by what the api holds, beside a full scan of the cases, in one
process, interleaved: CPU seconds of each.

    python -m benchmarks.kpi_scan [CASES]

The scan reads every column of `cases` and hashes it: what the call would cost if it had to look at everything
and nothing else. Prints one JSON object.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import clickhouse_connect
import orjson

from benchmarks.kpi_speed import NOW, CityNames, load_cases
from pipeline.read.held.figures import HeldFigures
from pipeline.read.kpi import kpi
from pipeline.store.migrate import migrate

_ROUNDS = 9
_SCAN = "SELECT sum(cityHash64(*)) FROM case_current"


def cpu(call: Callable[[], object]) -> float:
    begin = time.process_time()
    call()
    return time.process_time() - begin


def main() -> None:
    cases = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    root = Path(os.environ.get("TMPDIR", "var/tmp"))
    root.mkdir(parents=True, exist_ok=True)
    month: dict[str, Any] = {"from_": NOW - timedelta(days=30), "to": NOW, "as_of": NOW, "names": CityNames()}
    with tempfile.TemporaryDirectory(dir=root) as path:
        client = clickhouse_connect.get_client(interface="chdb", path=path)
        migrate(client, "grid")
        with open(os.devnull, "w") as quiet:  # noqa: PTH123
            told, sys.stdout = sys.stdout, quiet
            load_cases(client, cases)
            sys.stdout = told
        call = partial(kpi, client, by="district", view="cohort", **month)
        figures = HeldFigures(2 * cases)
        figures.keep_up(client)
        held = partial(kpi, client, by="district", view="cohort", held=figures, **month)
        scan = partial(client.query, _SCAN)
        answer = call()
        found = sum(row["cases"] for row in answer["rows"])
        if found != cases or held() != answer:
            raise SystemExit(f"the call counts {found} cases of {cases}, or what is held answers otherwise")
        scan()
        rounds = [(cpu(call), cpu(held), cpu(scan)) for _ in range(_ROUNDS)]
        client.close()
    result = {
        "kpi_cpu_seconds": statistics.median(call for call, _, _ in rounds),
        "held_cpu_seconds": statistics.median(held for _, held, _ in rounds),
        "scan_cpu_seconds": statistics.median(scan for _, _, scan in rounds),
        "ratio": statistics.median(scan / call for call, _, scan in rounds),
        "held_ratio": statistics.median(scan / held for _, held, scan in rounds),
        "cases": found,
    }
    sys.stdout.buffer.write(orjson.dumps(result) + b"\n")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
