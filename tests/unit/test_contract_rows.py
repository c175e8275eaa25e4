"""Under which key an actor's events are stored: whoever asks to be erased must be found by their number."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import Any, get_args

import pytest

from pipeline.contract import rows
from pipeline.contract.event import Actor, ActorType, Event
from pipeline.contract.privacy import Privacy, Tries, redact
from pipeline.contract.rows import canonical_attributes, to_batch, to_frame
from pipeline.reference.schema import STAFF_KINDS
from tests.security.fakes import fake_id, fake_mobile

PRIVACY = Privacy(bytes(range(1, 33)))
ID, PHONE = fake_id(1), fake_mobile(1)
PERSON, CALLER = PRIVACY.person_key(ID), PRIVACY.phone_key(PHONE)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def keys_of(*actors: Actor) -> list[str | None]:
    events = [
        Event(
            event_id=f"e-{number}", source="12345", event_type="REPORTED", case_id="c", occurred_at=NOW,
            channel="hotline_12345", grid_code="440704001001003", actor=actor,
        )
        for number, actor in enumerate(actors)
    ]  # fmt: skip
    frame = to_frame(events, ingested_at=NOW, request_id="r", backfill=False, privacy=PRIVACY)
    keys: list[Any] = frame["actor_key"].to_list()
    return keys


@pytest.mark.parametrize("kind", get_args(ActorType))
def test_a_number_comes_before_the_key_but_of_staff(kind: Any) -> None:
    own = kind in STAFF_KINDS
    given: list[tuple[Actor, str | None]] = [
        (Actor(kind, "k-1", ID, PHONE), "k-1" if own else PERSON),
        (Actor(kind, "k-1", ID), "k-1" if own else PERSON),
        (Actor(kind, "k-1", None, PHONE), "k-1" if own else CALLER),
        (Actor(kind, "k-1"), "k-1"),
        (Actor(kind, None, ID, PHONE), PERSON),
        (Actor(kind, None, None, PHONE), CALLER),
        (Actor(kind, PHONE, ID), CALLER if own else PERSON),
        (Actor(kind), None),
    ]
    assert keys_of(*[actor for actor, _ in given]) == [key for _, key in given]
    for actor, key in given:  # alone in a block as among others
        assert keys_of(actor) == [key]


def test_attributes_are_one_whatever_their_normal_form() -> None:
    """The content hash is taken over them: a redelivery typed elsewhere is none with other content."""
    composed, decomposed = {"caf\u00e9": "na\u00efve", "n": 1}, {"cafe\u0301": "nai\u0308ve", "n": 1}
    assert (
        canonical_attributes(composed)
        == canonical_attributes(decomposed)
        == '{"caf\u00e9":"na\u00efve","n":1}'
    )


def test_what_looks_like_numbers_in_one_request_costs_the_next_one_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rows, "Tries", partial(Tries, 100))
    serial = next(n for n in map(str, range(1_000_000_000_000_001, 10**16, 10)) if redact(n) == n)

    def batch(**given: Any) -> list[tuple[str, str]]:
        events = [
            Event(
                event_id=f"e-{number}", source="12345", event_type="REPORTED", case_id="c", occurred_at=NOW,
                channel="hotline_12345", grid_code="440704001001003", actor=Actor("citizen"),
                title=f"单号 {serial}", attributes={"a": f"单号 {serial}"},
            )
            for number in range(200)
        ]  # fmt: skip
        found = to_batch(events, backfill=False, ingested_at=NOW, privacy=PRIVACY, **given)
        pairs = zip(found["title"].to_pylist(), found["attributes"].to_pylist(), strict=True)
        return list(pairs)

    one = batch(request_id="r")
    assert 0 < sum(serial in title for title, _ in one) + sum(serial in given for _, given in one) < 200
    # one event of another request among those of this one
    told = batch(request_id=["r-0", "r-1"], which=[0] * 199 + [1])
    assert sum(serial in title for title, _ in told) < 200
    assert serial in told[-1][0]
    assert serial in told[-1][1]
    # records of a topic, each of whatever source
    assert all(serial in title and serial in given for title, given in batch(request_id=None))
