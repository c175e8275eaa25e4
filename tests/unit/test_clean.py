"""A block that somebody else than the gateway wrote: well formed, and full of what the gateway takes out."""

from __future__ import annotations

import re
import sys
import time
import unicodedata
from typing import Any

import polars as pl
import pytest

from pipeline.contract.clean import _MAY_COMPOSE, cleaned
from pipeline.contract.parse import parse_document
from pipeline.contract.privacy import ID_MARK, PHONE_MARK
from pipeline.contract.rows import to_frame
from pipeline.frames import EVENT
from pipeline.ingest.blocks import ARROW, encode_frame
from pipeline.process.decode import Decoded, decode
from pipeline.process.records import Record
from tests.integration.worker_world import PRIVACY, body, event

ID_NUMBER = "99999919900101018X"
PHONE = "13800001234"


def gateway_rows(*events: dict[str, Any]) -> pl.DataFrame:
    parsed = [parse_document(body(one), max_events=1) for one in events]
    assert [found.errors for found in parsed] == [[]] * len(events)
    return to_frame(
        [found.events[0] for found in parsed],
        ingested_at=parsed[0].events[0].occurred_at,
        request_id="r",
        backfill=False,
        privacy=PRIVACY,
    )


def through(rows: pl.DataFrame) -> Decoded:
    return decode([(0, [Record(5, 0, ARROW, encode_frame(rows.select(list(EVENT))))])], privacy=PRIVACY)


def spoilt(name: str, value: Any) -> pl.DataFrame:
    """Two rows of the gateway, the first with another value."""
    rows = gateway_rows(event(1), event(2))
    values = rows[name].to_list()
    values[0] = value
    return rows.with_columns(pl.Series(name, values, dtype=EVENT[name]))


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("description", f"王先生 {ID_NUMBER} 电话 {PHONE}", f"王先生 {ID_MARK} 电话 {PHONE_MARK}"),
        ("title", f"电话{PHONE}", f"电话{PHONE_MARK}"),
        ("title", "粤J12345 停在路口", "[车牌号] 停在路口"),
        ("title", "粤J•12345，WJ粤12345", "[车牌号]，[车牌号]"),
        ("description", "(138)0000-1234 或 138 - 0000 - 1234", f"({PHONE_MARK} 或 {PHONE_MARK}"),
        ("description", "１３８００００１２３４", PHONE_MARK),
        ("description", "138\u202d0000\u20661234", PHONE_MARK),
        ("organisation_name", f"陈记 {PHONE}", f"陈记 {PHONE_MARK}"),
        ("void_reason", f"回访 {PHONE}", f"回访 {PHONE_MARK}"),
        ("level", PHONE, PHONE_MARK),
        ("address", "文昌花园3栋2单元501室", "文昌花园3栋"),
        ("address", "东海路４６号５０１室", "东海路４６号"),
        ("address", "阳光大厦1203", "阳光大厦"),
        ("address", "东海路46号二楼", "东海路46号"),
        ("address", "凤凰苑12-3-501", "凤凰苑12"),
        ("address", "501室", None),
        ("attributes", f'{{"note":"{PHONE}","n":1}}', f'{{"n":1,"note":"{PHONE_MARK}"}}'),
        ("attributes", f"no JSON {PHONE}", f"no JSON {PHONE_MARK}"),
        ("attributes", f'{{"a":["{PHONE}"]}}', f'{{"a":["{PHONE_MARK}"]}}'),
        *(
            (name, "cafe\u0301 店", "café 店")
            for name in ("title", "description", "organisation_name", "void_reason")
        ),
        ("description", "\uf98e\U0002f800", "年丽"),  # compatibility forms of two characters
        ("address", "cafe\u0301 3栋2单元", "café 3栋"),
        ("attributes", '{"cafe\u0301":"\u1100\u1161"}', '{"café":"가"}'),
        ("actor_name", "陈大文", "陈**"),
        ("actor_phone", PHONE, "138****1234"),
        ("actor_key", ID_NUMBER, PRIVACY.person_key(ID_NUMBER)),
        ("actor_key", PHONE, PRIVACY.phone_key(PHONE)),
        (
            "persons",
            [{"key": ID_NUMBER, "role": "subject"}, {"key": "own-7", "role": "party"}],
            [
                {"key": PRIVACY.person_key(ID_NUMBER), "role": "subject"},
                {"key": "own-7", "role": "party"},
            ],
        ),
    ],
)
def test_a_row_is_cleaned_as_the_gateway_would_have_done(name: str, value: Any, shown: Any) -> None:
    rows = spoilt(name, value)
    found = through(rows)
    assert found.quarantined.is_empty()
    assert found.events[name].to_list() == [shown, rows[name].to_list()[1]]
    others = [column for column in EVENT if column != name]
    assert found.events.select(others).equals(rows.select(others))


@pytest.mark.parametrize(
    "name",
    ["event_id", "source", "case_id", "submission_id", "matter_code", "channel", "organisation_code",
     "primary_case_id", "department", "unit_code", "actor_type", "crs", "request_id"],
)  # fmt: skip
@pytest.mark.parametrize("value", [f"x-{ID_NUMBER}", PHONE])
def test_an_id_in_clear_that_holds_a_number_is_refused_alone(name: str, value: str) -> None:
    found = through(spoilt(name, value))
    assert found.events["event_id"].to_list() == ["e2"]
    assert found.quarantined["_idx"].to_list() == [0]
    told = repr(found.quarantined.rows())
    assert ID_NUMBER not in told
    assert PHONE not in told


#: What people write. Every other column holds ids, codes, words of closed lists, hashes or keys.
_WRITTEN = {
    "actor_name", "actor_phone", "address", "attributes", "description", "level", "organisation_name",
    "title", "void_reason",
}  # fmt: skip
#: Of these, what may be any word: ids and keys.
_OF_ANY_WORD = {
    "event_id", "source", "case_id", "submission_id", "actor_key", "persons.key", "organisation_code",
    "primary_case_id", "request_id",
}  # fmt: skip
CARD, PLATE = "6222021234567890128", "粤J8K2M7"


def text_places() -> list[str]:
    """Every place of an event that holds text: columns, and members of lists as `column.member`."""
    places = []
    for name, kind in EVENT.items():
        inner = kind.inner if isinstance(kind, pl.List) else kind
        if isinstance(inner, pl.Struct):
            places += [f"{name}.{field.name}" for field in inner.fields if field.dtype == pl.String()]
        elif inner == pl.String():
            places.append(name)
    return places


def spoilt_at(place: str, text: str) -> pl.DataFrame:
    """Two rows of the gateway that hold something in every column; the first with `text` in one place."""
    person, photo = {"id_number": ID_NUMBER, "role": "subject"}, {"sha256": "0a" * 32}
    rows = gateway_rows(
        *(
            event(number, persons=[person, {"role": "party"}], photos=[photo, {"sha256": "A0" * 32}])
            for number in (1, 2)
        )
    )
    assert through(rows).quarantined.is_empty()
    name, _, member = place.partition(".")
    values = rows[name].to_list()
    values[0] = [{**values[0][0], member: text}, *values[0][1:]] if member else text
    return rows.with_columns(pl.Series(name, values, dtype=EVENT[name]))


@pytest.mark.parametrize("place", text_places())
def test_no_place_of_a_block_keeps_a_number(place: str) -> None:
    for text in (f"subject {PHONE} {ID_NUMBER} {CARD} {PLATE}", ID_NUMBER, PHONE):
        found = through(spoilt_at(place, text))
        assert "e2" in found.events["event_id"]
        told = repr((found.events.rows(), found.quarantined.rows()))
        assert [number for number in (PHONE, ID_NUMBER, CARD, PLATE) if number in told] == []


@pytest.mark.parametrize("place", sorted({*text_places()} - _WRITTEN))
def test_what_is_no_word_of_the_contract_is_refused_as_in_json(place: str) -> None:
    free = ("-",) if place in _OF_ANY_WORD else ()
    for text in ("陈大文 说", "", "-"):
        found = through(spoilt_at(place, text))
        assert found.quarantined["_idx"].to_list() == ([] if text in free else [0]), text
        assert found.events.height == (2 if text in free else 1), text


def test_a_null_among_people_costs_its_row_alone_where_another_key_is_a_number() -> None:
    people = [[None], [{"key": PHONE, "role": "subject"}]]
    rows = gateway_rows(event(1), event(2)).with_columns(pl.Series("persons", people, dtype=EVENT["persons"]))
    found = through(rows)
    assert found.quarantined["_idx"].to_list() == [0]
    (person,) = found.events["persons"].item()
    assert re.fullmatch("[0-9a-f]{64}", person["key"])


def test_every_character_that_nfc_may_change_is_looked_at() -> None:
    looked_at = re.compile(_MAY_COMPOSE)
    everything = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    parts = {part for one in everything for part in unicodedata.normalize("NFD", one)[1:]}
    unlike = [one for one in everything if not unicodedata.is_normalized("NFC", one)]
    assert len(parts) > 100 < len(unlike)
    missed = [one for one in (*parts, *unlike) if not looked_at.search(one)]
    missed += [one for one in everything if unicodedata.combining(one) and not looked_at.search(one)]
    assert missed == []


def test_what_the_gateway_wrote_stays_as_it_is() -> None:
    people = {
        "actor": {"type": "citizen", "id_number": ID_NUMBER, "name": "欧阳小明", "phone": f"+86 {PHONE}"},
        "persons": [{"id_number": ID_NUMBER, "role": "subject"}, {"key": "own-7", "role": "subject"}],
        "description": f"王先生 {ID_NUMBER}，电话 {PHONE}，车牌 粤J12345，云沁路32号，3栋，2026-05-01 08:00",
        "location": {"lon": 113.1, "lat": 22.57, "crs": "wgs84", "address": "礼乐街道文昌花园3栋2单元501室"},
        "attributes": {"note": PHONE, "count": 12, "grid": "440704001002003"},
    }
    rows = gateway_rows(
        event(1, **people),
        event(2, actor={"type": "citizen", "phone": "0750-3333333", "name": " "}),
        event(3, organisation={"code": "91440700MA4W2B3C4D", "name": "江门市某某店"}),
        event("20260501080000123456"),
        event(5, event_id="0d5b6c8e-1234-5678-9012-345678901234", case_id="c.2026.05.01-000123"),
    )
    same, refused = cleaned(rows, PRIVACY)
    assert same.equals(rows)
    assert not refused.any()
    found = through(rows)
    assert found.quarantined.is_empty()
    assert found.events.select(list(EVENT)).equals(rows)


def test_a_block_of_hostile_texts_is_cleaned_in_time_and_stays_as_the_gateway_wrote_it() -> None:
    """The worker ends where a partition stands still, begins anew, and would read the same block for ever."""
    attributes = {f"a{number}": "9" * 1_000 for number in range(32)}
    changes: dict[str, Any] = {"description": "1." * 2_000, "attributes": attributes}
    rows = gateway_rows(*(event(number, **changes) for number in range(20)))
    as_sent = rows.with_columns(description=pl.lit("1." * 2_000))
    started = time.thread_time()
    same, refused = cleaned(rows, PRIVACY)
    shown, _ = cleaned(as_sent, PRIVACY)
    assert time.thread_time() - started < 10
    assert same.equals(rows)
    assert shown.equals(rows)
    assert not refused.any()


def test_numbers_of_several_attributes_are_not_taken_together() -> None:
    """Each is redacted by itself at the gateway: read as one text, so many serial numbers would look too much
    like cards."""
    serials = [str(1_000_000_000_000_001 + 10 * number) for number in range(32)]
    rows = gateway_rows(event(1, attributes={f"a{n}": f"{s} {s[::-1]}0" for n, s in enumerate(serials)}))
    same, _ = cleaned(rows, PRIVACY)
    assert same.equals(rows)
