"""The oracle of the fault tests can fail: what it compares is made wrong, one thing at a time."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fault import verdict
from tests.fault.load import REJECTED_CASE
from tests.fault.system import System
from tests.fault.verdict import judge


@pytest.mark.parametrize("bootstrap", ["embedded"], indirect=True)  # the broker has no part in it
def test_the_oracle_sees_what_was_not_stored_as_it_was_sent(
    town: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    town.start_gateway()
    town.start_worker()
    town.start_load(copies=0.5)
    town.until_stored(300)
    town.drained()
    right = town.verdict()
    assert right.zeros, right
    assert right.acked == right.stored > 300
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
