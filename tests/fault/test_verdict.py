"""The oracle of the fault tests can fail: what it compares is made wrong, one thing at a time; and so is the
worker's own deduplication, under the faults that are there to test it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fault import verdict
from tests.fault.load import REJECTED_CASE
from tests.fault.system import Process, System, share
from tests.fault.test_store_outages import TOKEN
from tests.fault.verdict import OUTCOME_TABLES, judge


@pytest.mark.parametrize("bootstrap", ["embedded"], indirect=True)  # the broker has no part in it
def test_the_oracle_sees_what_was_not_stored_as_it_was_sent(
    town: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    town.start_gateway()
    town.start_worker()
    town.start_load(copies=0.5)
    town.until_stored(300)
    town.drained()
    right = judge(town.ledger, town.client)
    assert right.zeros, right
    assert right.acked == right.stored >= 300  # the number that was waited for
    sent = town.ledger.sent
    reports = [
        event
        for event in sent.values()
        if event["event_type"] == "REPORTED" and not event["case_id"].startswith(REJECTED_CASE)
    ]

    def told(changed: dict[str, dict[str, Any]]) -> str:
        monkeypatch.setattr(town.ledger, "sent", sent | changed)
        return judge(town.ledger, town.client).told

    def sent_as(event: dict[str, Any], **changes: str) -> dict[str, dict[str, Any]]:
        return {event["event_id"]: event | changes}

    one, other = reports[:2]
    swapped = sent_as(one, case_id=other["case_id"]) | sent_as(other, case_id=one["case_id"])
    assert told(swapped) == "phantom=2", "two reports are alike, but for their cases"
    assert told(sent_as(one, source="rider")) == "phantom=1"
    assert {"phantom=1", "agg=1"} < set(told(sent_as(one, event_type="ACCEPTED")).split())
    monkeypatch.setattr(town.ledger, "sent", sent)

    figures = verdict.kpi

    def one_more(*arguments: Any, **named: Any) -> dict[str, Any]:
        answer = figures(*arguments, **named)
        answer["rows"][0]["closed"] += 1
        return answer

    monkeypatch.setattr(verdict, "kpi", one_more)
    assert judge(town.ledger, town.client).told == "kpi=2", "in the cohort and in the flow"
    monkeypatch.setattr(verdict, "kpi", figures)

    # what is stored is made wrong; each for itself, and undone
    def told_of(statement: str) -> str:
        town.client.command(statement)
        return judge(town.ledger, town.client, fold=False).told

    stored = f"source = '{one['source']}' AND event_id = '{one['event_id']}'"
    columns = _columns(town, "events")
    copy = f"INSERT INTO events ({columns}) SELECT {columns} FROM events WHERE {stored}"
    delete = "DELETE FROM events WHERE"
    assert told_of(copy) == "dup=1 twice=1", "one row, stored again"
    town.client.command("OPTIMIZE TABLE events FINAL")
    assert judge(town.ledger, town.client, fold=False).told == "", (
        "merges take copies away: the tests have none"
    )
    elsewhere = columns.replace("_off", "_off + 1000000000")
    assert told_of(f"INSERT INTO events ({columns}) SELECT {elsewhere} FROM events WHERE {stored}") == "dup=1"
    assert told_of(f"{delete} {stored} AND _off >= 1000000000") == ""
    outcome = "_inc, _part, _off, _idx"
    assert (
        told_of(f"INSERT INTO quarantine ({outcome}) SELECT {outcome} FROM events WHERE {stored}")
        == "twice=1 quarantined=1"
    )
    assert told_of("TRUNCATE TABLE quarantine") == ""
    assert told_of(f"{delete} {stored}") == "lost=1 agg=1", "and its case has no report"


def _columns(town: System, table: str) -> str:
    named = (
        "SELECT name FROM system.columns WHERE database = currentDatabase() AND default_kind = '' AND table"
    )
    return ", ".join(row[0] for row in town.query(f"{named} = '{table}' ORDER BY position"))


@pytest.mark.fault
@pytest.mark.parametrize("bootstrap", ["embedded"], indirect=True)
def test_2_a_worker_that_stores_a_rebuilt_block_again_is_seen(town: System) -> None:
    """Fault 2 without both guards of a rebuilt block: its token, and that what is stored is left out."""
    town.environment["FAULT_MUTANT"] = "tokens,rebuilt"
    town.start_gateway()
    worker = town.start_worker("after:insert:events", 3)
    town.start_load()
    assert worker.wait(60 * share()) is not None, worker.tail()
    _seen_until_merged(town, town.start_worker())


@pytest.mark.fault
@pytest.mark.parametrize("bootstrap", ["embedded"], indirect=True)
def test_6_a_worker_that_repeats_under_another_token_is_seen(town: System) -> None:
    """Fault 6 without the token, the one guard there."""
    town.environment["FAULT_MUTANT"] = "tokens"
    town.start_gateway()
    worker = town.start_worker()
    town.start_load()
    town.until_stored()
    for _ in range(5):
        town.store_proxy.drop_reply_to(TOKEN + b"=")
        town.until_stored(20)
    assert town.store_proxy.dropped
    _seen_until_merged(town, worker)


def _seen_until_merged(town: System, worker: Process) -> None:
    town.until_stored(20)
    town.drained()
    found = judge(town.ledger, town.client)
    assert found.twice > 0, found
    assert worker.running, worker.tail()
    for table in OUTCOME_TABLES:
        town.client.command(f"OPTIMIZE TABLE {table} FINAL")
    assert judge(town.ledger, town.client).zeros, "nothing else tells of it, and merges hide it"
