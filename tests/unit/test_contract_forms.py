"""What is looked at by column gives the same report as the look at each value."""

from __future__ import annotations

import hmac
import unicodedata
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, get_args, get_origin

import msgspec
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.contract import parse
from pipeline.contract.event import Event, Form
from pipeline.contract.exact import exact
from pipeline.contract.faults import fault, suspects
from pipeline.contract.privacy import Privacy, clean_texts, redact
from pipeline.contract.rows import EVENT_ARROW, to_batch, to_frame
from pipeline.frames import EVENT
from tests.unit.gateway_world import SECRET, event

NOW = datetime(2026, 10, 1, tzinfo=UTC)
FULL: dict[str, Any] = {
    "submission_id": "s-1",
    "actor": {"type": "citizen", "key": "W1"},
    "persons": [{"role": "subject", "key": "P1"}],
    "photos": [{"sha256": "a" * 64}],
    "organisation": {"code": "O-1"},
    "matter_code": "PS-01",
}


def forms_in(kind: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of the texts below `kind` that have a form; a list gives its first item."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        for field in msgspec.structs.fields(kind):
            yield from forms_in(field.type, (*path, field.name))
        return
    if get_origin(kind) is Annotated and any(isinstance(note, Form) for note in get_args(kind)[1:]):
        yield path
    step = (0,) if get_origin(kind) is list else ()
    for part in get_args(kind):
        yield from forms_in(part, (*path, *step))


PATHS = sorted(set(forms_in(Event)), key=str)


def spoilt(path: Sequence[Any], value: Any) -> dict[str, Any]:
    made: Any = event(1, **orjson.loads(orjson.dumps(FULL)))
    inner = made
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return made  # type: ignore[no-any-return]


def exactly(body: bytes) -> parse.Parsed:
    return parse._parse_lines_slowly(body.split(b"\n"), parse.MAX_DEPTH)


def test_every_form_of_the_contract_is_found() -> None:
    assert len(PATHS) == 11, PATHS


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize(
    "value", ["", "a b", "x\n", "\n", "a\nb", "é", "x" * 200, "0123456789abcde?-U01", "😀"]
)
def test_a_text_without_its_form_is_refused_as_the_exact_decoder_refuses_it(
    path: Sequence[Any], value: str
) -> None:
    body = b"\n".join(orjson.dumps(one) for one in (event(0), spoilt(path, value), event(2)))
    found, wanted = parse.parse_ndjson(body), exactly(body)
    assert found.errors == wanted.errors
    assert found.events == wanted.events
    assert [error.index for error in found.errors] == [1]
    listed = parse.parse_document(orjson.dumps([orjson.loads(line) for line in body.split(b"\n")]))
    assert listed.errors == wanted.errors
    (single,) = parse.parse_document(body.split(b"\n")[1]).errors
    assert (single.code, single.field, single.message) == (
        wanted.errors[0].code,
        wanted.errors[0].field,
        wanted.errors[0].message,
    )


def test_the_exact_types_keep_name_and_fields() -> None:
    assert exact(Event).__name__ == "Event"
    assert exact(Event).__struct_fields__ == Event.__struct_fields__
    assert exact(Event) is exact(Event)


odd = st.sampled_from(
    [
        {},
        {"event_type": "EXTENDED"},
        {"event_type": "EXTENDED", "attributes": {"due_at": "2026-10-02T00:00:00Z"}},
        {"event_type": "EXTENDED", "attributes": {"due_at": "2000-01-01T00:00:00+08:00"}},
        {"attributes": {"note": "bad \u0001"}},
        {"attributes": {"bad\u0085name": 1}},
        {"attributes": {"rating": 9}},
        {"attributes": {"free": "text", "n": None}},
        {"title": "line\nbreak and \\u escape"},
        {"title": "\u0007"},
        {"description": "°C 25"},
        {"actor": {"type": "citizen", "name": "陈\u0090"}},
        {"actor": {"type": "citizen", "phone": "138\u007f00001234"}},
        {"location": {"lon": 1, "lat": 2, "crs": "wgs84", "address": "\u0000"}},
        {"organisation": {"code": ""}},
        {"organisation": {"name": " "}},
        {"organisation": {"name": "某\u0002"}},
        {"organisation": {"code": "13800001234"}},
        {"occurred_at": "1999-12-31T23:59:59Z"},
        {"occurred_at": "2000-01-01T00:00:00Z"},
        {"occurred_at": "2099-12-31T23:59:59-12:00"},
        {"photos": [{"sha256": "b" * 64, "taken_at": "2100-01-01T00:00:00Z"}]},
        {"event_type": "REPORTED", "matter_code": None},
        {"case_id": "c-13800001234"},
        {"submission_id": "11010519491231002X"},
        {"submission_id": "1101051949-1231-0021"},
        {"channel": "c13800001234"},
        {"persons": [{"role": "subject", "id_number": "1101\u009f0000"}]},
    ]
)


@settings(deadline=None, max_examples=200)
@given(st.lists(odd, min_size=1, max_size=6))
def test_events_that_are_not_looked_at_have_no_fault(changes: list[dict[str, Any]]) -> None:
    lines = [orjson.dumps(event(at, **change)) for at, change in enumerate(changes)]
    body = b"\n".join(lines)
    found, wanted = parse.parse_ndjson(body), exactly(body)
    assert (found.errors, found.events, found.indexes) == (wanted.errors, wanted.events, wanted.indexes)
    for line, error in zip(lines, [parse.parse_document(line).errors for line in lines], strict=True):
        assert [one.code for one in error] == [one.code for one in exactly(line).errors]


def test_ordinary_events_are_not_looked_at_one_by_one() -> None:
    body = orjson.dumps([event(at, description="有 25°C，\n换行", attributes={"free": 1}) for at in range(5)])
    events = parse.parse_document(body).events
    assert suspects(parse.columns_of(Event, events), body) == []
    assert [fault(one) for one in events] == [None] * 5


spellings = st.text(st.sampled_from("1380000123499999X京粤BA·. -\u200b０１３８年é\u0301\n"), max_size=40)


@settings(deadline=None, max_examples=300)
@given(st.lists(spellings, max_size=5))
def test_texts_are_cleaned_together_as_one_by_one(texts: list[str]) -> None:
    wanted = [redact(unicodedata.normalize("NFC", text)) for text in texts]
    assert list(clean_texts(texts)) == wanted


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.none() | st.text(st.sampled_from("139X86+-._:@/=aW0"), min_size=1, max_size=30), max_size=5)
)
def test_keys_are_cleaned_together_as_one_by_one(keys: list[str | None]) -> None:
    privacy = Privacy(SECRET)
    assert list(privacy.clean_keys(keys)) == [None if key is None else privacy.clean_key(key) for key in keys]


@settings(deadline=None)
@given(
    st.lists(st.none() | st.text(st.sampled_from("0123456789xX -１ａß\n"), max_size=20), max_size=5),
    st.binary(min_size=32, max_size=100),
)
def test_pseudonyms_are_hmac_of_the_spelling_that_all_share(numbers: list[str | None], secret: bytes) -> None:
    from pipeline.contract.privacy import normalise_id, normalise_phone

    privacy = Privacy(secret)

    def digest(domain: str, value: str) -> str:
        return hmac.digest(secret, f"gridpipe:{domain}:{value}".encode(), "sha256").hex()

    wanted = [None if number is None else digest("person", normalise_id(number)) for number in numbers]
    assert privacy.person_keys(numbers) == wanted
    for number in filter(None, numbers):
        assert privacy.person_key(number) == digest("person", normalise_id(number))
        assert privacy.phone_key(number) == digest("phone", normalise_phone(number))


def test_columns_are_those_of_a_block() -> None:
    frame = to_frame([], ingested_at=NOW, request_id=None, backfill=False, privacy=Privacy(SECRET))
    assert dict(frame.schema) == EVENT
    assert EVENT_ARROW.names == list(EVENT)


def test_what_is_said_once_per_request_goes_to_each_of_its_events() -> None:
    events = parse.parse_document(orjson.dumps([event(at) for at in range(3)])).events
    later = datetime(2026, 10, 2, 1, 2, 3, 456789, tzinfo=UTC)
    batch = to_batch(
        events,
        ingested_at=[NOW, later],
        request_id=["r-0", "r-1"],
        backfill=[False, True],
        which=[1, 0, 1],
        privacy=Privacy(SECRET),
    )
    assert batch["request_id"].to_pylist() == ["r-1", "r-0", "r-1"]
    assert batch["backfill"].to_pylist() == [True, False, True]
    cut = later.replace(microsecond=456000)
    assert batch["ingested_at"].to_pylist() == [cut, NOW, cut]
