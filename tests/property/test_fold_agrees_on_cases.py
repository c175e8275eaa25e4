"""The database's case fold gives exactly the oracle's states, however the events arrived."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from clickhouse_connect.driver.client import Client
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pipeline.read.cases import case as told
from pipeline.read.times import instant
from pipeline.store.migrate import migrate
from tests.oracle.fold import Case, fold_all
from tests.property.stored import arrive
from tests.property.strategies import SPAN, START, Row, event_set

DATABASE: Final = "test_fold_agrees_on_cases"

#: Column of the database → value of the oracle's case.
SAME: Final = (
    "found_at", "reported_at", "admitted_at", "rejected_at", "accepted_at", "first_dispatched_at",
    "last_dispatched_at", "first_signed_at", "returned_at", "arrived_at", "first_action_at", "escalated_at",
    "resolved_at", "first_closed_at", "closed_at", "feedback_at", "reopened_at", "archived_at", "voided_at",
    "first_response_at", "response_due_at", "due_at", "report_count", "merged_count", "event_count",
    "accepted_count", "dispatched_count", "returned_count", "extended_count", "escalated_count",
    "resolved_count", "rework_count", "reopened_count", "rating", "evidence_pending",
    "resolved_without_evidence", "late_count", "merged_at", "department", "duplicate_case", "is_admitted",
    "is_counted", "is_closed", "closed_count",
)  # fmt: skip


def expected(case: Case) -> dict[str, Any]:
    opening = case.opening
    return {name: getattr(case, name) for name in SAME} | {
        "case_id": case.case_id,
        "state": case.state,
        "orphan": case.orphan,
        "level": case.level,
        "primary_case_id": case.primary_case_id or case.duplicate_of_case_id,
        "rating_count": len(case.ratings),
        "satisfied_count": sum(rating >= 4 for rating in case.ratings),
        "illegal_count": len(case.illegal),
        "illegal_ids": case.illegal,
        "grid_code": opening.grid_code if opening else "",
        "channel": opening.channel if opening else "",
        "matter_code": opening.matter_code if opening else None,
        "category": opening.category if opening else None,
        "report_source": opening.source if opening else "",
        "report_event_id": opening.event_id if opening else "",
    }


def utc(value: Any) -> Any:
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) and value.tzinfo is None else value


def stored_cases(client: Client, view: str, columns: list[str]) -> dict[str, dict[str, Any]]:
    rows = client.query(f"SELECT {', '.join(columns)} FROM {view}").named_results()
    return {row["case_id"]: {name: utc(value) for name, value in row.items()} for row in rows}


def differences(found: dict[str, dict[str, Any]], wanted: dict[str, dict[str, Any]]) -> list[str]:
    """One line per case and field that differ: short enough to read when a test fails."""
    lines = [f"{case_id}: only in the database" for case_id in found.keys() - wanted.keys()]
    lines += [f"{case_id}: only in the oracle" for case_id in wanted.keys() - found.keys()]
    lines += [
        f"{case_id}.{name}: database {found[case_id][name]!r}, oracle {value!r}"
        for case_id in sorted(found.keys() & wanted.keys())
        for name, value in wanted[case_id].items()
        if found[case_id][name] != value
    ]
    return lines


def check_cases(client: Client, rows: list[Row], instants: list[datetime]) -> None:
    events = [row.event for row in rows if row.is_case_event]
    for as_of in instants:
        wanted = {case_id: expected(case) for case_id, case in fold_all(events, as_of).items()}
        view = f"case_as_of(as_of = '{as_of:%Y-%m-%d %H:%M:%S.%f}')"
        columns = list(expected(Case("any")))
        assert differences(stored_cases(client, view, columns), wanted) == []


@pytest.fixture(scope="module")
def database(open_client: Client) -> Iterator[Client]:
    open_client.command(f"DROP DATABASE IF EXISTS {DATABASE}")
    migrate(open_client, DATABASE)
    yield open_client
    open_client.command(f"DROP DATABASE {DATABASE}")
    open_client.database = "default"


# Every difference is told by case and field, so shrinking over a database would cost more than it explains.
@settings(
    max_examples=6,
    deadline=None,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(rng=st.randoms(use_true_random=False), cases=st.integers(1, 16))
def test_any_arrival_gives_the_states_of_the_oracle(database: Client, rng: random.Random, cases: int) -> None:
    rows = event_set(rng, cases)
    arrive(database, rng, rows)
    at_an_event = rng.choice([row.event.occurred_at for row in rows] or [START])
    check_cases(database, rows, [at_an_event - timedelta(milliseconds=rng.randint(0, 1)), START + 30 * SPAN])


@pytest.mark.parametrize("seed", [1])
def test_thousands_of_cases_give_the_states_of_the_oracle(database: Client, seed: int) -> None:
    rng = random.Random(seed)
    rows = event_set(rng, 1_000)
    arrive(database, rng, rows)
    events = [row.event for row in rows if row.is_case_event]
    instants = [START + SPAN * rng.uniform(0, 2) for _ in range(3)]
    check_cases(database, rows, [at.replace(microsecond=0) for at in instants])
    current = stored_cases(database, "case_current", list(expected(Case("any"))))
    wanted = {case_id: expected(case) for case_id, case in fold_all(events, datetime.now(UTC)).items()}
    assert differences(current, wanted) == []


def test_cases_as_the_api_tells_them_are_those_of_the_oracle(database: Client) -> None:
    """Told by their events alone: no state is stored here."""
    rng = random.Random(2)
    rows = event_set(rng, 12)
    arrive(database, rng, rows)
    database.command("TRUNCATE TABLE cases")
    events = [row.event for row in rows if row.is_case_event]
    instant_of_one = rng.choice(events).occurred_at
    wanted = fold_all(events, instant_of_one)
    assert len(wanted) > 6
    for case_id, folded in wanted.items():
        found = told(database, case_id, now=instant_of_one)
        assert found is not None
        assert (found["state"] or "", found["orphan"]) == (folded.state, folded.orphan), case_id
        assert found["timestamps"] == {n: instant(getattr(folded, n)) for n in found["timestamps"]}, case_id
        assert found["limits"]["due_at"] == instant(folded.due_at), case_id
        counts = {name: number for name, number in found["counts"].items() if name != "merged_count"}
        illegal = {"illegal_count": len(folded.illegal)}
        assert counts == {n: getattr(folded, n) for n in counts if n not in illegal} | illegal, case_id
