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
#: With these no merge of the engine's own choice is small enough, and no insert is refused for the parts that
#: are left. `OPTIMIZE … FINAL` merges all the same. Settings of a table stand over a restart of the store.
_NO_MERGES: Final = {
    "max_bytes_to_merge_at_max_space_in_pool": 1,
    "max_bytes_to_merge_at_min_space_in_pool": 1,
    "parts_to_delay_insert": 100_000,
    "parts_to_throw_insert": 100_000,
}
#: Before and after everything that a test sends or whose clock it sets.
_DAY: Final = timedelta(days=1)


@dataclass(frozen=True)
class Verdict:
    """Everything but the first three must be 0.

    lost : answered 2xx, not stored. dup : identities stored more than once. twice : positions stored more
    than once; exact where `keep_copies` was asked for, since merges replace one copy by the other. phantom :
    stored and never sent, or sent with another source, case or type. agg : cases whose folded state is not
    that of their events as they were sent, in `cases` or in a fold on demand. kpi : figures of the city's
    row, in both views, that are not those of these events. quarantined : rows.
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
    now: datetime | None = None,
) -> Verdict:
    """Compare. client : of the database of the test.

    The identities of sources other than `sources` are not looked at.
    unknown_grids : no reference data are loaded, so that every report is rejected. fold : also fold every
    case on demand and ask for the figures, which is dear; without it agg looks at the stored states only.
    now : of the clock that gateway and worker go by (default: ours).
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
    now = now or datetime.now(UTC)
    as_of = f"toDateTime64('{now:%F %T.%f}', 3, 'UTC')"
    folded = dict(query(f"SELECT case_id, state FROM case_as_of(as_of = {as_of})")) if fold else states
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
        kpi=len(_wrong_figures(client, cases, unknown_grids, now)) if fold else 0,
        quarantined=int(query("SELECT count() FROM quarantine")[0][0]),
    )


def keep_copies(client: Client) -> None:
    """From now on no row of the outcome tables is replaced by its copy. Parts are not merged any more, so
    that reads get slower: 0.2 s for a column of 1,500 parts. client : of the database."""
    settings = ", ".join(f"{name} = {value}" for name, value in _NO_MERGES.items())
    for table in OUTCOME_TABLES:
        client.command(f"ALTER TABLE {table} MODIFY SETTING {settings}")


def merge_again(client: Client) -> None:
    """Undo `keep_copies`."""
    for table in OUTCOME_TABLES:
        client.command(f"ALTER TABLE {table} RESET SETTING {', '.join(_NO_MERGES)}")


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


def _wrong_figures(
    client: Client, cases: dict[str, set[str]], unknown_grids: bool, now: datetime
) -> list[str]:
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
    wrong: list[str] = []
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
