"""Which parts of a table have not been read yet, so that what is held follows the table part by part.

An insert makes a part whose number is above all others, given to it under the lock under which it becomes
visible. A merge makes one part of its neighbours, over their numbers. A change in place (mutation) numbers
the parts that it rewrote. So what is new lies in parts that reach beyond the last number seen, and what was
read is no longer what is stored when a part of it is gone, or carries a mutation that it did not carry.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from clickhouse_connect.driver.client import Client

#: Engines whose parts are numbered as they become visible: not those that replicas share.
_ENGINES: Final = frozenset({"MergeTree", "ReplacingMergeTree"})
#: Spans of time that a condition names; nearer ones are one.
_MOST_SPANS: Final = 20
_NEAR_SECONDS: Final = 10


class Part(NamedTuple):
    """name; partition; numbers of the first and last insert in it; mutation, 0: none; rows; earliest and
    latest second by which the table is partitioned, 0 where it is not."""

    name: str
    partition: str
    first: int
    last: int
    mutation: int
    rows: int
    earliest: int
    latest: int

    @property
    def version(self) -> int:
        """Mutations up to this number are in its rows: an insert is numbered after those that do not concern
        it."""
        return max(self.mutation, self.first)

    def holds(self, other: Part) -> bool:
        return self.partition == other.partition and self.first <= other.first and other.last <= self.last


def active_parts(client: Client, tables: Sequence[str]) -> dict[str, list[Part]]:
    """By table."""
    found = client.query(
        # a part's data version is that of its first insert, or of the last mutation
        "SELECT table, name, partition_id, min_block_number, max_block_number, "
        "if(data_version = min_block_number, 0, data_version), rows, "
        "toUnixTimestamp(min_time), toUnixTimestamp(max_time) FROM system.parts "
        "WHERE database = currentDatabase() AND active AND table IN {tables:Array(String)}",
        parameters={"tables": list(tables)},
    )
    parts: dict[str, list[Part]] = {table: [] for table in tables}
    for table, *part in found.result_rows:
        parts[table].append(Part(*part))
    return parts


def received(parts: Sequence[Part]) -> str:
    """SQL condition on `ingested_at` that every row of these parts meets: the engine leaves parts out by it.
    Of tables with a column `_part` it cannot be asked for parts by name."""
    spans: list[tuple[int, int]] = []
    for begin, end in sorted((part.earliest, part.latest) for part in parts):
        if spans and begin <= spans[-1][1] + _NEAR_SECONDS:
            spans[-1] = spans[-1][0], max(end, spans[-1][1])
        else:
            spans.append((begin, end))
    if len(spans) > _MOST_SPANS:
        spans = [(spans[0][0], spans[-1][1])]
    return " OR ".join(
        f"(ingested_at >= fromUnixTimestamp64Milli({begin * 1_000}, 'UTC') "
        f"AND ingested_at < fromUnixTimestamp64Milli({end * 1_000 + 1_000}, 'UTC'))"
        for begin, end in spans
    )


def tables(client: Client, names: Sequence[str]) -> tuple[str, ...] | None:
    """What tells these tables from others of their names; None where their parts cannot be followed."""
    found = client.query(
        "SELECT name, engine, toString(uuid) FROM system.tables "
        "WHERE database = currentDatabase() AND name IN {names:Array(String)} ORDER BY name",
        parameters={"names": list(names)},
    ).result_rows
    if len(found) < len(names) or any(engine not in _ENGINES for _, engine, _ in found):
        return None
    return tuple(str(uuid) for _, _, uuid in found)


@dataclass
class Followed:
    """What of one table has been read."""

    _seen: list[Part] = field(default_factory=list)
    #: By partition: inserts are numbered per table, merges stay within a partition.
    _last: dict[str, int] = field(default_factory=dict)

    def is_still_there(self, parts: Collection[Part]) -> bool:
        """Whether what was read is what is stored: no part is gone or was changed in place."""
        named = {part.name for part in parts}
        return all(
            any(part.holds(seen) and part.mutation <= seen.version for part in parts)
            for seen in self._seen
            if seen.name not in named
        )

    def unread(self, parts: Iterable[Part]) -> list[Part]:
        return [part for part in parts if part.last > self._last.get(part.partition, -1)]

    def in_place_of(self, asked: Sequence[Part], parts: Collection[Part]) -> list[Part]:
        """Those of `parts` that took the place of one of `asked`, which may have been gone when read."""
        names = {part.name for part in parts}
        gone = [part for part in asked if part.name not in names]
        return [part for part in parts if any(part.holds(other) for other in gone)] if gone else []

    def note(self, read: Iterable[Part], parts: Collection[Part]) -> bool:
        """`read` have been read, and `parts` are there after it. Returns `is_still_there`."""
        for part in read:
            self._seen.append(part)
            self._last[part.partition] = max(part.last, self._last.get(part.partition, -1))
        if not self.is_still_there(parts):
            return False
        now = [part for part in parts if part.last <= self._last.get(part.partition, -1)]
        # what went into a part that is not read yet is still looked after
        self._seen = now + [seen for seen in self._seen if not any(part.holds(seen) for part in now)]
        return True
