"""`gridpipe worker` or `gateway` that kills itself at a named point: `python -m tests.fault.worker_process
POINT HIT …`.

With FAULT_CLOCK the clock of the process is wrong by as many seconds as stand in that file; with
FAULT_DESCRIPTORS it may open so many files; with FAULT_STORED a gateway answers as that of `gridpipe up` on
the embedded broker; FAULT_MUTANT takes parts of the deduplication away (`tokens`, `rebuilt`), which the
oracle must see.

The points are wrapped around the functions of the two here, so that the product carries no failpoints.
A point is `before:NAME` or `after:NAME`; HIT counts from 1; POINT `none` only runs the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

#: What a point is called, and which call it wraps.
POINTS = (
    "recover",  # reading a partition's memory after the assignment
    "judge",  # the stages of a round
    "insert:events",
    "insert:rejections",
    "insert:duplicates",
    "insert:case_events",
    "remember",  # ids and anchors of what is stored
    "fold",  # the states of the cases that a round touched
    "commit",  # the offsets
)
#: Those of a gateway.
GATEWAY_POINTS = (
    "send",  # the blocks of a group of requests to the log, until each has its report
    "confirm",  # what is durable of them
)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


class _Fuse:
    """Blows at the given hit of a point."""

    def __init__(self, point: str, hit: int, blow: Callable[[], object]) -> None:
        self._when, _, self.name = point.partition(":")
        self._left = hit
        self._blow = blow

    def _at(self, when: str) -> None:
        if when == self._when:
            self._left -= 1
            if self._left == 0:
                self._blow()

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            self._at("before")
            result = call(*arguments, **named)
            self._at("after")
            return result

        return wrapped

    def around_async(self, call: Callable[..., Any]) -> Callable[..., Any]:
        async def wrapped(*arguments: Any, **named: Any) -> Any:
            self._at("before")
            result = await call(*arguments, **named)
            self._at("after")
            return result

        return wrapped


def install(point: str, hit: int, blow: Callable[[], object] = _die) -> None:
    """Wrap the call that `point` names. Raises KeyError for an unknown one."""
    from pipeline.ingest.durability import Replicated, Stored
    from pipeline.ingest.producer import KafkaProducer
    from pipeline.process import rounds, worker
    from pipeline.process.membership import Membership
    from pipeline.sink.tables import Sink

    fuse = _Fuse(point, hit, blow)
    if fuse.name not in POINTS + GATEWAY_POINTS:
        raise KeyError(point)
    name, _, table = fuse.name.partition(":")
    if name == "insert":
        send = Sink._send
        armed = fuse.around(send)

        def insert(self: Sink, to: str, *rest: Any) -> None:
            (armed if to == table else send)(self, to, *rest)

        Sink._send = insert  # type: ignore[method-assign]
    elif name == "send":
        KafkaProducer.send = fuse.around_async(KafkaProducer.send)  # type: ignore[method-assign]
    elif name == "confirm":
        for durability in (Replicated, Stored):
            durability.confirm = fuse.around_async(durability.confirm)  # type: ignore[method-assign]
    elif name == "commit":
        Membership.commit = fuse.around_async(Membership.commit)  # type: ignore[method-assign]
    else:
        module, attribute = {
            "recover": (worker, "recover"),
            "judge": (rounds, "process_blocks"),
            "remember": (rounds, "remember"),
            "fold": (worker, "fold_round"),
        }[name]
        setattr(module, attribute, fuse.around(getattr(module, attribute)))


def _refuse_commits(file: Path, *, answered: bool) -> None:
    """No offset commit stands for as long as the file is there. answered : each fails, as where the group's
    offsets cannot be written; otherwise none comes back, as where its coordinator cannot be found."""
    from aiokafka import AIOKafkaConsumer
    from aiokafka.errors import KafkaTimeoutError

    commit = AIOKafkaConsumer.commit

    async def refuse(self: Any, offsets: Any = None) -> None:
        while os.path.exists(file):  # noqa: ASYNC240, PTH110  in a test
            if answered:
                raise KafkaTimeoutError("injected")
            await asyncio.sleep(0.1)
        await commit(self, offsets)

    AIOKafkaConsumer.commit = refuse


def _shift_clock(file: Path) -> None:
    """The wall clock follows the file; monotonic clocks do not. Before anything else imports the clock."""
    from pipeline import clock

    right, right_time = clock.utc_now, time.time

    def offset() -> float:
        with contextlib.suppress(OSError, ValueError):  # it is being written
            return float(file.read_text())
        return 0.0

    clock.utc_now = lambda: right() + timedelta(seconds=offset())
    time.time = lambda: right_time() + offset()


def _answer_once_stored() -> None:
    """A gateway as the supervisor starts it on the embedded broker: it answers when the offset is committed,
    and its producer is not idempotent. `gridpipe gateway` itself takes every broker for a replicated one."""
    from pipeline.ingest.durability import stored_in
    from pipeline.runtime import http

    assemble, producer = http.assemble, http.KafkaProducer

    def stored(settings: Any, *, bootstrap: str, **parts: Any) -> Any:
        durable = lambda: stored_in(settings, bootstrap)  # noqa: E731
        return assemble(settings, bootstrap=bootstrap, **parts | {"durable": durable})

    http.assemble = stored
    http.KafkaProducer = lambda *about, **_: producer(*about, idempotent=False)  # type: ignore[assignment,misc]


def _store_again(parts: list[str]) -> None:
    """tokens : each attempt of an insert has a token of its own. rebuilt : rows of a block that is rebuilt
    are sent whether they are stored or not."""
    from pipeline.process import rounds
    from pipeline.sink import tables

    insert = tables.insert_table

    def anew(*arguments: Any, settings: dict[str, Any]) -> None:
        insert(*arguments, settings=settings | {"insert_deduplication_token": os.urandom(8).hex()})

    if "tokens" in parts:
        tables.insert_table = anew  # type: ignore[assignment]
    if "rebuilt" in parts:
        rounds.without = lambda result, _: result


def _stand_still(seconds: float) -> None:
    print("the loop stands still", file=sys.stderr, flush=True)
    time.sleep(seconds)
    print("the loop goes on", file=sys.stderr, flush=True)


def main() -> None:
    if "FAULT_DESCRIPTORS" in os.environ:
        most = int(os.environ["FAULT_DESCRIPTORS"])
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # hard too: it asks for all
    if "FAULT_CLOCK" in os.environ:
        _shift_clock(Path(os.environ["FAULT_CLOCK"]))
    if "FAULT_STORED" in os.environ and "gateway" in sys.argv:
        _answer_once_stored()
    if "FAULT_MUTANT" in os.environ:
        _store_again(os.environ["FAULT_MUTANT"].split(","))
    point, hit, arguments = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    if point.startswith("freeze:"):  # stands still until somebody sends SIGCONT
        install(point.removeprefix("freeze:"), hit, lambda: os.kill(os.getpid(), signal.SIGSTOP))
    elif point.startswith("hang:"):  # the thread that comes there never returns
        install(point.removeprefix("hang:"), hit, threading.Event().wait)
    elif point.startswith("stall:"):  # the event loop itself stands still for so many seconds, at the hit
        seconds = float(point.removeprefix("stall:"))

        def stall() -> None:
            asyncio.get_running_loop().call_soon(_stand_still, seconds)

        install("before:commit", hit, stall)
    elif point.startswith("refuse-commits:"):
        _refuse_commits(Path(point.removeprefix("refuse-commits:")), answered=True)
    elif point.startswith("hang-commits:"):
        _refuse_commits(Path(point.removeprefix("hang-commits:")), answered=False)
    elif point.startswith("panic:"):
        from polars.exceptions import PanicException

        def panic() -> None:
            raise PanicException("injected")

        install(point.removeprefix("panic:"), hit, panic)
    elif point != "none":
        install(point, hit)
    sys.argv = ["gridpipe", *arguments]
    from pipeline.cli.main import run

    run()


if __name__ == "__main__":
    main()
