"""Memory and latency of a worker's reference data at the size of the city: 4.8 million persons.

    python -m benchmarks.reference_memory [--persons N]

Writes that many synthetic persons into the embedded ClickHouse in a process of its own, then, in a fresh
process like a worker, loads the snapshot and looks up blocks of 5,000 events. Prints one JSON object.
Floors: resident memory under 3 GB for the whole worker; finding 5,000 persons well under 5 ms. On a machine
that does other work too, the minimum says more than the median.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import orjson
import polars as pl

_EVENTS = 5_000
_ROUNDS = 40
_SLICE = 400_000


def _fill(path: Path, persons: int) -> None:
    """Rows as a load writes them; the keys are hashes, so that they spread as pseudonyms do."""
    from pipeline.store.engine import EmbeddedEngine
    from pipeline.store.migrate import migrate

    client = EmbeddedEngine(path / "clickhouse", path / "tmp").new_client()
    migrate(client, "grid")
    for start in range(0, persons, _SLICE):
        client.command(
            f"""
            INSERT INTO ref_persons (person_key, key_version, version, valid_from, name_masked,
                gender, age_band,
                phone_masked, residence_kind, home_grid_code, home_unit_code, elderly_alone_flag,
                disability_flag, hardship_flag, child_care_flag, health_care_flag, pingantong_user_flag,
                row_digest, load_id, loaded_at)
            SELECT lower(hex(SHA256(concat('person', toString(number))))), 1, 1, toDateTime64(0, 3, 'UTC'),
                '陈**',
                if(number % 2 = 0, 'male', 'female'), if(number % 5 = 0, '60-69', '18-59'), '154****0000',
                'registered', concat('440704001001', leftPad(toString(number % 900 + 100), 3, '0')),
                concat('440704001001', leftPad(toString(number % 900 + 100), 3, '0'), '-U001'),
                number % 70 = 0, number % 40 = 0, number % 83 = 0, number % 500 = 0, number % 17 = 0,
                number % 100 = 0, number, 'benchmark', now64(3)
            FROM numbers({start}, {min(_SLICE, persons - start)})
            """
        )
    client.command(f"INSERT INTO ref_loads VALUES ('persons', 'benchmark', {persons}, '', now64(3))")
    client.close()


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _measure(path: Path, persons: int) -> dict[str, float]:
    from pipeline import frames
    from pipeline.reference.snapshot import Reference
    from pipeline.store.engine import EmbeddedEngine

    client = EmbeddedEngine(path / "clickhouse", path / "tmp").new_client("grid")
    before = _resident_mb()
    started, started_cpu = time.perf_counter(), time.process_time()
    reference = Reference.load(client, tolerance_m=200)
    loaded, loaded_cpu = time.perf_counter() - started, time.process_time() - started_cpu
    assert reference.counts["persons"] == persons, "every person must be found again"
    rng = np.random.default_rng(1)
    timings_ms, person_ms = [], []
    for _ in range(_ROUNDS):
        numbers = rng.integers(0, persons, _EVENTS)
        keys = [hashlib.sha256(f"person{number}".encode()).hexdigest() for number in numbers]
        events = _events(frames.DECODED, keys)
        started = time.perf_counter()
        features = reference.look_up(events, {})
        timings_ms.append((time.perf_counter() - started) * 1e3)
        assert features["persons_found"].sum() == _EVENTS
        column, now = pl.Series(keys), np.zeros(len(keys), np.int64)
        started = time.perf_counter()
        reference.people.facts(reference.people.find(column, now))
        person_ms.append((time.perf_counter() - started) * 1e3)
    return {
        "persons": persons,
        "resident_before_mb": round(before, 1),
        "resident_mb": round(_resident_mb(), 1),
        "resident_peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, 1),
        "people_arrays_mb": round(reference.people.nbytes / 1e6, 1),
        "load_seconds": round(loaded, 2),
        "load_cpu_seconds": round(loaded_cpu, 2),
        "person_find_5000_ms_min": round(min(person_ms), 3),
        "look_up_5000_ms_min": round(min(timings_ms), 3),
        "person_find_5000_ms_p50": round(statistics.median(person_ms), 3),
        "look_up_5000_ms_p50": round(statistics.median(timings_ms), 3),
        "look_up_5000_ms_max": round(max(timings_ms), 3),
    }


def _events(schema: dict[str, pl.DataType], keys: list[str]) -> pl.DataFrame:
    nothing = pl.DataFrame(
        {name: pl.Series([None] * len(keys), dtype=dtype) for name, dtype in schema.items()}
    )
    return nothing.with_columns(
        pl.lit("440704001001100").alias("grid_code"),
        pl.lit(datetime(2025, 1, 1, tzinfo=UTC)).cast(schema["occurred_at"]).alias("occurred_at"),
        pl.Series("persons", [[{"key": key, "role": "subject"}] for key in keys], dtype=schema["persons"]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--persons", type=int, default=4_800_000)
    parser.add_argument("--step", choices=("fill", "measure"), help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step == "fill":
        _fill(given.path, given.persons)
    elif given.step == "measure":
        sys.stdout.buffer.write(orjson.dumps(_measure(given.path, given.persons)) + b"\n")
    else:
        path = Path(tempfile.mkdtemp(prefix="reference-"))
        try:
            for step in ("fill", "measure"):
                arguments = ["--persons", str(given.persons), "--path", str(path), "--step", step]
                subprocess.run([sys.executable, "-m", "benchmarks.reference_memory", *arguments], check=True)
        finally:
            shutil.rmtree(path)


if __name__ == "__main__":
    main()
