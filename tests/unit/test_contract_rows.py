"""Under which key an actor's events are stored: whoever asks to be erased must be found by their number."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, get_args

import pytest

from pipeline.contract.event import Actor, ActorType, Event
from pipeline.contract.privacy import Privacy
from pipeline.contract.rows import canonical_attributes, to_frame
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
