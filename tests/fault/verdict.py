"""The one oracle of all fault tests: the client's ledger against what ClickHouse holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from clickhouse_connect.driver.client import Client

from pipeline.read.kpi import kpi
from pipeline.store.kpi_views import CITY
from tests.fault.load import REJECTED_CASE, SOURCE, STEPS, Ledger

OUTCOME_TABLES = ("events", "rejections", "duplicates", "quarantine")
#: Before and after everything that a test sends or whose clock it sets.
_DAY: Final = timedelta(days=1)


@dataclass(frozen=True)
class Verdict:
    """Everything but the first three must be 0.

    lost : answered 2xx, not stored. dup : identities stored more than once. twice : positions stored more
    than once (before the tables replace them). phantom : stored and never sent, or sent with another source,
    case or type. agg : cases whose folded state is not that of their events as they were sent, in `cases` or
    in a fold on demand. kpi : figures of the city's row, in both views, that are not those of these events.
    quarantined : rows.
    """

    sent: int
    acked: int
    stored: int
    lost: int
    dup: int
    twice: int
    phantom: int
    agg: int
    kpi: int
    quarantined: int

    @property
    def zeros(self) -> bool:
        return not any(list(asdict(self).values())[3:])

    @property
    def told(self) -> str:
        """What should be 0 and is not."""
        counted = list(asdict(self).items())[3:]
        return " ".join(f"{name}={value}" for name, value in counted if value)

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in asdict(self).items())


def judge(
    ledger: Ledger,
    client: Client,
    *,
    sources: tuple[str, ...] = (SOURCE,),
    unknown_grids: bool = False,
    fold: bool = True,
) -> Verdict:
    """Compare. client : of the database of the test.

    The identities of sources other than `sources` are not looked at.
    unknown_grids : no reference data are loaded, so that every report is rejected. fold : also fold every
    case on demand and ask for the figures, which is dear; without it agg looks at the stored states only.
    """
    query = in_database(client)
    of = f"WHERE source IN ({', '.join(map(repr, sources))})"
    kept = " UNION ALL ".join(
        f"SELECT source, event_id, case_id, event_type FROM {t} {of}" for t in ("events", "rejections")
    )
    rows = query(f"SELECT *, count() FROM ({kept}) GROUP BY ALL")
    with ledger.lock:
        sent, acked = dict(ledger.sent), set(ledger.acked)
    identities = {(source, event_id) for source, event_id, *_ in rows}
    stored = {event_id for _, event_id in identities}
    positions = " UNION ALL ".join(f"SELECT _inc, _part, _off, _idx FROM {t}" for t in OUTCOME_TABLES)
    again = f"SELECT count() - uniqExact(_inc, _part, _off, _idx) FROM ({positions})"
    states = dict(query("SELECT case_id, state FROM case_current"))
    folded = dict(query("SELECT case_id, state FROM case_as_of(as_of = now64(3, 'UTC'))")) if fold else states
    cases = _cases(sent[event_id] for event_id in stored & sent.keys())
    expected = {case: _state(kinds, rejected=_rejected(case, unknown_grids)) for case, kinds in cases.items()}
    wrong = {case for case in expected.keys() | states.keys() if states.get(case) != expected.get(case)}
    wrong |= {case for case in expected if folded.get(case) != expected[case]}
    return Verdict(
        sent=len(sent),
        acked=len(acked),
        stored=len(stored),
        lost=len(acked - stored),
        dup=sum(copies for *_, copies in rows) - len(identities),
        twice=int(query(again)[0][0]),
        phantom=sum(_as_sent(sent.get(row[1])) != tuple(row[:4]) for row in rows),
        agg=len(wrong),
        kpi=len(_wrong_figures(client, cases, unknown_grids)) if fold else 0,
        quarantined=int(query("SELECT count() FROM quarantine")[0][0]),
    )


def _as_sent(event: dict[str, Any] | None) -> tuple[str, ...]:
    """Source, id, case and type; empty for what was never sent."""
    names = ("source", "event_id", "case_id", "event_type")
    return () if event is None else tuple(event[name] for name in names)


def _cases(events: Iterable[dict[str, Any]]) -> dict[str, set[str]]:
    """case -> types of its events."""
    found: dict[str, set[str]] = {}
    for event in events:
        found.setdefault(event["case_id"], set()).add(event["event_type"])
    return found


def _rejected(case: str, unknown_grids: bool) -> bool:
    return unknown_grids or case.startswith(REJECTED_CASE)


def _legal(kinds: set[str]) -> int:
    """How many of `STEPS` were gone: each is legal only right after the one before it."""
    return next((at for at, step in enumerate(STEPS) if step not in kinds), len(STEPS))


def _state(kinds: set[str], *, rejected: bool) -> str:
    steps = _legal(kinds)
    if steps == 0:
        return ""
    return "REJECTED" if rejected else "ADMITTED" if steps == 1 else STEPS[steps - 1]


def _wrong_figures(client: Client, cases: dict[str, set[str]], unknown_grids: bool) -> list[str]:
    """What the KPI call says of the city, and what these events say, where the two differ."""
    orphans = sum(len(kinds) for kinds in cases.values() if STEPS[0] not in kinds)
    reported = {case: kinds for case, kinds in cases.items() if STEPS[0] in kinds}
    admitted = [kinds for case, kinds in reported.items() if not _rejected(case, unknown_grids)]

    def reached(step: str) -> int:
        return sum(_legal(kinds) > STEPS.index(step) for kinds in admitted)

    both = {
        "admitted_reports": len(admitted), "rejected_reports": len(reported) - len(admitted),
        "cases": len(admitted), "closed": reached("CLOSED"), "responded": reached("SIGNED"),
        "voided": 0, "merged": 0, "orphans": orphans,
    }  # fmt: skip
    states = {
        "open": len(admitted) - reached("CLOSED"), "negative_durations": 0, "late_events": 0,
        "illegal_events": sum(len(kinds) - _legal(kinds) for kinds in admitted),
    }  # fmt: skip
    now, wrong = datetime.now(UTC), []
    for view, figures in (("cohort", both | states), ("flow", both)):
        answer = kpi(client, by="city", from_=now - _DAY, to=now + _DAY, as_of=now, view=view, names=_Names())
        [row] = answer["rows"]
        wrong += [
            f"{view}.{name} is {row[name]}, not {count}"
            for name, count in figures.items()
            if row[name] != count
        ]
    for line in wrong:
        print(line)
    return wrong


class _Names:
    """All that the KPI call asks about one city."""

    channel_kinds: Final[dict[str, str]] = {}

    def listed_keys(self, by: str) -> Sequence[str]:
        return [CITY] if by == "city" else []

    def name_zh(self, _by: str, _key: str) -> str | None:
        return None


def in_database(client: Client) -> Callable[[str], Any]:
    return lambda sql: client.query(sql).result_rows
