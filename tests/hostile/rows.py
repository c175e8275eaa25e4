"""The five ways a hostile input is sent, each with what must come back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import orjson

from tests.hostile.world import GROWTH_BYTES, PROBLEM, World, patience

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"


class Row(Protocol):
    """One line of the table. number : of the list of hostile inputs; how : the way it is sent; grows : bytes
    that the HTTP process must stay below, at every moment, beyond its size before."""

    @property
    def number(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def how(self) -> str: ...
    @property
    def grows(self) -> int: ...

    def run(self, world: World) -> None: ...


@dataclass(frozen=True)
class Bad:
    """A bad event of a batch. value : changes to a sound event, or the JSON text itself; code : its error,
    None where the contract takes it."""

    value: Mapping[str, Any] | bytes
    code: str | None
    field: str | None = None


@dataclass(frozen=True)
class Batch:
    """Bad events between two sound ones in one request: 202, an error for each, both sound ones kept."""

    number: int
    name: str
    bads: tuple[Bad, ...]
    how = "client: one batch, a sound event before and after"
    grows = GROWTH_BYTES

    def run(self, world: World) -> None:
        first, last = world.event(), world.event()
        parts, taken = [orjson.dumps(first)], [first, last]
        for bad in self.bads:
            if isinstance(bad.value, bytes):
                parts.append(bad.value)
                continue
            event = world.event(**bad.value)
            parts.append(orjson.dumps(event))
            if bad.code is None:
                taken.append(event)
            elif given := event.get("event_id"):  # the answer does not show one that is itself at fault
                world.refused.add(str(given))
        parts.append(orjson.dumps(last))
        answer = world.post(b"[" + b",".join(parts) + b"]")
        assert answer.status_code == 202, answer.text
        document = answer.json()
        found = {error["index"]: (error["code"], error["field"]) for error in document["errors"]}
        for index, bad in enumerate(self.bads, 1):
            shown = str(bad.value)[:200]
            assert found.get(index, (None, None))[0] == bad.code, (shown, found.get(index))
            if bad.field is not None:
                assert found[index][1] == bad.field, shown
        refused = sum(bad.code is not None for bad in self.bads)
        assert (document["accepted"], document["rejected"]) == (len(self.bads) + 2 - refused, refused)
        world.keep(*taken)


@dataclass(frozen=True)
class Whole:
    """A request that is refused as a whole."""

    number: int
    name: str
    body: bytes | Callable[[World], bytes]
    status: int
    code: str
    content_type: str | None = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    grows: int = GROWTH_BYTES
    how = "client: a whole request"

    def run(self, world: World) -> None:
        body = self.body(world) if callable(self.body) else self.body
        answer = world.post(body, self.content_type, headers=self.headers)
        assert (answer.status_code, answer.json()["code"]) == (self.status, self.code), answer.text[:500]


@dataclass(frozen=True)
class Wire:
    """Bytes on a raw socket. statuses : what each answer on the connection may be, one at least; closes :
    whether the server must end it. Nothing sent this way may be taken for a request of its own (no 2xx)."""

    number: int
    name: str
    parts: Callable[[World], tuple[bytes, ...]]
    statuses: frozenset[int]
    closes: bool = True
    pause: float = 0.0
    shut: bool = False
    grows: int = GROWTH_BYTES
    how = "raw socket"

    def run(self, world: World) -> None:
        reply = world.talk(*self.parts(world), pause=self.pause, shut=self.shut)
        assert set(reply.statuses) <= self.statuses, reply.raw[:600]
        assert reply.statuses, "closed without a word" if reply.closed else "no answer, and it stays open"
        assert reply.seconds < patience(), f"{reply.seconds:.1f} s"
        if self.closes:
            assert reply.closed, reply.raw[:300]
        if reply.statuses[-1] >= 400:
            assert PROBLEM.encode() in reply.raw, reply.raw[:300]
            world.is_problem(PROBLEM, reply.problem)


@dataclass(frozen=True)
class Record:
    """A bad record of the topic. count : rows it leaves in `quarantine` with its offset."""

    value: bytes | Callable[[World], bytes] | None
    headers: Mapping[str, bytes | None] | None = None
    key: bytes | None = b"440704001001"
    reason: str | None = "MALFORMED"
    count: int = 1


@dataclass(frozen=True)
class Records:
    """Bad records between two sound ones in one partition: each is quarantined at its offset, the sound ones
    are stored, the partition goes on, and the worker stays as small as it was."""

    number: int
    name: str
    bads: tuple[Record, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    how = "Kafka: one partition, a sound record before and after"
    grows = GROWTH_BYTES

    def run(self, world: World) -> None:
        first, last = world.event(), world.event()
        headers = {"content-type": b"application/x-ndjson"}
        bads = [bad.value(world) if callable(bad.value) else bad.value for bad in self.bads]
        with world.worker_stays_small(len(bads)):
            partition, offsets = world.produce(
                [
                    (orjson.dumps(first), headers, b"440704001001"),
                    *((value, bad.headers, bad.key) for value, bad in zip(bads, self.bads, strict=True)),
                    (orjson.dumps(last), headers, b"440704001001"),
                ],
                **self.options,
            )
            for event in (first, last):
                world.wait_for(event["event_id"])
        world.keep(first, last)
        rows = world.rows(
            "SELECT _off, reason, count() FROM quarantine WHERE _part = {part:UInt16} AND "
            "_off BETWEEN {lo:UInt64} AND {hi:UInt64} AND _inc = (SELECT max(inc) FROM incarnations) "
            "GROUP BY _off, reason",
            part=partition,
            lo=offsets[0],
            hi=offsets[-1],
        )
        found = {int(offset): (reason, int(count)) for offset, reason, count in rows}
        for offset, bad, value in zip(offsets[1:-1], self.bads, bads, strict=True):
            expected = None if bad.reason is None else (bad.reason, bad.count)
            assert found.get(offset) == expected, (str(value)[:100], found.get(offset))


@dataclass(frozen=True)
class Scenario:
    """A behaviour that needs more than one request, or a look behind: `play` is written out in `events`,
    `beyond`, `callers` or `files`."""

    number: int
    name: str
    how: str
    play: Callable[[World], None]
    grows: int = GROWTH_BYTES

    def run(self, world: World) -> None:
        self.play(world)
