"""`make bench-smoke`: events/s from topic to ClickHouse, and the ratio to a plain per-event Faust agent.

The same events lie in the topic before the clock starts. Ours does all of its work (13 rules, L1 and L2,
enrichment, positions, case states, commits); the agent does its share in the same sequence (see
peers/faust_agent.py). Both run alone with the embedded broker and the embedded ClickHouse on this machine,
in turn, several times; medians are quoted. A run whose counts are not those of the events' ledger fails.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import shutil
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
from confluent_kafka import Producer
from confluent_kafka.admin import NewTopic
from rich.console import Console
from rich.table import Table

from pipeline.contract.parse import parse_ndjson
from pipeline.contract.privacy import Privacy
from pipeline.contract.rows import to_frame
from pipeline.ingest.blocks import encode_blocks, partition_of
from pipeline.runtime.broker import command, free_port, wait_until_up
from pipeline.settings import load_settings

PARTITIONS = 12
REQUEST_EVENTS = 5_000
FORMS = ("arrow", "ndjson", "each")
GOAL = 10.0
GRIDPIPE = [str(Path(sys.executable).with_name("gridpipe"))]


def prepare(directory: Path, events: int) -> Path:
    """City and events; returns the NDJSON file (its ledger lies beside it)."""
    feed = directory / "events.ndjson"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    subprocess.run(
        [*GRIDPIPE, "simulate", "city", "--out", str(directory / "city")],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    subprocess.run(
        [
            *GRIDPIPE,
            "simulate",
            "events",
            "--city",
            str(directory / "city"),
            "--count",
            str(events),
            "--seed",
            "11",
        ]
        + ["--out", str(feed), "--truth", str(directory / "truth.json")],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return feed


def produce(bootstrap: str, topic: str, form: str, feed: Path, privacy: Privacy) -> int:
    """Fill the topic; returns the number of events."""
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "acks": "all",
            "linger.ms": 5,
            "queue.buffering.max.kbytes": 2_000_000,
        }
    )
    lines = feed.read_bytes().splitlines()
    now = datetime.now(UTC)

    def send(partition: int, value: bytes, content_type: str) -> None:
        headers = {"content-type": content_type, "schema-version": "1"}
        while True:
            try:
                producer.produce(topic, value=value, partition=partition, headers=headers)
                return
            except BufferError:
                producer.poll(0.1)

    for at in range(0, len(lines), REQUEST_EVENTS):
        part = lines[at : at + REQUEST_EVENTS]
        if form == "arrow":
            parsed = parse_ndjson(b"\n".join(part), max_events=None)
            frame = to_frame(
                parsed.events, ingested_at=now, request_id=f"bench-{at}", backfill=False, privacy=privacy
            )
            for block in encode_blocks(frame, partitions=PARTITIONS, max_bytes=900_000):
                send(block.partition, block.payload, "application/vnd.apache.arrow.stream")
            continue
        shares: dict[int, list[bytes]] = {}
        for line in part:
            shares.setdefault(partition_of(orjson.loads(line)["grid_code"], PARTITIONS), []).append(line)
        for partition, share in shares.items():
            if form == "ndjson":
                send(partition, b"\n".join(share), "application/x-ndjson")
            else:
                for line in share:
                    send(partition, line, "application/x-ndjson")
        producer.poll(0)
    if producer.flush(60):
        raise SystemExit("the broker did not take all records")
    return len(lines)


def measure(directory: Path, form: str, feed: Path, city: Path, number: int) -> dict[str, Any]:
    """One run in a process of its own against a fresh broker; returns what it printed."""
    place = directory / f"run-{form}-{number}"
    place.mkdir()
    port = free_port()
    bootstrap = f"127.0.0.1:{port}"
    broker = subprocess.Popen(command(port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        admin = wait_until_up(bootstrap, seconds=10)
        topic = "grid.events"
        for future in admin.create_topics([NewTopic(topic, PARTITIONS, 1)]).values():
            future.result()
        privacy = Privacy.load(place / "secrets" / "pseudonym.v1", create=True)
        count = produce(bootstrap, topic, "each" if form == "agent" else form, feed, privacy)
        if form == "agent":
            program = [sys.executable, "-m", "benchmarks.peers.faust_agent", bootstrap, topic, str(city)]
            program += [str(load_settings().catalogue_dir), str(place / "clickhouse"), str(count)]
        else:
            program = [
                sys.executable,
                "-m",
                "benchmarks.smoke",
                "--worker",
                str(place),
                bootstrap,
                str(city),
                str(count),
            ]
        done = subprocess.run(program, capture_output=True, check=False, timeout=900)
        if done.returncode or not done.stdout:
            raise SystemExit(f"{form} failed:\n{done.stderr.decode()[-3000:]}")
        result: dict[str, Any] = orjson.loads(done.stdout.splitlines()[-1])
        result["events_per_second"] = count / result["seconds"]
        return result
    finally:
        broker.kill()
        broker.wait()
        shutil.rmtree(place, ignore_errors=True)


def work(place: Path, bootstrap: str, city: Path, expected: int) -> dict[str, Any]:
    """Our worker over the topic, on a store of its own with the city's reference data."""
    from benchmarks.worker_run import run
    from pipeline.reference.load import load_directory
    from pipeline.rules.catalogue import load_catalogues
    from pipeline.rules.publish import publish
    from pipeline.store.engine import EmbeddedEngine
    from pipeline.store.migrate import migrate

    settings = load_settings(data_dir=place, kafka=bootstrap, log_level="warning")
    engine = EmbeddedEngine(settings.clickhouse_dir, settings.engine_tmp_dir)
    client = engine.new_client()
    migrate(client, settings.database)
    publish(client, load_catalogues(settings.catalogue_dir))
    load_directory(client, city, Privacy.load(settings.pseudonym_key_path, create=False))
    client.close()
    engine.close()
    result = asyncio.run(run(settings, bootstrap, expected, None))
    return result | {"counts": result["outcomes"]}


def check(form: str, result: dict[str, Any], ledger: dict[str, Any]) -> None:
    """Every event accounted for; ours with exactly the outcomes that the ledger names."""
    counts = result["counts"]
    if sum(counts.values()) != ledger["sent"]:
        raise SystemExit(f"{form}: {sum(counts.values())} events accounted for, {ledger['sent']} were sent")
    truth = {name: ledger[name] for name in ("admitted", "rejected", "recorded", "quarantined")}
    truth["duplicate"] = sum(ledger["duplicates"].values())
    if form != "agent" and counts != truth:
        raise SystemExit(f"{form}: counted {counts}, the ledger says {truth}")
    # the agent knows no grid versions and no id conflicts: near is right enough for it
    apart = sum(abs(counts[name] - truth[name]) for name in truth)
    if apart > 0.01 * ledger["sent"]:
        raise SystemExit(f"{form}: counted {counts}, too far from the ledger's {truth}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--events", type=int, default=300_000, help="events in the topic (default %(default)s)"
    )
    parser.add_argument(
        "--agent-events", type=int, default=60_000, help="events for the agent (default %(default)s)"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="runs of each; medians are quoted (default %(default)s)"
    )
    parser.add_argument("--form", action="append", choices=FORMS, help="measure only this form of records")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        place, bootstrap, city, expected = options.worker
        result = work(Path(place), bootstrap, Path(city), int(expected))
        print(orjson.dumps(result).decode(), flush=True)
        os._exit(0)  # threads of the engine may still wind down

    out = Console()
    base = Path("var/bench-smoke").resolve()
    shutil.rmtree(base, ignore_errors=True)
    feeds = {
        "ours": prepare(base / "ours", options.events),
        "agent": prepare(base / "agent", options.agent_events),
    }
    forms = tuple(options.form or FORMS)
    figures: dict[str, list[dict[str, Any]]] = {form: [] for form in (*forms, "agent")}
    for number in range(options.rounds):
        for form in figures:
            feed = feeds["agent" if form == "agent" else "ours"]
            result = measure(base, form, feed, feed.parent / "city", number)
            rate = result["events_per_second"]
            out.print(f"round {number + 1} of {options.rounds}: {form} {rate:,.0f} events/s", highlight=False)
            ledger = orjson.loads((feed.parent / "truth.json").read_bytes())
            check(form, result, ledger["events"])
            figures[form].append(result)

    rates = {
        form: statistics.median(run["events_per_second"] for run in runs) for form, runs in figures.items()
    }
    table = Table(
        title=f"topic → ClickHouse, {platform.machine()}, {os.cpu_count()} cores, median of {options.rounds}"
    )
    for head in ("records on the topic", "events/s", "× plain agent", "peak MB"):
        table.add_column(head, justify="left" if head.startswith("records") else "right")
    names = {
        "arrow": "gridpipe, Arrow blocks",
        "ndjson": "gridpipe, NDJSON blocks",
        "each": "gridpipe, one event per record",
        "agent": "plain Faust agent, one event per record",
    }
    for form in figures:
        peak = max((run.get("peak_mb", 0) for run in figures[form]), default=0)
        table.add_row(
            names[form],
            f"{rates[form]:,.0f}",
            f"{rates[form] / rates['agent']:.1f}",
            f"{f'{peak:.0f}' if peak else '–'}",
        )
    out.print(table)
    stages = figures[forms[0]][-1]["stages"]
    whole = sum(stages.values()) or 1.0
    blocks = figures[forms[0]][-1]["blocks"]
    parts = ", ".join(f"{name} {value / whole:.0%}" for name, value in stages.items())
    out.print(f"threads' time by stage, {forms[0]}, {blocks} blocks, {whole:.1f} s in all: {parts}")
    ratio = rates[forms[0]] / rates["agent"]
    out.print(f"ratio {ratio:.1f}, goal at least {GOAL:.0f}: {'reached' if ratio >= GOAL else 'NOT REACHED'}")
    shutil.rmtree(base, ignore_errors=True)
    return 0 if ratio >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
