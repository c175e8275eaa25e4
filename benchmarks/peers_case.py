"""One run of one peer or floor against a fresh broker, checked."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from benchmarks import cache, peers_inputs
from benchmarks.harness import PLACE, TOPIC, WrongCountsError, broker, check_common, fill, run_program

#: The slowest takes half a minute; one that waits for events that it lost never ends.
_SECONDS: Final = 300.0


@dataclass(frozen=True)
class Peer:
    """A program of `benchmarks/peers`.

    kind : row (a program that a user might write), engine (ClickHouse by itself), floor (a part of the work).
    needs_topic : whether it reads the records from a broker. dedups : whether its counts include duplicates.
    """

    title: str
    module: str
    kind: str
    needs_topic: bool = True
    arguments: tuple[str, ...] = ()
    own_environment: bool = True


PEERS: Final = {
    "faust": Peer("plain Faust agent", "faust_plain", "row"),
    "quixstreams": Peer("quixstreams, tuned", "quix", "row"),
    "bytewax": Peer("bytewax, tuned", "bytewax_flow", "row"),
    "row_loop": Peer("aiokafka + msgspec row loop, tuned", "row_loop", "row"),
    "clickhouse_push": Peer(
        "ClickHouse: JSONEachRow push + view", "clickhouse_sql", "engine", arguments=("push",)
    ),
    "clickhouse_file": Peer("ClickHouse: file + dictionaries", "clickhouse_sql", "engine", False, ("file",)),
    "consume_only": Peer("floor: broker consume only", "consume_only", "floor"),
    "parse_polars": Peer("floor: polars read_ndjson only", "parse_only", "floor", False, ("polars",), False),
    "parse_msgspec": Peer(
        "floor: msgspec typed decode only", "parse_only", "floor", False, ("msgspec",), False
    ),
}


def run_peer(name: str, source: cache.Events, form: str, persons: int, partitions: int) -> dict[str, Any]:
    """Result with `events_per_second`. Raises WrongCountsError, RunFailedError."""
    peer = PEERS[name]
    place = PLACE / f"peer-{name}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        python = peers_inputs.interpreter() if peer.own_environment else sys.executable
        command = [python, "-m", f"benchmarks.peers.{peer.module}"]
        if not peer.own_environment:
            file = str(peers_inputs.ndjson(source))
            result = run_program([*command, *peer.arguments, file], seconds=_SECONDS)
        elif not peer.needs_topic:
            file = str(peers_inputs.ndjson(source))
            task = _task(place, "127.0.0.1:9", source, form, persons, partitions)
            result = run_program([*command, task, *peer.arguments, file], seconds=_SECONDS)
        else:
            with broker(partitions) as to:
                fill(to.bootstrap, cache.records(source, form, partitions=partitions))
                used = to.cpu_seconds()
                task = _task(place, to.bootstrap, source, form, persons, partitions)
                result = run_program([*command, task, *peer.arguments], seconds=_SECONDS)
                result["broker_cpu_seconds"] = to.cpu_seconds() - used
    except subprocess.TimeoutExpired as error:
        raise WrongCountsError(
            f"{name} never ended: it does not see all {source.ledger.sent} events"
        ) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)
    if peer.kind == "floor":
        if result["counts"]["taken"] != source.ledger.sent:
            raise WrongCountsError(f"{name}: {result['counts']} of {source.ledger.sent}")
    else:
        check_common(name, result, source.ledger)
    result["events"] = source.ledger.sent
    result["events_per_second"] = source.ledger.sent / result["seconds"]
    return result


def _task(  # noqa: PLR0917
    place: Path, bootstrap: str, source: cache.Events, form: str, persons: int, partitions: int
) -> str:
    path = place / "task.json"
    path.write_bytes(
        orjson.dumps(
            {
                "bootstrap": bootstrap,
                "topic": TOPIC,
                "partitions": partitions,
                "form": form,
                "reference": str(peers_inputs.reference(persons)),
                "path": str(place / "clickhouse"),
                "events": source.ledger.sent,
            }
        )
    )
    return str(path)
