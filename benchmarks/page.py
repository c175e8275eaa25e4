"""What the live page costs, and how far it lies behind, while browsers watch it.

    python -m benchmarks page [--rate 100000] [--viewers 10] [--seconds S] [--persons N]
    python -m benchmarks page --url http://127.0.0.1:8080 [--viewers 10] [--seconds S]

The first puts prepared Arrow blocks on a topic of its own at the asked rate: nothing passes through the
gateway, so that what the HTTP process uses is the api's. It measures with viewers, then without. The second
looks at a service that runs, without and then with viewers; where events come in by HTTP, the gateway's cost
is in the figure.

A viewer does what a page does that is opened and left: it reads the stream, parses every message, and asks
for the tables of towns and departments as often as the page does. Earlier versions read the stream alone.

Prints one JSON object. CPU is per cent of a core; `behind` are seconds between the clock and what the stream
of a viewer (city, districts, rejections) or each of its tables holds, sampled at any instant, not when an
answer comes; `stored_per_second` is the worker's rate,
`store_microseconds_per_event` what viewers make dearer, on a busy machine too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson
import psutil

from benchmarks import cache, load_check
from benchmarks.harness import PLACE, RunFailedError, broker, commit, out, python
from benchmarks.page_watch import watching
from benchmarks.service import service

#: The past hour of the trend is read once, by the first viewer.
_PAST_SECONDS = 15.0
#: Of a flow, before anything is measured.
_WARM_SECONDS = 4.0
_ROLES = ("http", "store")

Processes = dict[str, psutil.Process]


def processes(url: str) -> Processes:
    """The HTTP process that listens at `url`, and the store process beside it."""
    port = urlsplit(url).port
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
            listener = psutil.Process(connection.pid)
            near = [listener, *listener.children(), *listener.parent().children()]
            found = {}
            for role in _ROLES:
                mine = [one for one in near if f"pipeline.runtime.{role}" in " ".join(one.cmdline())]
                if mine:
                    found[role] = mine[0]
            if "http" in found:
                return found
    raise SystemExit(f"no HTTP process of gridpipe listens on port {port}")


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def stored(client: httpx.AsyncClient) -> float:
    """Events that the worker has finished."""
    return sum(load_check.outcomes((await client.get("/metrics")).text).values())


async def measure(url: str, found: Processes, seconds: float) -> dict[str, Any]:
    """CPU of each role and the worker's rate over so long."""
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as client:
        clock = asyncio.get_running_loop().time
        before, events, begin = (
            {role: cpu_seconds(p) for role, p in found.items()},
            await stored(client),
            clock(),
        )
        await asyncio.sleep(seconds)
        after, length = {role: cpu_seconds(p) for role, p in found.items()}, clock() - begin
        events = await stored(client) - events
    used = {role: after[role] - before[role] for role in found}
    return {
        "cpu_percent": {role: round(seconds / length * 100, 2) for role, seconds in used.items()},
        "stored_per_second": round(events / length),
        "store_microseconds_per_event": round(used["store"] / events * 1e6, 1) if events else None,
    }


async def with_viewers(
    url: str, found: Processes, viewers: int, seconds: float, begin: Any
) -> dict[str, Any]:
    """begin : awaited once the viewers watch and the past hour was read."""
    async with watching(url, viewers) as seen:
        await asyncio.sleep(_PAST_SECONDS)
        await begin()
        seen.begin()
        measured = await measure(url, found, seconds)
        return measured | {
            "behind_seconds": seen.behind_seconds(),
            "tables_behind_seconds": seen.tables_behind_seconds(),
            "tables_read_per_second": round(seen.refreshes / seconds, 2),
            "stream_bytes_per_viewer_and_second": round(seen.stream_bytes / viewers / seconds),
            "tables_asked_per_viewer_and_second": round(seen.tables / viewers / seconds, 2),
            "table_bytes_per_viewer_and_second": round(seen.table_bytes / viewers / seconds),
            "tables_failed": seen.tables_failed,
        }


async def look(url: str, viewers: int, seconds: float) -> dict[str, Any]:
    """A service that runs."""

    async def nothing() -> None:
        return

    found = processes(url)
    without = await measure(url, found, seconds)
    return {"without": without, "with": await with_viewers(url, found, viewers, seconds, nothing)}


@contextlib.contextmanager
def watched_service(persons: int, bootstrap: str) -> Iterator[tuple[str, Processes]]:
    """HTTP and store process over a fresh copy of the store, reading the broker at `bootstrap`."""
    place = PLACE / "page"
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    cache.copy_store(persons, place)
    try:
        with service(place, bootstrap, canary_interval_seconds=0) as (running, _):
            yield running.url, {role: psutil.Process(running.pids[role]) for role in _ROLES}
    finally:
        shutil.rmtree(place, ignore_errors=True)


async def flow(rate: float, viewers: int, seconds: float, persons: int) -> dict[str, Any]:
    """The whole row by itself: a service of its own, events at `rate`, viewers, then none."""
    events = round(rate * (_WARM_SECONDS + 2 * seconds))
    cache.records(cache.events(events, persons), "arrow")  # before anything runs
    with broker() as to, watched_service(persons, to.bootstrap) as (url, found):
        arguments = (to.bootstrap, str(rate), str(events), str(persons))
        async with _feeding(arguments) as begin:
            watched = await with_viewers(url, found, viewers, seconds, begin)
            without = await measure(url, found, seconds)
    return {"asked_per_second": rate, "events": events, "with": watched, "without": without}


@contextlib.asynccontextmanager
async def _feeding(arguments: tuple[str, ...]) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Gives what starts the feed and returns when it has run for a while."""
    feed: asyncio.subprocess.Process | None = None

    async def begin() -> None:
        nonlocal feed
        feed = await asyncio.create_subprocess_exec(
            *python("-m", "benchmarks.feed", *arguments), cwd=cache.ROOT, stdout=asyncio.subprocess.PIPE
        )
        assert feed.stdout is not None
        if await feed.stdout.readline() != b"sending\n":
            raise RunFailedError("the feed did not start")
        await asyncio.sleep(_WARM_SECONDS)

    try:
        yield begin
    finally:
        if feed is not None:
            if feed.returncode is None:
                feed.kill()
            await feed.wait()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks page", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", help="a service that runs; without it one of its own")
    parser.add_argument("--rate", type=float, default=100_000, help="events/s put on the topic")
    parser.add_argument("--viewers", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=13)
    parser.add_argument("--persons", type=int, default=20_000)
    given = parser.parse_args(arguments)
    load = psutil.getloadavg()[0]
    if given.url:
        found = asyncio.run(look(given.url, given.viewers, given.seconds))
    else:
        found = asyncio.run(flow(given.rate, given.viewers, given.seconds, given.persons))
    facts = {"commit": commit(), "viewers": given.viewers, "seconds": given.seconds, "load_before": load}
    out.print_json(orjson.dumps(facts | found).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
