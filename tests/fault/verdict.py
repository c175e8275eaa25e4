"""The one oracle of all fault tests: the client's ledger against what ClickHouse holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from clickhouse_connect.driver.client import Client

from tests.fault.load import REJECTED_CASE, SOURCE, STEPS, Ledger

OUTCOME_TABLES = ("events", "rejections", "duplicates", "quarantine")


@dataclass(frozen=True)
class Verdict:
    """Everything but the first three must be 0.

    lost : answered 2xx, not stored. dup : identities stored more than once. twice : positions stored more
    than once (before the tables replace them). phantom : stored, never sent. agg : cases whose folded state
    is not that of their stored events, in `cases` or in a fold on demand. quarantined : rows.
    """

    sent: int
    acked: int
    stored: int
    lost: int
    dup: int
    twice: int
    phantom: int
    agg: int
    quarantined: int

    @property
    def zeros(self) -> bool:
        return not (self.lost or self.dup or self.twice or self.phantom or self.agg or self.quarantined)

    @property
    def told(self) -> str:
        """What should be 0 and is not."""
        counted = list(asdict(self).items())[3:]
        return " ".join(f"{name}={value}" for name, value in counted if value)

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in asdict(self).items())


def judge(
    ledger: Ledger,
    query: Callable[[str], Any],
    *,
    sources: tuple[str, ...] = (SOURCE,),
    unknown_grids: bool = False,
    fold: bool = True,
) -> Verdict:
    """Compare. query : runs SQL in the database of the test, gives rows.

    The identities of sources other than `sources` are not looked at.
    unknown_grids : no reference data are loaded, so that every report is rejected. fold : also fold every
    case on demand, which is dear; without it agg looks at the stored states only.
    """
    of = f"WHERE source IN ({', '.join(map(repr, sources))})"
    kept = " UNION ALL ".join(
        f"SELECT event_id, case_id, event_type FROM {t} {of}" for t in ("events", "rejections")
    )
    rows = query(f"SELECT event_id, count(), any(case_id), any(event_type) FROM ({kept}) GROUP BY event_id")
    stored = {event_id: (copies, case, kind) for event_id, copies, case, kind in rows}
    positions = " UNION ALL ".join(f"SELECT _inc, _part, _off, _idx FROM {t}" for t in OUTCOME_TABLES)
    again = f"SELECT count() - uniqExact(_inc, _part, _off, _idx) FROM ({positions})"
    states = dict(query("SELECT case_id, state FROM case_current"))
    folded = dict(query("SELECT case_id, state FROM case_as_of(as_of = now64(3, 'UTC'))")) if fold else states
    expected = _states(((case, kind) for _, case, kind in stored.values()), rejected=unknown_grids)
    wrong = {case for case in expected.keys() | states.keys() if states.get(case) != expected.get(case)}
    wrong |= {case for case in expected if folded.get(case) != expected[case]}
    return Verdict(
        sent=len(ledger.sent),
        acked=len(ledger.acked),
        stored=len(stored),
        lost=len(ledger.acked - stored.keys()),
        dup=sum(copies - 1 for copies, _, _ in stored.values()),
        twice=int(query(again)[0][0]),
        phantom=len(stored.keys() - ledger.sent.keys()),
        agg=len(wrong),
        quarantined=int(query("SELECT count() FROM quarantine")[0][0]),
    )


def _states(stored: Iterable[tuple[str, str]], *, rejected: bool) -> dict[str, str]:
    """case -> state: each step of `STEPS` is legal only right after the one before it."""
    kinds: dict[str, set[str]] = {}
    for case, kind in stored:
        kinds.setdefault(case, set()).add(kind)
    found = {}
    for case, have in kinds.items():
        reached = ""
        for step in STEPS:
            if step not in have:
                break
            reached = step
        if reached and (rejected or case.startswith(REJECTED_CASE)):
            reached = "REJECTED"
        found[case] = "ADMITTED" if reached == "REPORTED" else reached
    return found


def in_database(client: Client) -> Callable[[str], Any]:
    return lambda sql: client.query(sql).result_rows
