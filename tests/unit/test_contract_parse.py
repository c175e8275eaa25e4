"""JSON text to events: what is wrong with a document, a line or one event, and nothing else in it."""

from __future__ import annotations

import time
import tracemalloc
from datetime import datetime
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.contract import parse
from pipeline.contract.cloudevents import parse_cloudevents
from pipeline.contract.event import CLIENT_EVENT_TYPES, CODES, REQUIRED_ATTRIBUTE, RETRYABLE_CODES
from pipeline.contract.parse import (
    DocumentError,
    crowded,
    cut_fine_times,
    deeper_than,
    depth_of,
    elements_of,
    parse_document,
    parse_ndjson,
    parse_record,
)
from tests.unit.gateway_world import cloudevent, event

GOOD = orjson.dumps(event())


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "empty_body"),
        (b" \r\n\t", "empty_body"),
        (b"[]", "empty_batch"),
        (b" [ ] ", "empty_batch"),
        (b"null", "not_an_object"),
        (b"42", "not_an_object"),
        (b'"x"', "not_an_object"),
        (b"true", "not_an_object"),
        (b"{", "malformed_json"),
        (GOOD[:-1], "malformed_json"),
        (GOOD + GOOD, "malformed_json"),
        (GOOD + b"x", "malformed_json"),
        (b"[" + GOOD + b",]", "malformed_json"),
        (b"{'event_id': 1}", "malformed_json"),
        (b'{"lon": NaN}', "malformed_json"),
        (b'[{"lon": Infinity}]', "malformed_json"),
        (b'{"lon": 1e400}', "unknown_field"),
        (b"\xef\xbb\xbf" + GOOD, "malformed_json"),
        (GOOD.decode().encode("utf-16"), "bad_encoding"),
        (b'{"title": "\xff"}', "bad_encoding"),
        (b'{"title": "\xc0\xaf"}', "bad_encoding"),
        (b'{"title": "\xed\xa0\x80"}', "bad_encoding"),
        (b'{"title": "\\ud800"}', "malformed_json"),
        (b'{"title": "\\udc00 x"}', "malformed_json"),
        (b'{"title": "a\x00b"}', "malformed_json"),
        (b"[" * 33 + b"]" * 33, "too_deep"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "too_deep"),
        (b"[" * 100_000 + b"]" * 100_000, "too_deep"),
        (b"[" * 100_000, "too_deep"),
        (b'{"a":' * 100_000, "too_deep"),
    ],
)
def test_unreadable_document(body: bytes, code: str) -> None:
    started = time.perf_counter()
    try:
        parsed = parse_document(body)
    except DocumentError as error:
        assert (error.code, error.status) == (code, 400)
        assert error.code in CODES
    else:
        assert [error.code for error in parsed.errors] == [code]
    assert time.perf_counter() - started < 2


def test_too_many_events_is_413_and_takes_none() -> None:
    line = orjson.dumps(event())
    for call in (
        lambda: parse_document(b"[" + b",".join([line] * 6) + b"]", max_events=5),
        lambda: parse_document(b"[" + b",".join([b"{}"] * 6) + b"]", max_events=5),
        lambda: parse_ndjson(b"\n".join([line] * 6), max_events=5),
        lambda: parse_cloudevents(orjson.dumps([cloudevent()] * 6), batch=True, max_events=5),
    ):
        with pytest.raises(DocumentError) as caught:
            call()
        assert (caught.value.code, caught.value.status) == ("too_many_events", 413)


def test_commas_within_events_are_not_counted() -> None:
    """Of events with lists, and texts with brackets, quotes and commas, as many are taken as may be."""
    text = ',"]},[' * 50
    several = [
        event(number, description=text, attributes={"a": text, "b": 1}, persons=[{"role": "party"}] * 9)
        for number in range(20)
    ]
    several[3]["grid_code"] = "x"  # taken one by one then
    parsed = parse_document(orjson.dumps(several), max_events=20)
    assert (len(parsed.events), len(parsed.errors)) == (19, 1)
    with pytest.raises(DocumentError, match="20 events"):
        parse_document(orjson.dumps(several), max_events=19)
    blanks = parse_ndjson(b"\n\r\n \n".join(map(orjson.dumps, several)), max_events=20)
    assert (len(blanks.events), len(blanks.errors)) == (19, 1)


def test_a_large_cloud_event_is_told_by_its_id() -> None:
    large = cloudevent(7, extension="a")
    large["data"]["description"] = "a" * 300_000
    for changes, code, field in (
        ({}, "too_long", "data.description"),
        ({"specversion": "2"}, "unsupported_version", "specversion"),
        ({"Not_One": 1}, "unknown_field", "Not_One"),
        ({"time": 7}, "bad_time", "time"),
    ):
        (error,) = parse_cloudevents(orjson.dumps({**large, **changes}), batch=False).errors
        assert (error.event_id, error.code, error.field) == ("e-7", code, field)
    for place in (b'"extension":"a', b'"description":"a', b'"subject":"'):
        broken = orjson.dumps(large).replace(place, place + rb"\ud800", 1)
        with pytest.raises(DocumentError, match="not one JSON"):
            parse_cloudevents(broken, batch=False)


@pytest.mark.parametrize("form", ["object", "list", "lines", "cloudevent"])
@pytest.mark.parametrize("field", ["attributes", "persons"])
def test_an_event_of_a_million_members_is_refused_before_it_is_built(form: str, field: str) -> None:
    many = {
        "attributes": b"{" + b",".join(b'"k%d":1' % number for number in range(1_000_000)) + b"}",
        "persons": b"[" + b",".join([b'{"role":"subject"}'] * 1_000_000) + b"]",
    }[field]
    envelope = event() if form != "cloudevent" else cloudevent()
    if form == "cloudevent":
        envelope["data"][field] = 0
    else:
        envelope[field] = 0
    text = orjson.dumps(envelope).replace(b'"%s":0' % field.encode(), b'"%s":%s' % (field.encode(), many))
    good = orjson.dumps(event(event_id="good"))
    tracemalloc.start()
    try:
        if form == "object":
            parsed, others = parse_document(text), 0
        elif form == "list":
            parsed, others = parse_document(b"[" + text + b"," + good + b"]"), 1
        elif form == "lines":
            parsed, others = parse_ndjson(text + b"\n" + good), 1
        else:
            parsed, others = parse_cloudevents(text, batch=False), 0
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [error.code for error in parsed.errors] == ["too_long"]
    assert len(parsed.events) == others
    assert peak < 7 * len(text), f"{peak / len(text):.1f} times the text"


def test_an_event_as_large_as_the_contract_allows_is_taken() -> None:
    large = event(
        persons=[{"role": "subject", "key": f"k{n}"} for n in range(100)],
        photos=[{"sha256": "0" * 64, "taken_at": "2026-01-01T00:00:00Z"} for n in range(50)],
        attributes={f"a{n}": ":" * 1_000 for n in range(32)},
        description=":" * 4_000,
    )
    for parsed in (
        parse_document(orjson.dumps(large)),
        parse_document(orjson.dumps([large] * 10)),
        parse_ndjson(orjson.dumps(large)),
    ):
        assert not parsed.errors
        assert parsed.events


def test_depth_counts_brackets_outside_strings_only() -> None:
    assert depth_of(b'{"a": "[[[{{{", "b": [1, {"c": 2}]}') == 3
    assert depth_of(rb'{"a\"[": "\\", "b": ["]"]}') == 2
    assert depth_of(b"") == 0


@given(
    text=st.text('[]{},:"\\a', max_size=60).map(str.encode),
    piece=st.integers(1, 70),
)
def test_a_text_is_the_same_in_pieces_of_any_size(text: bytes, piece: int) -> None:
    depth, deepest, commas, colons, quoted, escaped = 0, 0, 0, 0, False, False
    for code in text.decode():
        if code == "\\":
            escaped = not escaped
            continue
        escaped, after = False, escaped
        if code == '"':
            if after:
                continue
            quoted = not quoted
        elif not quoted:
            depth += (code in "[{") - (code in "]}")
            deepest = max(deepest, depth)
            commas += code == "," and depth == 1
            colons += code == ":"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parse, "_PIECE_BYTES", piece)
        patch.setattr(parse, "MAX_MEMBERS", colons)
        assert depth_of(text) == deepest
        assert elements_of(text) == commas + 1
        assert crowded(text) is None
        if colons:
            patch.setattr(parse, "MAX_MEMBERS", colons - 1)
            assert crowded(text) is not None


@pytest.mark.parametrize(
    ("text", "deepest", "elements"),
    [(b"[" + b"[]," * 1_000_000 + b"[]]", 2, 1_000_001), (b"[" * 3_000_000, 3_000_000, 1)],
)
def test_looks_at_a_large_text_take_the_memory_of_a_piece(text: bytes, deepest: int, elements: int) -> None:
    tracemalloc.start()
    assert depth_of(text) == deepest
    assert elements_of(text) == elements
    assert not deeper_than(3_000_000, text)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 3_000_000, f"{most / 1e6:.1f} MB for a text of {len(text) / 1e6:.1f}"


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"event_id": ""}, "bad_pattern", "event_id"),
        ({"event_id": "a\n"}, "bad_pattern", "event_id"),
        ({"event_id": "a\u200bb"}, "bad_pattern", "event_id"),
        ({"event_id": "\u0430bc"}, "bad_pattern", "event_id"),
        ({"event_id": "x" * 1_000_000}, "too_long", "event_id"),
        ({"event_id": ["a"]}, "bad_type", "event_id"),
        ({"occurred_at": "1970-01-01T00:00:00Z"}, "out_of_range", "occurred_at"),
        ({"occurred_at": "2300-01-01T00:00:00Z"}, "out_of_range", "occurred_at"),
        ({"occurred_at": "9999-12-31T23:59:59-14:00"}, "out_of_range", "occurred_at"),
        ({"occurred_at": "0001-01-01T00:00:00+14:00"}, "out_of_range", "occurred_at"),
        ({"occurred_at": "0000-01-01T00:00:00Z"}, "bad_time", "occurred_at"),
        ({"occurred_at": "2026-01-01T00:00:60Z"}, "bad_time", "occurred_at"),
        ({"occurred_at": "2026-01-01T00:00:00+99:00"}, "bad_time", "occurred_at"),
        ({"occurred_at": "2026-01-01"}, "bad_time", "occurred_at"),
        ({"occurred_at": 0}, "bad_time", "occurred_at"),
        ({"occurred_at": 1767225600000}, "bad_time", "occurred_at"),
        ({"actor": []}, "bad_type", "actor"),
        ({"actor": None}, "missing_field", "actor"),
        ({"actor": {"type": "citizen", "key": "a b"}}, "bad_pattern", "actor.key"),
        ({"persons": {}}, "bad_type", "persons"),
        ({"persons": [{"role": "subject"}, {"key": "x"}]}, "missing_field", "persons[1].role"),
        ({"persons": [{"role": "subject"}] * 101}, "too_long", "persons"),
        ({"location": {"lon": 22.5, "lat": 113.1, "crs": "wgs84"}}, "out_of_range", "location.lat"),
        ({"location": {"lon": True, "lat": 1, "crs": "wgs84"}}, "bad_type", "location.lon"),
        ({"location": {"lon": None, "lat": 1, "crs": "wgs84"}}, "missing_field", "location.lon"),
        (
            {"photos": [{"sha256": "0" * 64, "taken_at": "1980-01-01T00:00:00Z"}]},
            "out_of_range",
            "photos[0].taken_at",
        ),
        ({"title": "x" * 1_000_000}, "too_long", "title"),
        ({"title": "a\u007fb"}, "bad_text", "title"),
        ({"actor": {"type": "citizen", "name": "a\u0085b"}}, "bad_text", "actor.name"),
        ({"organisation": {"code": None, "name": " "}}, "missing_field", "organisation"),
        ({"organisation": {"code": "11010519491231002X"}}, "personal_data_in_id", "organisation.code"),
        ({"attributes": []}, "bad_type", "attributes"),
        ({"attributes": {"": 1}}, "too_short", "attributes"),
        ({"attributes": {"a" * 65: 1}}, "too_long", "attributes"),
        ({"attributes": {"a": "x" * 1001}}, "too_long", "attributes"),
        ({"attributes": {"a": {"b": 1}}}, "bad_type", "attributes"),
        ({"attributes": {"a\u0001": 1}}, "bad_text", "attributes"),
        ({"attributes": {"due_at": 5}}, "bad_time", "attributes.due_at"),
        ({"attributes": {"rating": True}}, "bad_type", "attributes.rating"),
        ({"attributes": {"rating": 0}}, "out_of_range", "attributes.rating"),
        ({"attributes": {"department": "13800001234"}}, "personal_data_in_id", "attributes.department"),
        ({"attributes": {"primary_case_id": "x y"}}, "bad_pattern", "attributes.primary_case_id"),
        ({"event_id": "110105-19491231-002X"}, "personal_data_in_id", "event_id"),
        ({"case_id": "c.1.1.0105194912310-02x"}, "personal_data_in_id", "case_id"),
        ({"submission_id": "tel-13800001234"}, "personal_data_in_id", "submission_id"),
        ({"matter_code": "M13800001234"}, "personal_data_in_id", "matter_code"),
        ({"ingested_at": "2026-01-01T00:00:00Z"}, "unknown_field", "ingested_at"),
        ({"is_admin": True}, "unknown_field", "is_admin"),
        ({f"f{number}": number for number in range(10_000)}, "unknown_field", "f0"),
        ({"a b'--": 1}, "unknown_field", "(name withheld)"),
        ({"11010519491231002X": 1}, "unknown_field", "(name withheld)"),
    ],
)
def test_one_bad_event_is_named_exactly_and_the_others_survive(
    change: dict[str, Any], code: str, field: str
) -> None:
    batch = [event(1), event(2, **change), event(3)]
    for parsed in (
        parse_document(orjson.dumps(batch)),
        parse_ndjson(b"\n".join(map(orjson.dumps, batch))),
        parse_record(b"\n".join(map(orjson.dumps, batch))),
    ):
        (error,) = parsed.errors
        assert (error.index, error.code, error.field) == (1, code, field)
        assert error.code in CODES
        assert [found.event_id for found in parsed.events] == ["e-1", "e-3"]
        assert parsed.indexes == [0, 2]
        assert "11010519491231002X" not in error.message
        assert len(error.message) < 400


def test_messages_do_not_repeat_values() -> None:
    secret = "张三13800001234"
    for change in (
        {"event_type": secret},
        {"occurred_at": secret},
        {"event_id": secret},
        {"actor": {"type": secret}},
        {"location": secret},
        {secret: 1},
        {"attributes": {"rating": secret}},
    ):
        (error,) = parse_document(orjson.dumps(event(1, **change))).errors
        assert "13800001234" not in repr(error)
        assert "张三" not in repr(error)


def test_line_that_is_not_json_is_that_lines_error() -> None:
    lines = [GOOD, b"{broken", b"", b"null", GOOD + GOOD, b"[" * 40, b"  ", GOOD + b"\r"]
    parsed = parse_ndjson(b"\n".join(lines))
    assert [(error.index, error.code) for error in parsed.errors] == [
        (1, "malformed_json"),
        (2, "not_an_object"),
        (3, "malformed_json"),
        (4, "too_deep"),
    ]
    assert parsed.indexes == [0, 5]
    assert parsed.raw[0] == b"{broken"


@pytest.mark.parametrize(
    "value", [None, b"", b"\n\n", b"\x00\x01", b"[" * 200_000, b"\xff" * 10, b"null", b"[]"]
)
def test_record_never_raises_and_is_counted(value: bytes | None) -> None:
    parsed = parse_record(value)
    assert parsed.count == len(parsed.errors) == len(parsed.raw) == 1


def test_the_last_of_duplicate_keys_counts_for_everything() -> None:
    body = GOOD[:-1] + b',"event_id":"second","event_type":"ADMITTED"}'
    (error,) = parse_document(body).errors
    assert (error.event_id, error.code) == ("second", "unknown_value")


def test_times_are_kept_to_microseconds_without_rounding_up() -> None:
    body = orjson.dumps(event(occurred_at="2026-03-01T15:59:00.9999999+08:00", description='":00.12345678Z"'))
    (found,) = parse_document(body).events
    assert found.occurred_at.isoformat() == "2026-03-01T15:59:00.999999+08:00"
    assert found.description == '":00.12345678Z"'
    assert cut_fine_times(GOOD) is GOOD


def test_ids_that_differ_in_case_are_two_ids() -> None:
    parsed = parse_document(orjson.dumps([event(event_id="a"), event(event_id="A")]))
    assert [found.event_id for found in parsed.events] == ["a", "A"]


def test_sql_and_markup_in_text_pass_as_they_are() -> None:
    text = "'); DROP TABLE events; -- {x:String} \\ =HYPERLINK(1) <script>\u202e\u200b"
    (found,) = parse_document(orjson.dumps(event(description=text))).events
    assert found.description == text


# --- CloudEvents


def test_cloudevent_is_the_same_event() -> None:
    plain = parse_document(orjson.dumps(event(7))).events
    assert parse_cloudevents(orjson.dumps(cloudevent(7)), batch=False).events == plain
    extended = cloudevent(7, traceparent="00-x", datacontenttype="application/json", dataschema="x")
    assert parse_cloudevents(orjson.dumps([extended, cloudevent(7)]), batch=True).events == plain * 2


@pytest.mark.parametrize(
    "given",
    [
        "application/json; charset=utf-8",
        "Application/JSON",
        'application/json;charset="UTF-8"',
        " application/json ; v=1; CHARSET=utf8",
    ],
)
def test_the_type_of_the_data_is_a_media_type(given: str) -> None:
    plain = parse_document(orjson.dumps(event(7))).events
    parsed = parse_cloudevents(orjson.dumps(cloudevent(7, datacontenttype=given)), batch=False)
    assert (parsed.events, parsed.errors) == (plain, [])


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"specversion": "0.3"}, "unsupported_version", "specversion"),
        ({"id": "a b"}, "bad_pattern", "id"),
        ({"id": "11010519491231002X"}, "personal_data_in_id", "id"),
        ({"type": "cn.jiangmen.grid.admitted.v1"}, "unknown_value", "type"),
        ({"type": "cn.jiangmen.grid.reported.v2"}, "unsupported_version", "type"),
        ({"type": "REPORTED"}, "unknown_value", "type"),
        ({"time": "2026-03-01T00:00:00"}, "bad_time", "time"),
        ({"time": "1999-03-01T00:00:00Z"}, "out_of_range", "time"),
        ({"subject": None}, "missing_field", "subject"),
        ({"data": None}, "missing_field", "data"),
        ({"data": {**cloudevent()["data"], "grid_code": "1"}}, "bad_pattern", "data.grid_code"),
        ({"data": {**cloudevent()["data"], "event_id": "x"}}, "unknown_field", "data.event_id"),
        ({"data": {**cloudevent()["data"], "matter_code": None}}, "missing_field", "data.matter_code"),
        ({"datacontenttype": "text/xml"}, "unknown_value", "datacontenttype"),
        ({"datacontenttype": "application/jsonx"}, "unknown_value", "datacontenttype"),
        ({"datacontenttype": "application/json; charset=gbk"}, "unknown_value", "datacontenttype"),
        ({"datacontenttype": ""}, "unknown_value", "datacontenttype"),
        ({"data_base64": "AA=="}, "unknown_field", "data_base64"),
    ],
)
def test_bad_cloudevent_names_the_envelopes_field(change: dict[str, Any], code: str, field: str) -> None:
    parsed = parse_cloudevents(orjson.dumps([cloudevent(1), cloudevent(2, **change)]), batch=True)
    (error,) = parsed.errors
    assert (error.index, error.code, error.field) == (1, code, field)
    assert len(parsed.events) == 1


@pytest.mark.parametrize(("body", "batch"), [(b"{}", True), (b"[{}]", False)])
def test_cloudevent_mode_and_body_must_agree(body: bytes, batch: bool) -> None:
    with pytest.raises(DocumentError) as caught:
        parse_cloudevents(body, batch=batch)
    assert caught.value.code == "not_an_object"


# --- properties

_ids = st.from_regex(r"[A-Za-z0-9._:-]{1,64}", fullmatch=True).filter(lambda text: not text.isdigit())
_texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=60)
_times = st.datetimes(
    min_value=datetime(2000, 1, 2),  # noqa: DTZ001
    max_value=datetime(2099, 12, 30),  # noqa: DTZ001
).map(lambda instant: instant.isoformat() + "+08:00")
_scalars = st.one_of(_texts, st.integers(-(2**63), 2**63 - 1), st.booleans(), st.none(), st.floats(-1e9, 1e9))


@st.composite
def valid_events(draw: st.DrawFn) -> dict[str, Any]:
    event_type = draw(st.sampled_from(CLIENT_EVENT_TYPES))
    attributes = draw(st.dictionaries(st.from_regex(r"x[a-z]{1,8}", fullmatch=True), _scalars, max_size=5))
    required = REQUIRED_ATTRIBUTE.get(event_type)
    if required:
        attributes[required] = "2030-01-01T00:00:00Z" if required == "due_at" else "case-1"
    given = event(1, event_type=event_type, event_id=draw(_ids), case_id=draw(_ids), occurred_at=draw(_times))
    optional: dict[str, st.SearchStrategy[Any]] = {
        "description": _texts,
        "title": _texts,
        "submission_id": _ids,
        "location": st.builds(
            lambda lon, lat: {"lon": lon, "lat": lat, "crs": "gcj02"},
            st.floats(-180, 180),
            st.floats(-90, 90),
        ),
        "persons": st.lists(st.just({"role": "subject", "key": "p-1"}), max_size=3),
        "organisation": st.just({"name": "某公司"}),
    }
    for name, strategy in optional.items():
        if draw(st.booleans()):
            given[name] = draw(strategy)
    if attributes:
        given["attributes"] = attributes
    return given


_mutations: list[tuple[str, Any]] = [
    ("event_id", 5),
    ("source", ""),
    ("event_type", "ADMITTED"),
    ("occurred_at", "2026-01-01T00:00:00"),
    ("grid_code", "44"),
    ("actor", {"type": "nobody"}),
    ("channel", "Ü"),
    ("location", {"lon": 0, "lat": 0}),
    ("title", "x" * 201),
    ("attributes", {"rating": 9}),
    ("surprise", 1),
]


@settings(max_examples=60, deadline=None)
@given(st.lists(valid_events(), min_size=1, max_size=8))
def test_valid_events_survive_the_round_trip(batch: list[dict[str, Any]]) -> None:
    parsed = parse_document(orjson.dumps(batch))
    assert not parsed.errors
    again = parse_ndjson(b"\n".join(map(msgspec.json.encode, parsed.events)))
    assert again.events == parsed.events
    for found, given_event in zip(parsed.events, batch, strict=True):
        assert found.event_id == given_event["event_id"]
        assert found.description == given_event.get("description")
        assert (found.attributes or {}) == given_event.get("attributes", {})


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_mutation_spoils_its_own_event_only(data: st.DataObject) -> None:
    batch = data.draw(st.lists(valid_events(), min_size=1, max_size=8))
    at = data.draw(st.integers(0, len(batch) - 1))
    field, value = data.draw(st.sampled_from(_mutations))
    batch[at] = {**batch[at], field: value}
    for parsed in (parse_document(orjson.dumps(batch)), parse_ndjson(b"\n".join(map(orjson.dumps, batch)))):
        assert [error.index for error in parsed.errors] == [at]
        assert parsed.errors[0].field.startswith(field)
        assert parsed.indexes == [index for index in range(len(batch)) if index != at]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_give_an_answer(body: bytes) -> None:
    assert parse_record(body).count >= 1
    try:
        parse_document(body)
    except DocumentError as error:
        assert error.code in CODES


def test_retryable_codes_are_codes() -> None:
    assert set(CODES) >= RETRYABLE_CODES


@pytest.mark.parametrize("number", [b"1e400", b"9" * 5_000, b"-1e999"])
def test_number_that_nothing_can_hold_is_its_events_error(number: bytes) -> None:
    spoilt = GOOD[:-1] + b',"attributes":{"a":' + number + b"}}"
    for parsed in (parse_document(b"[" + GOOD + b"," + spoilt + b"]"), parse_ndjson(GOOD + b"\n" + spoilt)):
        assert [(error.index, error.code, error.field) for error in parsed.errors] == [
            (1, "out_of_range", "attributes")
        ]


@pytest.mark.parametrize("number", ["99999919900101018X", "13800001234"])
@pytest.mark.parametrize(
    "breach",
    [
        {"description": "a\x00b"},
        {"occurred_at": "1999-01-01T00:00:00Z"},
        {"matter_code": ...},
        {"source": "13800001234"},
        {"grid_code": "x"},
    ],
)
def test_a_number_as_an_id_is_repeated_beside_no_other_breach(number: str, breach: dict[str, Any]) -> None:
    spoilt = event(2, event_id=number, **breach)
    text = orjson.dumps(spoilt)
    for parsed in (parse_document(text), parse_document(b"[" + text + b"]"), parse_ndjson(text)):
        (error,) = parsed.errors
        assert error.event_id is None
        assert number not in error.message


@pytest.mark.parametrize("name", ["13800001234", "a13800001234", "陈大文", "99999919900101018X"])
def test_the_name_of_an_attribute_is_not_repeated_where_it_may_be_personal(name: str) -> None:
    text = orjson.dumps(event(2, attributes={name: "a\x01b"}))
    for parsed in (parse_document(text), parse_document(b"[" + text + b"]")):
        (error,) = parsed.errors
        assert (error.code, error.field) == ("bad_text", "attributes.(name withheld)")
        assert name not in error.message
    (error,) = parse_document(orjson.dumps(event(2, attributes={"note": "a\x01b"}))).errors
    assert error.field == "attributes.note"
