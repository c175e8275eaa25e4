"""What a load test posts: bodies serialised before the clock starts, with ids that no pass repeats."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from typing import Final

from benchmarks.workload import NO_GRID, NO_MATTER

#: Ids in the file and texts of reports carry this mark; every pass over the file replaces it, so that no id
#: is sent twice, and no report either.
MARK: Final = b"pass00000."
#: `bad-data`: one line in five is broken, in turn in each of these ways.
BAD_SHARE: Final = 0.2
STORM_REPORTS: Final = 1_000
#: `reconnect`: how old what a handset kept may be.
BACKLOG: Final = timedelta(hours=6)
_CITY: Final = timezone(timedelta(hours=8))


_REFUSED: Final = re.compile(
    rb'"matter_code":"%s"|"grid_code":"\d{12}%s"' % (NO_MATTER.encode(), NO_GRID.encode())
)
_ID: Final = re.compile(rb'"event_id":"([^"]*)"')


def running_outcomes(bodies: Iterable[list[bytes]]) -> list[dict[str, int]]:
    """What becomes of the events of the first 0, 1, 2 … bodies of the workload, as the service counts."""
    seen: set[bytes] = set()
    counted: Counter[str] = Counter(dict.fromkeys(("admitted", "recorded", "rejected", "duplicate"), 0))
    found = [dict(counted)]
    for lines in bodies:
        for line in lines:
            match = _ID.search(line)
            assert match is not None
            if match[1] in seen:
                outcome = "duplicate"
            elif _REFUSED.search(line):
                outcome = "rejected"
            else:
                outcome = "admitted" if b'"event_type":"REPORTED"' in line else "recorded"
            seen.add(match[1])
            counted[outcome] += 1
        found.append(dict(counted))
    return found


def outcomes_of(requests: int, running: list[dict[str, int]]) -> Counter[str]:
    """What becomes of so many requests, pass after pass over the bodies."""
    passes, more = divmod(requests, len(running) - 1)
    return Counter({name: passes * running[-1][name] + running[more][name] for name in running[-1]})


@dataclass(frozen=True)
class Body:
    """One request: NDJSON of `events` lines, of which the contract refuses `bad`.

    outcomes : what must become of the others when every body before this one arrived.
    """

    data: bytes
    events: int
    bad: int = 0
    outcomes: Mapping[str, int] = field(default_factory=dict)


class Batches:
    """The file cut into bodies of `size` events."""

    def __init__(self, path: Path, size: int, scenario: str) -> None:
        lines = path.read_bytes().splitlines()
        self.scenario = scenario
        if scenario == "reconnect":
            lines = aged(lines, datetime.now(UTC))
        self.cuts = [lines[at : at + size] for at in range(0, len(lines), size)]
        broken = range(4, size, 5) if scenario == "bad-data" else range(0)
        good = [[line for at, line in enumerate(cut) if at not in broken] for cut in self.cuts]
        self.bad = [len(cut) - len(kept) for cut, kept in zip(self.cuts, good, strict=True)]
        self.outcomes = [
            {name: after[name] - before[name] for name in after}
            for before, after in pairwise(running_outcomes(good))
        ]
        self.cuts = [
            [spoilt(line, at // 5) if at in broken else line for at, line in enumerate(cut)]
            for cut in self.cuts
        ]
        self.bodies = [b"\n".join(cut) for cut in self.cuts]
        self.taken = 0
        self.storm = storm_bodies(lines) if scenario == "storm" else []

    def take(self) -> Body:
        """The next body. In `replay` every body comes twice in a row, the second time as a repetition."""
        number = self.taken // 2 if self.scenario == "replay" else self.taken
        repeats = self.scenario == "replay" and self.taken % 2 == 1
        self.taken += 1
        passes, at = divmod(number, len(self.bodies))
        data = self.bodies[at].replace(MARK, b"pass%05d." % passes)
        events = len(self.cuts[at])
        return Body(data, events, self.bad[at], {"duplicate": events} if repeats else self.outcomes[at])


def aged(lines: list[bytes], now: datetime) -> list[bytes]:
    """The lines as a backlog: they occurred one after the other in the last six hours; what stands twice is
    the same both times."""
    found: dict[bytes, bytes] = {}
    for number, line in enumerate(lines):
        if line not in found:
            at = now - BACKLOG * (1 - number / len(lines))
            text = at.astimezone(_CITY).isoformat(timespec="milliseconds").encode()
            found[line] = re.sub(rb'"occurred_at":"[^"]*"', b'"occurred_at":"%s"' % text, line)
    return [found[line] for line in lines]


def spoilt(line: bytes, number: int) -> bytes:
    """The line with one fault that the contract names."""
    ways = (
        lambda text: text[: len(text) // 2],  # cut off
        lambda text: text.replace(b'"event_type":"', b'"event_type":"NO_'),
        lambda text: re.sub(rb'"occurred_at":"[^"]*"', b'"occurred_at":"yesterday"', text),
        lambda text: text.replace(b'"channel":', b'"chanel":'),
        lambda text: re.sub(rb'"grid_code":"[^"]*"', b'"grid_code":"44"', text),
    )
    return ways[number % len(ways)](line)


def storm_bodies(lines: list[bytes]) -> list[Body]:
    """One place reported a thousand times: the same report by a thousand reporters, one a request."""
    # of a channel that anybody may report by, or nobody but the grid's own workers would be admitted
    public = (b'"channel":"hotline_12345"', b'"channel":"yueshengshi"')
    model = next(
        line
        for line in lines
        if b'"REPORTED"' in line and any(name in line for name in public) and not _REFUSED.search(line)
    )
    found = []
    for number in range(STORM_REPORTS):
        data = re.sub(rb'"(event|case)_id":"[^"]*"', rb'"\1_id":"storm.\1-%04d"' % number, model)
        data = re.sub(rb'"key":"[^"]*"', b'"key":"storm.citizen-%04d"' % number, data)
        data = data.replace(b'"type":"full_time"', b'"type":"citizen"')
        found.append(Body(data, 1, outcomes={"admitted": 1}))
    return found
