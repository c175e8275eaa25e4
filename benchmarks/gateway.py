"""HTTP in → broker's ack: the gateway beside a bare server, requests of every kind, one server process each.

    python -m benchmarks gateway [--quick] [--seconds S] [--rounds N] [--only ndjson500]

Events/s are measured over wall time and over the server's own processor time: with broker and client on the
same two cores the second says what one core of gateway carries. What the answers accept must be on the topic.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import math
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import orjson
import psutil
import pyarrow as pa
import zstandard
from confluent_kafka import Consumer, TopicPartition

from benchmarks import cache
from benchmarks.harness import (
    PLACE,
    RUN_SECONDS,
    TOPIC,
    Broker,
    RunFailedError,
    Series,
    WrongCountsError,
    broker,
    cpu_seconds_of,
    out,
    peak_mb_of,
    python,
    rounds,
    run_program,
    tell,
)
from benchmarks.http_client import write_bodies
from benchmarks.load_bodies import MARK, outcomes_of, running_outcomes
from pipeline.runtime.broker import free_port

JSON, NDJSON = "application/json", "application/x-ndjson"
#: name -> (events per request, content type, content encoding, connections)
REQUESTS: Final = {
    "single": (1, JSON, None, 64),
    "array500": (500, JSON, None, 16),
    "ndjson500": (500, NDJSON, None, 16),
    "ndjson5000": (5_000, NDJSON, None, 8),
    "ndjson500 gzip": (500, NDJSON, "gzip", 16),
    "ndjson500 zstd": (500, NDJSON, "zstd", 16),
}
#: What the goals are about.
_GOAL_CASES: Final = ("gridpipe single", "gridpipe ndjson500")
_BODIES: Final = 40
#: Above it the client may be what limits the figure.
CLIENT_LIMIT: Final = 0.85
#: In open loop every connection has one request on its way: there are enough for answers that take so long.
_ANSWER_SECONDS: Final = 0.5
#: And not so many that one has no request for so long: the server closes those that idle.
_IDLE_SECONDS: Final = 2.0
#: The service takes 2,000.
_MOST_CONNECTIONS: Final = 1_000
#: What is sent so much behind its time is not the load that was asked.
LATE_SECONDS: Final = 0.5
#: What the load client may take beside its load: its start, the bodies, the last answers.
_CLIENT_MARGIN_SECONDS: Final = 300.0


def body_events(persons: int) -> cache.Events:
    """What bodies are cut from; made where it is not in the cache."""
    return cache.events(50_000, persons, salt=MARK.decode())


def events_by_body(kind: str, persons: int) -> list[list[bytes]]:
    """Events of some distinct request bodies of this kind."""
    size = REQUESTS[kind][0]
    count = min(size * _BODIES, 50_000) if size > 1 else 2_000
    source = body_events(persons)
    lines = [text.encode() for text in next(source.chunks())["json"].head(count).to_list()]
    return [lines[at : at + size] for at in range(0, len(lines), size)]


def bodies(kind: str, parts: list[list[bytes]]) -> list[bytes]:
    """These bodies, serialised and compressed beforehand."""
    size, content_type, encoding, _ = REQUESTS[kind]
    found = []
    for part in parts:
        body = b"\n".join(part) if content_type == NDJSON or size == 1 else b"[" + b",".join(part) + b"]"
        if encoding == "gzip":
            body = gzip.compress(body, 6)
        elif encoding == "zstd":
            body = zstandard.compress(body, 3)
        found.append(body)
    return found


@contextlib.contextmanager
def server(
    which: str, to: Broker, place: Path, partitions: int, *more: str
) -> Iterator[tuple[str, str, psutil.Process]]:
    """`gridpipe` (`more` are its further arguments) or `bare` as a process: (address, key, process)."""
    address = f"127.0.0.1:{free_port()}"
    if which == "bare":
        command = python("-m", "benchmarks.bare_server", to.bootstrap, address, str(partitions))
    else:
        command = python("-m", "benchmarks.gateway_run", str(place / "gateway"), to.bootstrap, address, *more)
    errors = (place / f"{which}.log").open("wb")
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, cwd=cache.ROOT)
    try:
        assert child.stdout is not None
        line = child.stdout.readline()
        if not line:
            raise RunFailedError(f"{which} did not start: {(place / f'{which}.log').read_text()[-2000:]}")
        yield address, orjson.loads(line)["key"], psutil.Process(child.pid)
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        errors.close()


def prepare_load(place: Path, kind: str, persons: int) -> tuple[Path, list[dict[str, int]]]:
    """The bodies' file, made the first time, and what becomes of the first 0, 1, 2 … of them."""
    file = place / f"bodies-{kind.replace(' ', '-')}"
    running = file.with_suffix(".json")
    if not file.exists():
        parts = events_by_body(kind, persons)
        running.write_bytes(orjson.dumps(running_outcomes(parts)))
        write_bodies(file, bodies(kind, parts))
    return file, orjson.loads(running.read_bytes())


def connections_for(rate: float, size: int, least: int) -> int:
    """Connections that keep a pace of `rate` events/s in requests of `size` while answers take half a
    second."""
    requests = rate / size
    wanted = max(least, math.ceil(requests * _ANSWER_SECONDS))
    return max(1, min(wanted, int(requests * _IDLE_SECONDS), _MOST_CONNECTIONS))


def run_load(
    place: Path, address: str, key: str, kind: str, *, persons: int, rate: float = 0.0, **more: Any
) -> dict[str, Any]:
    """One run of the load client; `more`: seconds or requests. May take as long as it loads, and more.

    With `first_pass`, the result has in `expected` what must become of the events by outcome.
    """
    size, content_type, encoding, connections = REQUESTS[kind]
    if rate:
        connections = connections_for(rate, size, connections)
    file, running = prepare_load(place, kind, persons)
    headers = {"Content-Type": content_type} | ({"Content-Encoding": encoding} if encoding else {})
    task = place / "client.json"
    task.write_bytes(
        orjson.dumps(
            {
                "address": address,
                "key": key,
                "connections": connections,
                "rate": rate,
                "bodies": str(file),
                "events": size,
                "headers": headers,
                **more,
            }
        )
    )
    # its seconds count from its own start, the time limit from ours
    limit = (more.get("seconds") or RUN_SECONDS) + _CLIENT_MARGIN_SECONDS
    found = run_program(python("-m", "benchmarks.http_client", str(task)), seconds=limit)
    if "first_pass" in more:
        # what was not answered may have arrived all the same
        sent = found["requests"] + found["unanswered"]
        found["expected"] = outcomes_of(sent, running)
        found["not_accepted"] = size * sent - found["accepted"]
    return found


def pace_text(sent: dict[str, Any]) -> str:
    """What to know of the client that sent a load; empty where the load is what was asked."""
    found = []
    if sent["client_cpu_share"] > CLIENT_LIMIT:
        found.append(f"the client used {sent['client_cpu_share']:.0%} of a core")
    if sent["late_seconds"] > LATE_SECONDS:
        found.append(f"it sent up to {sent['late_seconds']:.1f} s behind its pace")
    return " and ".join(found) and f"{' and '.join(found)}: it may be what limits this figure"


def on_topic(to: Broker, partitions: int, wanted: int) -> int:
    """Events in all records of the topic: rows of Arrow blocks, the bare server's lines or elements.

    Silence is the end, for the broker's end offsets are too low: two seconds of it, or half a second where
    all that is `wanted` has come.
    """
    consumer = Consumer({"bootstrap.servers": to.bootstrap, "group.id": "count", "enable.auto.commit": False})
    consumer.assign([TopicPartition(TOPIC, number, 0) for number in range(partitions)])
    events, idle = 0, 0
    while idle < (2 if events == wanted else 8):
        records = consumer.consume(500, 0.25)
        idle = 0 if records else idle + 1
        for record in records:
            if record.error() is None:
                events += _events_in(record.value())
    consumer.close()
    return events


def _events_in(value: bytes) -> int:
    if value[:1] == b"{":
        return value.count(b"\n") + 1
    if value[:1] == b"[":
        return len(orjson.loads(value))
    with pa.ipc.open_stream(io.BytesIO(value)) as stream:
        return sum(batch.num_rows for batch in stream)


@contextlib.contextmanager
def _place() -> Iterator[Path]:
    """An empty directory for one measurement."""
    place = PLACE / "gateway"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _check_answers(which: str, kind: str, result: dict[str, Any]) -> None:
    if set(result["statuses"]) != {"202"} or result["rejected"] or result["unanswered"]:
        raise WrongCountsError(f"{which} {kind}: {result}")


def _check_topic(what: str, to: Broker, partitions: int, wanted: int) -> None:
    if (found := on_topic(to, partitions, wanted)) != wanted:
        raise WrongCountsError(f"{what}: accepted {wanted}, on the topic {found}")


def measure(
    which: str, kind: str, *, seconds: float, persons: int, partitions: int = cache.PARTITIONS
) -> dict[str, Any]:
    """One server, fresh broker, load as fast as it is answered. Raises WrongCountsError."""
    with (
        _place() as place,
        broker(partitions) as to,
        server(which, to, place, partitions) as (address, key, process),
    ):
        warm = run_load(place, address, key, kind, persons=persons, seconds=min(1.0, seconds / 4))
        before = cpu_seconds_of(process.pid)
        result = run_load(place, address, key, kind, persons=persons, seconds=seconds)
        cpu = cpu_seconds_of(process.pid) - before
        memory = peak_mb_of(process.pid)
        _check_answers(which, kind, result)
        _check_topic(f"{which} {kind}", to, partitions, warm["accepted"] + result["accepted"])
    return result | {
        "events": result["accepted"],
        "events_per_second": result["accepted"] / result["seconds"],
        "cpu_seconds": cpu,
        "events_per_cpu_second": result["accepted"] / cpu,
        "peak_mb": memory,
    }


def in_turn(kind: str, *, slices: int, seconds: float, persons: int) -> dict[str, list[float]]:
    """Bare server and gateway side by side on one broker, loaded in turn by slices so short that both see the
    same machine: events per CPU second of each slice, by server. Raises WrongCountsError."""
    found: dict[str, list[float]] = {"bare": [], "gridpipe": []}
    wanted = 0
    with _place() as place, broker(cache.PARTITIONS) as to, contextlib.ExitStack() as stack:
        servers = {which: stack.enter_context(server(which, to, place, cache.PARTITIONS)) for which in found}
        for at in range(-1, slices):  # the first warms both
            for which, (address, key, process) in servers.items():
                before = cpu_seconds_of(process.pid)
                result = run_load(place, address, key, kind, persons=persons, seconds=seconds)
                cpu = cpu_seconds_of(process.pid) - before
                _check_answers(which, kind, result)
                wanted += result["accepted"]
                if at >= 0:
                    found[which].append(result["accepted"] / cpu)
        _check_topic(kind, to, cache.PARTITIONS, wanted)
    return found


def calls(kind: str, *, requests: int, persons: int) -> float:
    """Calls of Python functions within a request, by event. Raises WrongCountsError."""
    with _place() as place:
        with (
            broker(cache.PARTITIONS) as to,
            server("gridpipe", to, place, cache.PARTITIONS, "count-calls") as (address, key, _),
        ):
            result = run_load(place, address, key, kind, persons=persons, requests=requests)
            _check_answers("gridpipe", kind, result)
        counted = orjson.loads((place / "gateway" / "calls.json").read_bytes())
    return float(counted["python"] / result["accepted"])


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks gateway", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="2 s each, one round")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--persons", type=int, default=500_000)
    parser.add_argument("--fewer-rounds", action="store_true", help="of all that no goal is about")
    parser.add_argument("--only", action="append", choices=list(REQUESTS))
    return parser.parse_args(arguments)


def prepare(arguments: list[str]) -> None:
    """Make what the runs use and is not in the cache."""
    body_events(_options(arguments).persons)


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    prepare(arguments)
    seconds = options.seconds or (2.0 if options.quick else 4.0)
    number = options.rounds or (1 if options.quick else 5)
    cases = [f"gridpipe {kind}" for kind in options.only or REQUESTS]
    cases += [f"bare {kind}" for kind in options.only or REQUESTS if " " not in kind]
    series = Series("gateway", {"seconds": seconds, "persons": options.persons}, quick=options.quick)
    fewer = {case: 1 for case in cases if case not in _GOAL_CASES}
    failed: list[str] = []
    for at, case in rounds(number, cases, fewer if options.fewer_rounds else None):
        which, kind = case.split(" ", 1)
        try:
            result = measure(which, kind, seconds=seconds, persons=options.persons)
        except WrongCountsError as error:  # a run without a figure; the others have theirs
            failed.append(f"{case}, round {at + 1}")
            series.leave_out(case, f"round {at + 1}")
            out.print(f"FAILED: {error}", markup=False)
            continue
        series.add(case, at, result)
        tell(series, case, at, number)
        if limits := pace_text(result):
            out.print(f"  {limits}")
    for case in (case for case in cases if case in series.runs):
        out.print(
            f"{case}: {series.median(case):,.0f} events/s, "
            f"{series.median(case, 'events_per_cpu_second'):,.0f} per CPU second of the server"
        )
    if failed:
        series.save()
        out.print(f"FAILED, and without a figure: {'; '.join(failed)}")
    return 1 if failed else 0
