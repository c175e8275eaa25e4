"""What benchmarks read, made once into var/bench-cache and used again: cities, stores, events, records.

    python -m benchmarks.cache --persons 500000 --events 1000000

A *store* is a data directory as a worker leaves it: migrated, catalogue published, reference data loaded by
the product's own `reference load`. Runs start from a copy. Everything is named for what it was made from,
with a digest of the code that made it where that code is the product's.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import orjson
import polars as pl

from benchmarks.workload import SEED, VERSION, City, Ledger, Workload, as_dict, expected, feedback, today
from pipeline.contract.parse import parse_ndjson
from pipeline.contract.privacy import Privacy
from pipeline.contract.rows import to_frame
from pipeline.ingest.blocks import encode_frame, partitions_of
from pipeline.settings import load_settings
from pipeline.simulate.city import GENERATOR_VERSION, ensure_city

ROOT: Final = Path(__file__).parent.parent
CACHE: Final = ROOT / "var" / "bench-cache"
CITY_SEED: Final = 20221001
FORMS: Final = ("arrow", "ndjson", "each")
BLOCK_EVENTS: Final = 500
PARTITIONS: Final = 12
#: Admission refuses reports older than 30 days, and L1 looks back 7: events are made anew well before.
_FRESH: Final = timedelta(days=5)
_STORE_CODE: Final = (
    "pipeline/store",
    "pipeline/reference/columns.py",
    "pipeline/reference/load.py",
    "pipeline/reference/schema.py",
    "pipeline/rules/publish.py",
    "pipeline/contract/privacy.py",
    "schemas",
)
_BLOCK_CODE: Final = ("pipeline/contract", "pipeline/ingest/blocks.py", "pipeline/frames.py")


def digest_of(*places: str) -> str:
    """Short digest of the product's files at `places`."""
    found = hashlib.blake2b(digest_size=5)
    for place in places:
        path = ROOT / place
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file() and file.suffix != ".pyc":
                found.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes())
    return found.hexdigest()


def _complete(directory: Path) -> bool:
    return (directory / "made.json").exists()


def _finish(work: Path, directory: Path, facts: dict[str, Any]) -> None:
    (work / "made.json").write_bytes(orjson.dumps(facts, option=orjson.OPT_INDENT_2))
    shutil.rmtree(directory, ignore_errors=True)
    work.replace(directory)


def _fresh(directory: Path) -> Path:
    work = directory.with_name(f".{directory.name}.{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    return work


def city(persons: int) -> Path:
    """The generated city with so many persons (4.8 million take half a minute)."""
    return ensure_city(
        CACHE / f"city-{persons}-g{GENERATOR_VERSION}",
        catalogue_dir=load_settings().catalogue_dir,
        seed=CITY_SEED,
        persons=persons,
    )


def store(persons: int) -> Path:
    """A data directory with the reference data loaded; copy it (`copy_store`), never write to it."""
    directory = CACHE / f"store-{persons}-{digest_of(*_STORE_CODE)}"
    if not _complete(directory):
        for old in CACHE.glob(f"store-{persons}-*"):
            shutil.rmtree(old, ignore_errors=True)
        place, work, begin = city(persons), _fresh(directory), time.perf_counter()
        # the engine takes one path per process: a process of its own
        subprocess.run(
            [sys.executable, "-m", "benchmarks.cache", "--fill", str(work), str(place)], check=True
        )
        _finish(work, directory, {"persons": persons, "seconds": time.perf_counter() - begin})
    return directory


def copy_store(persons: int, to: Path) -> None:
    """A copy of the store with its pseudonym key; `to` must not exist."""
    # the engine links its tables by relative names
    shutil.copytree(store(persons), to, symlinks=True)


def _fill(directory: Path, place: Path) -> None:
    from pipeline.reference.load import load_directory
    from pipeline.rules.catalogue import load_catalogues
    from pipeline.rules.publish import publish
    from pipeline.store.engine import EmbeddedEngine
    from pipeline.store.migrate import migrate

    settings = load_settings(data_dir=directory)
    # one key for all stores of the cache, so that blocks made once fit each of them
    key = CACHE / "pseudonym.v1"
    Privacy.load(key, create=True)
    settings.pseudonym_key_path.parent.mkdir(mode=0o700)
    shutil.copy2(key, settings.pseudonym_key_path)
    engine = EmbeddedEngine(settings.clickhouse_dir, settings.engine_tmp_dir)
    client = engine.new_client()
    migrate(client, settings.database)
    publish(client, load_catalogues(settings.catalogue_dir))
    load_directory(client, place, Privacy.load(settings.pseudonym_key_path, create=False))
    # what is left to merge would be merged within a run, and counted with it
    for (table,) in client.query("SHOW TABLES LIKE 'ref_%'").result_rows:
        client.command(f"OPTIMIZE TABLE {table} FINAL")
    client.close()
    engine.close()


@dataclass(frozen=True)
class Events:
    """Cached events of one workload, in chunks of at most a million."""

    directory: Path
    ledger: Ledger
    base: datetime

    def chunks(self) -> Iterator[pl.DataFrame]:
        """`json`, `grid_code`, `number`, in order of arrival."""
        for file in sorted(self.directory.glob("chunk-*.parquet")):
            yield pl.read_parquet(file)


def events(count: int, persons: int, seed: int = SEED, salt: str = "w") -> Events:
    """`count` events about the city of so many persons, with their ledger."""
    directory = CACHE / f"events-{count}-p{persons}-s{seed}{salt}-v{VERSION}"
    if _complete(directory):
        made = orjson.loads((directory / "made.json").read_bytes())
        if datetime.fromisoformat(made["base"]) > datetime.now(UTC) - _FRESH:
            made["ledger"].pop("stored")
            return Events(directory, Ledger(**made["ledger"]), datetime.fromisoformat(made["base"]))
        for old in CACHE.glob(f"records-*-{directory.name}*"):
            shutil.rmtree(old, ignore_errors=True)
    base = today()
    work = _fresh(directory)
    source = Workload(City(city(persons), load_settings().catalogue_dir), base=base, seed=seed, salt=salt)
    ledgers, heights = [], []
    for number, chunk in enumerate(source.chunks(count)):
        chunk.frame.write_parquet(work / f"chunk-{number:03d}.parquet", compression="lz4")
        ledgers.append(chunk.ledger)
        heights.append(chunk.frame.height)
    ledger = expected(ledgers, heights)
    _finish(work, directory, {"base": base.isoformat(), "seed": seed, "ledger": as_dict(ledger)})
    return Events(directory, ledger, base)


def steps(source: Events, count: int, seed: int) -> pl.DataFrame:
    """So many of its events that are no reports, at random: `json`, `grid_code`."""
    frames = [
        chunk.filter(~pl.col("json").str.contains('"event_type":"REPORTED"', literal=True))
        for chunk in source.chunks()
    ]
    return pl.concat(frames).sample(count, seed=seed).select("json", "grid_code")


def with_feedback(source: Events, cases: pl.DataFrame, tag: str) -> Events:
    """The same events and among them a FEEDBACK for the case of each of `cases` (`workload.feedback`)."""
    directory = source.directory.with_name(f"{source.directory.name}-{len(cases)}-more")
    work, files = _fresh(directory), sorted(source.directory.glob("chunk-*.parquet"))
    more = feedback(cases, tag=tag, at=source.base).with_columns(
        file=pl.int_range(pl.len()) % len(files), place=pl.int_range(pl.len()) / pl.len()
    )
    for number, (file, chunk) in enumerate(zip(files, source.chunks(), strict=True)):
        mine = more.filter(pl.col("file") == number).drop("file")
        places = (pl.int_range(pl.len()) / pl.len()).alias("place")
        mixed = pl.concat([chunk.with_columns(places), mine]).sort("place", maintain_order=True)
        mixed.drop("place").write_parquet(work / file.name, compression="lz4")
    ledger = source.ledger + Ledger(
        sent=len(more), recorded=len(more), stored_checksum=int(more["number"].sum())
    )
    _finish(work, directory, {"base": source.base.isoformat(), "ledger": as_dict(ledger)})
    return Events(directory, ledger, source.base)


@dataclass(frozen=True)
class Records:
    """Records as they lie on the topic. files : one Parquet per chunk: `partition`, `value`, `events`."""

    directory: Path
    form: str

    @property
    def content_type(self) -> str:
        return "application/vnd.apache.arrow.stream" if self.form == "arrow" else "application/x-ndjson"

    def chunks(self) -> Iterator[pl.DataFrame]:
        for file in sorted(self.directory.glob("chunk-*.parquet")):
            yield pl.read_parquet(file)


def records(
    source: Events, form: str, *, partitions: int = PARTITIONS, block_events: int = BLOCK_EVENTS
) -> Records:
    """The events as records: Arrow or NDJSON blocks of `block_events` per partition, or one event each."""
    size = 1 if form == "each" else block_events
    code = digest_of(*_BLOCK_CODE) if form == "arrow" else ""
    directory = CACHE / f"records-{form}{size}-{partitions}-{source.directory.name}-{code}".rstrip("-")
    if not _complete(directory):
        for old in CACHE.glob(f"records-{form}{size}-{partitions}-{source.directory.name}*"):
            shutil.rmtree(old, ignore_errors=True)
        work = _fresh(directory)
        for number, chunk in enumerate(source.chunks()):
            _pack(chunk, form, partitions, size).write_parquet(work / f"chunk-{number:03d}.parquet")
        _finish(work, directory, {"form": form, "partitions": partitions, "events": size})
    return Records(directory, form)


def _pack(chunk: pl.DataFrame, form: str, partitions: int, size: int) -> pl.DataFrame:
    home = partitions_of(chunk["grid_code"], partitions).alias("partition")
    ordered = chunk.select("json").with_columns(home)
    if form == "each":
        return ordered.select("partition", pl.col("json").cast(pl.Binary).alias("value"), events=pl.lit(1))
    ordered = ordered.with_columns(
        block=pl.int_range(pl.len()).over("partition") // size, at=pl.int_range(pl.len())
    )
    blocks = (
        ordered.group_by("partition", "block", maintain_order=True)
        .agg(pl.col("json").str.join("\n"), pl.len().alias("events"), pl.col("at").last())
        .sort("at")
    )
    if form == "ndjson":
        return blocks.select("partition", pl.col("json").cast(pl.Binary).alias("value"), "events")
    privacy = Privacy.load(CACHE / "pseudonym.v1", create=True)
    return pl.DataFrame(
        {
            "partition": blocks["partition"],
            "value": pl.Series([_arrow(text.encode(), privacy) for text in blocks["json"]], dtype=pl.Binary),
            "events": blocks["events"],
        }
    )


def _arrow(body: bytes, privacy: Privacy) -> bytes:
    """What the gateway makes of an NDJSON request."""
    parsed = parse_ndjson(body, max_events=None)
    if parsed.errors:
        raise ValueError(f"the workload breaks the contract: {parsed.errors[0]}")
    frame = to_frame(
        parsed.events,
        ingested_at=datetime.now(UTC),
        request_id="bench",
        backfill=False,
        privacy=privacy,
    )
    return encode_frame(frame)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--persons", type=int, default=500_000)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--form", action="append", choices=FORMS)
    parser.add_argument("--fill", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fill:
        _fill(*options.fill)
        sys.stdout.flush()
        os._exit(0)  # threads of the engine may still wind down
    for what, make in {
        "city": lambda: city(options.persons),
        "store": lambda: store(options.persons),
        "events": lambda: events(options.events, options.persons).directory,
        **{
            form: lambda form=form: records(events(options.events, options.persons), form).directory
            for form in options.form or FORMS
        },
    }.items():
        begin = time.perf_counter()
        print(f"{what}: {make().relative_to(ROOT)}, {time.perf_counter() - begin:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
