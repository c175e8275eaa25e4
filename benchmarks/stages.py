"""Each stage of gateway and worker alone, over batch sizes: rows/s and ns/row (pytest-benchmark).

python -m benchmarks stages [--quick] [--sizes 500,5000,50000] [--persons N]
"""

from __future__ import annotations

import argparse
import os
import subprocess

import orjson
from rich.table import Table

from benchmarks import cache
from benchmarks.harness import PLACE, RunFailedError, Series, out, python


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks stages", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="sizes 500 and 5,000, short")
    parser.add_argument("--sizes")
    parser.add_argument("--persons", type=int)
    options = parser.parse_args(arguments)
    options.sizes = options.sizes or ("500,5000" if options.quick else "500,5000,50000")
    options.persons = options.persons or (20_000 if options.quick else 500_000)
    return options


def prepare(arguments: list[str]) -> None:
    """Make what the stages use and is not in the cache."""
    options = _options(arguments)
    cache.store(options.persons)
    cache.events(max(map(int, options.sizes.split(","))), options.persons)


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    prepare(arguments)
    sizes, persons = options.sizes, options.persons
    PLACE.mkdir(parents=True, exist_ok=True)
    series = Series("stages", {"sizes": sizes, "persons": persons}, quick=options.quick)
    file = PLACE / "stages.json"
    done = subprocess.run(
        python(
            "-m", "pytest", "benchmarks/stages_bench.py", "-q", "-p", "no:cacheprovider", "-W", "default",
            "--benchmark-only", "--benchmark-disable-gc", "--benchmark-warmup=on", "--timeout=600",
            "--benchmark-warmup-iterations=1", "--benchmark-min-rounds=5", f"--benchmark-json={file}",
            f"--benchmark-max-time={0.2 if options.quick else 1.0}", "--benchmark-columns=median",
        ),
        cwd=cache.ROOT,
        env={**os.environ, "BENCH_SIZES": sizes, "BENCH_PERSONS": str(persons), "TZ": "UTC"},
        capture_output=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise RunFailedError((done.stdout + done.stderr).decode()[-4_000:])
    for item in orjson.loads(file.read_bytes())["benchmarks"]:
        rows, seconds = item["extra_info"]["rows"], item["stats"]["median"]
        form = (item["params"] or {}).get("form")
        name = item["name"].split("[")[0].removeprefix("test_") + (f" {form}" if form else "")
        series.add(
            f"{name} @ {rows}",
            item["stats"]["rounds"],
            {
                "stage": name,
                "rows": rows,
                "seconds": seconds,
                "rows_per_second": rows / seconds,
                "ns_per_row": seconds / rows * 1e9,
                "peak_mb": item["extra_info"]["peak_mb"],
            },
        )
    show(series)
    return 0


def show(series: Series) -> None:
    runs = [runs[0] for runs in series.runs.values()]
    sizes = sorted({run["rows"] for run in runs})
    table = Table(title="ns per row, median, by rows of the batch")
    table.add_column("stage")
    for size in sizes:
        table.add_column(f"{size:,}", justify="right")
    for stage in dict.fromkeys(run["stage"] for run in runs):
        by_size = {run["rows"]: run["ns_per_row"] for run in runs if run["stage"] == stage}
        table.add_row(stage, *(f"{by_size[size]:,.0f}" if size in by_size else "" for size in sizes))
    out.print(table)
