"""What the fault tests did, a row each: written to a file as they end, printed as a table at the end of all.

A pytest plugin, loaded by `tests/conftest.py`, since with several test processes the table is printed by one
that runs no test. `python -m tests.fault.summary FILE…` prints the rows of earlier runs.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Generator, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from tests.fault.verdict import Verdict

ROOT: Final = Path(__file__).parents[2]
#: Names the file of this session, for its processes.
_FILE: Final = "FAULT_ROWS"
_OUTCOME: Final = pytest.StashKey[str]()


@dataclass
class Row:
    """One test that ran. events : sent, answered 2xx, stored; zeros : of the oracle, or what was not zero.
    busy : `share()` at its end, by which the limits of its waits were multiplied; 0 where it is not known."""

    test: str
    broker: str
    outcome: str
    rounds: int = 1
    kills: int = 0
    events: tuple[int, int, int] | None = None
    zeros: str = ""
    seconds: float = 0.0
    seed: int = 0
    busy: float = 0.0
    commit: str = ""
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def fault(self) -> str:
        """Number of the fault, or of the hostile input; the name where it has none."""
        found = re.match(r"test_((?:\d+_)+)", self.test)
        return ", ".join(found[1].strip("_").split("_")) if found else "–"


def broker_of(nodeid: str) -> str:
    """Tests that need a real Kafka say so in their names, or in those of their parameters."""
    return "kafka" if "kafka" in nodeid.rpartition("::")[2] else "embedded"


def row_of(
    test: str,
    broker: str,
    outcome: str,
    figures: dict[str, Any],
    *,
    seconds: float,
    seed: int,
    busy: float = 0.0,
) -> Row:
    """What a test left in `report`: its verdict, rounds and kills have columns of their own."""
    figures = dict(figures)
    row = Row(
        test, broker, outcome, seconds=round(seconds, 1), seed=seed, commit=os.environ.get("FAULT_COMMIT", "")
    )
    row.busy = round(busy, 1)
    row.rounds, row.kills = int(figures.pop("rounds", 1)), int(figures.pop("kills", 0))
    verdict = figures.pop("verdict", None)
    if isinstance(verdict, Verdict):
        row.events = (verdict.sent, verdict.acked, verdict.stored)
        row.zeros = "all 0" if verdict.zeros else verdict.told
    row.more = {name: str(value) for name, value in figures.items()}
    return row


def table(rows: Iterable[Row]) -> list[str]:
    """Lines of Markdown, by fault; the last one sums up. Rows of several commits name theirs."""
    rows = sorted(rows, key=lambda row: (_number(row.fault), row.test, row.broker))
    several = len({row.commit for row in rows}) > 1
    columns = "fault | test | broker | rounds | kills | events sent, answered, stored | zeros | seconds"
    lines = [
        f"| {columns} | seed | busy | more |",
        "|---|---|---|--:|--:|---|---|--:|--:|--:|---|",
    ]
    for row in rows:
        told = "" if row.events is None else ", ".join(f"{count:,}" for count in row.events)
        if row.events and len(set(row.events)) == 1:
            told = f"{row.events[0]:,} all"
        zeros = row.zeros if row.outcome == "passed" else f"{row.outcome.upper()} {row.zeros}"
        more = ", ".join(f"{name} {value}" for name, value in row.more.items())
        if several:
            more = f"`{row.commit}` {more}"
        lines.append(
            f"| {row.fault} | {_short(row.test)} | {row.broker} | {row.rounds} | {row.kills} | {told} "
            f"| {zeros} | {row.seconds:.0f} | {row.seed} | {row.busy:.1f} | {more} |"
        )
    sent = sum(row.events[0] for row in rows if row.events)
    failed, skipped = (sum(row.outcome == word for row in rows) for word in ("failed", "skipped"))
    told = (
        f"{len(rows)} fault tests, {failed} failed, {skipped} skipped; "
        f"{sum(row.rounds for row in rows):,} rounds, {sum(row.kills for row in rows):,} kills, "
        f"{sent:,} events sent"
    )
    if scraped := [row.more for row in rows if row.more.get("scrapes")]:
        told += (
            f"; {sum(int(more['scrapes']) for more in scraped):,} scrapes meanwhile, the slowest after "
            f"{max(float(more['scrape_slowest']) for more in scraped):.2f} s on an idle machine"
        )
    lines += ["", told]
    return lines


def _number(fault: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", fault)) or (1_000,)


def _short(test: str) -> str:
    """Without what other columns say."""
    name = re.sub(r"^test_(\d+_)*", "", test)
    name = re.sub(r"\[(embedded|kafka)-?", "[", name)
    return name.replace("[]", "").replace("_", " ")


def write(row: Row) -> None:
    """One line of the session's file; other test processes write there, too."""
    path = Path(os.environ[_FILE])
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        file.write(json.dumps(asdict(row)).encode() + b"\n")


def read(path: Path) -> list[Row]:
    """Rows of a file, of a test that ran several times the last one; none if nothing was written."""
    if not path.exists():
        return []
    rows = [Row(**json.loads(line)) for line in path.read_text().splitlines()]
    for row in rows:
        row.events = None if row.events is None else (row.events[0], row.events[1], row.events[2])
    return list({row.test: row for row in rows}.values())


# --- pytest


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # its processes inherit the names
        os.environ[_FILE] = str(
            ROOT / "var" / "fault" / f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}.jsonl"
        )
        asked = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
        found = subprocess.run(asked, capture_output=True, text=True, check=False)
        os.environ["FAULT_COMMIT"] = found.stdout.strip()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    found = yield
    if call.when == "call":
        item.stash[_OUTCOME] = found.outcome
    return found


def outcome(item: pytest.Item) -> str:
    """`passed`, `failed` or `skipped`, once the test has run."""
    return item.stash.get(_OUTCOME, "failed")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    rows = read(Path(os.environ[_FILE]))
    if rows:
        terminalreporter.section("fault tests")
        for line in table(rows):
            terminalreporter.write_line(line)


if __name__ == "__main__":
    together = {row.test: row for name in sys.argv[1:] for row in read(Path(name))}
    print("\n".join(table(together.values())))
