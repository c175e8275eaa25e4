"""`make load SCENARIO=steady`: a service of its own, a simulated city, locust, and the server-side check."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import orjson

from pipeline.runtime.supervisor import Supervisor
from pipeline.settings import load_settings

#: As in locustfile.py.
MARK = "-mark000000-"
SCENARIOS = {"steady": "Steady"}
HERE = Path(__file__).parent


def run(command: list[str], **more: object) -> None:
    subprocess.run(command, check=True, **more)  # type: ignore[call-overload]


def mark_ids(plain: Path, marked: Path) -> None:
    """Give every id a mark that the load client renews at each pass over the file."""
    with plain.open("rb") as lines, marked.open("wb") as out:
        for line in lines:
            try:
                event = orjson.loads(line)
            except orjson.JSONDecodeError:
                out.write(line)
                continue
            for name in ("event_id", "case_id", "submission_id"):
                if isinstance(event.get(name), str):
                    event[name] += MARK
            primary = (event.get("attributes") or {}).get("primary_case_id")
            if isinstance(primary, str):
                event["attributes"]["primary_case_id"] = primary + MARK
            out.write(orjson.dumps(event) + b"\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario", choices=sorted(SCENARIOS), help="the shape of the load")
    parser.add_argument("--rate", type=float, default=1_500, help="events/s asked for (default %(default)s)")
    parser.add_argument("--seconds", type=int, default=60, help="length of the load (default %(default)s)")
    parser.add_argument(
        "--events", type=int, default=100_000, help="distinct events prepared (default %(default)s)"
    )
    parser.add_argument(
        "--data-dir", type=Path, default=Path("var/load"), help="emptied first (default %(default)s)"
    )
    options = parser.parse_args()

    shutil.rmtree(options.data_dir, ignore_errors=True)
    report = options.data_dir / "report"
    report.mkdir(parents=True)
    gridpipe = str(Path(sys.executable).with_name("gridpipe"))
    city, plain, feed = (options.data_dir / name for name in ("city", "plain.ndjson", "events.ndjson"))
    print("making the city and the events", flush=True)
    run([gridpipe, "simulate", "city", "--out", str(city)])
    run(
        [gridpipe, "simulate", "events", "--city", str(city), "--count", str(options.events)]
        + ["--seed", "7", "--out", str(plain)]
    )
    mark_ids(plain, feed)
    settings = load_settings(data_dir=options.data_dir / "data", http="127.0.0.1:0")
    with Supervisor(settings, simulate=False, quiet=True) as service:
        service.wait_ready()
        run(
            [
                gridpipe,
                "reference",
                "load",
                str(city),
                "--url",
                service.url,
                "--data-dir",
                str(settings.data_dir),
            ]
        )
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "locust",
                "-f",
                str(HERE / "locustfile.py"),
                "--headless",
                "--only-summary",
                "--stop-timeout",
                "30",
            ]
            + ["--host", service.url, "--html", str(report / "report.html"), "--csv", str(report / "load")],
            env={
                **os.environ,
                "LOAD_EVENTS": str(feed),
                "LOAD_KEY": service.local_key,
                "LOAD_RATE": str(options.rate),
                "LOAD_SECONDS": str(options.seconds),
            },
            check=False,
        )
    print(f"report: {report / 'report.html'}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
