"""Records to rows: whatever a record holds, it gives rows with a position and stops nothing."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime

import polars as pl
import pytest

from pipeline.contract.canary import CANARY_SOURCE
from pipeline.frames import DECODED, EVENT, QUARANTINED
from pipeline.ingest.blocks import ARROW, encode_frame
from pipeline.process.decode import PAYLOAD_CHARACTERS, decode, redacted_payload
from pipeline.process.records import Record
from tests.integration.worker_world import PRIVACY, arrow, body, event, ids, record

#: Of event 1; they are stored, so no release may change them.
ID_HI, ID_LO = 1537925051060351561, 5079057523430867991
CONTENT = 4165934134924811020


def decoded(*records: Record, **options: object) -> tuple[pl.DataFrame, pl.DataFrame]:
    found = decode([(7, records)], privacy=PRIVACY, **options)  # type: ignore[arg-type]
    assert found.events.schema == DECODED
    assert found.quarantined.schema == QUARANTINED
    return found.events, found.quarantined


def test_one_event_per_record_many_lines_an_array_and_an_arrow_block_give_the_same_rows() -> None:
    documents = [event(number) for number in range(4)]
    at = datetime(2026, 5, 1, 4, 3, tzinfo=UTC)
    stamp = round(at.timestamp() * 1000)
    forms = [
        [record(offset, document, received=at) for offset, document in enumerate(documents)],
        [record(0, *documents, received=at)],
        [Record(0, stamp, "application/json", json.dumps(documents).encode())],
        [Record(0, stamp, None, json.dumps(documents, indent=2).encode())],
        [arrow(0, *documents, received=at)],
    ]
    rows = [decoded(*form)[0].drop("_off", "_idx") for form in forms]
    assert rows[0].height == 4
    assert all(frame.equals(rows[0]) for frame in rows)


def test_positions_are_offset_and_line_without_blank_lines() -> None:
    events, refused = decoded(
        record(3, event(1)),
        Record(4, 1_700_000_000_000, None, body(event(2)) + b"\n\n" + body(event(3)) + b"\n"),
    )
    assert events.select("_part", "_off", "_idx").rows() == [(7, 3, 0), (7, 4, 0), (7, 4, 1)]
    assert refused.is_empty()


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (Record(5, 0, None, None), "MALFORMED"),
        (Record(5, 0, None, b""), "MALFORMED"),
        (Record(5, 0, None, b" \n \n"), "MALFORMED"),
        (Record(5, 0, None, b"\xff\xfe{}"), "MALFORMED"),
        (Record(5, 0, None, b"not json"), "MALFORMED"),
        (Record(5, 0, None, b"[]"), "MALFORMED"),
        (Record(5, 0, None, b"null"), "MALFORMED"),
        (Record(5, 0, None, b"[" * 100_000), "MALFORMED"),
        (Record(5, 0, "text/xml", b"<event/>"), "MALFORMED"),
        (Record(5, 0, "", b"{}"), "MALFORMED"),
        (Record(5, 0, ARROW, b"ARROW1 but not really"), "MALFORMED"),
        (Record(5, 0, ARROW, encode_frame(pl.DataFrame({"a": [1]}))), "MALFORMED"),
        (Record(5, 0, ARROW, encode_frame(pl.DataFrame(schema=EVENT))), "MALFORMED"),
        (Record(5, 0, None, body(event(9)), "2"), "UNSUPPORTED_VERSION"),
        (Record(5, 0, None, body(event(9)), "one"), "MALFORMED"),
        (Record(5, -1, None, body(event(9, event_type="ADMITTED"))), "MALFORMED"),
    ],
)
def test_an_unreadable_record_is_quarantined_with_its_position_and_its_neighbours_stay(
    bad: Record, reason: str
) -> None:
    events, refused = decoded(record(4, event(1)), bad, record(6, event(2)))
    assert ids(events) == ["e1", "e2"]
    assert refused.select("_part", "_off", "_idx", "reason").rows() == [(7, 5, 0, reason)]


def test_a_truncated_arrow_block_is_quarantined_whole() -> None:
    whole = arrow(5, event(1), event(2))
    assert whole.value is not None
    for cut in (10, len(whole.value) // 2):
        events, refused = decoded(whole._replace(value=whole.value[:cut]), record(6, event(3)))
        assert ids(events) == ["e3"]
        assert refused["_off"].to_list() == [5]


def test_a_bad_line_costs_only_itself() -> None:
    lines = body(event(1)) + b"\n{broken\n" + body(event(2, grid_code="12"), event(3))
    events, refused = decoded(Record(5, 1_700_000_000_000, None, lines))
    assert ids(events) == ["e1", "e3"]
    assert refused.select("_idx", "event_id").rows() == [(1, None), (2, "e2")]
    assert events["_idx"].to_list() == [0, 3]


def test_a_bad_record_among_single_events_costs_only_itself() -> None:
    bad = Record(5, 1_700_000_000_000, None, b'{"event_id": "x"}')
    events, refused = decoded(record(4, event(1)), bad, record(6, event(2)))
    assert ids(events) == ["e1", "e2"]
    assert refused.select("_off", "_idx").rows() == [(5, 0)]


def test_an_arrow_row_that_the_gateway_would_never_send_is_quarantined_alone() -> None:
    rows, _ = decoded(record(0, event(1), event(2), event(3)))
    spoilt = rows.select(list(EVENT)).with_columns(
        grid_code=pl.when(pl.col("event_id") == "e2").then(pl.lit("x")).otherwise("grid_code")
    )
    events, refused = decoded(Record(5, 0, ARROW, encode_frame(spoilt)))
    assert ids(events) == ["e1", "e3"]
    assert refused.select("_off", "_idx", "source", "event_id").rows() == [(5, 1, "handset", "e2")]


@pytest.mark.parametrize("name", ["occurred_at", "ingested_at"])
@pytest.mark.parametrize("milliseconds", [2**62, -(2**62), 10**16, 10**15, -(10**15), 4_102_444_800_001])
def test_an_arrow_row_of_a_time_that_no_calendar_has_is_quarantined_alone(
    name: str, milliseconds: int
) -> None:
    """polars ends a conversion of such a time with a panic, and the worker with it, again and again."""
    rows = decoded(record(0, event(1), event(2), event(3)))[0].select(list(EVENT))
    times = pl.when(pl.col("event_id") == "e2").then(milliseconds).otherwise(pl.col(name).to_physical())
    spoilt = rows.with_columns(times.cast(EVENT[name]).alias(name))
    events, refused = decoded(Record(5, 0, ARROW, encode_frame(spoilt)))
    assert ids(events) == ["e1", "e3"]
    assert refused.select("_off", "_idx", "source", "event_id").rows() == [(5, 1, "handset", "e2")]
    told = "2100-01-01" if milliseconds == 4_102_444_800_001 else str(milliseconds)
    assert f"'{name}': '{told}" in refused["payload"][0]


@pytest.mark.parametrize(
    ("document", "source"),
    [
        (event(1, grid_code="44"), "handset"),
        (event(1, actor={"type": "nobody"}), "handset"),
        (event(1, source="no source"), None),
        (event(1, source="x" * 65), None),
        (event(1, source=7), None),
        (event(1, source=None), None),
        (event(1, source="13800138000"), None),
        (event(1, source="999999195003120018"), None),
        (event(1, source=CANARY_SOURCE, grid_code="44"), None),
    ],
)
def test_a_refused_event_keeps_its_source_where_that_is_one(
    document: dict[str, object], source: str | None
) -> None:
    """Alone, as a line beside a sound one, in an array and in a text that is refused event by event."""
    sound, line = event(2), body(document)
    text = body(sound) + b"\n" + line
    listed = b"[" + body(sound) + b"," + line + b"]"
    for value, content_type in (
        (line, None),
        (text, None),
        (text + b"\n{", None),
        (listed, "application/json"),
    ):
        _, refused = decoded(Record(5, 1_700_000_000_000, content_type, value))
        assert refused["source"][0] == source, value
        assert refused["source"][1:].to_list() == [None] * (refused.height - 1)


@pytest.mark.parametrize(
    "value",
    [
        b"{broken",
        b'{"source": "handset"',
        b'"handset"',
        b'{"source": "handset", "a": ' + b"[" * 5_000,
        b"\xff",
    ],
)
def test_what_is_no_event_has_no_source(value: bytes) -> None:
    _, refused = decoded(Record(5, 1_700_000_000_000, None, value))
    assert refused["source"].to_list() == [None]


_DUE = datetime(2026, 6, 1, tzinfo=UTC)
_LATER: dict[str, dict[str, object]] = {
    "MERGED": {"primary_case_id": "c9"},
    "EXTENDED": {"due_at": _DUE.isoformat()},
    "VOIDED": {"reason": "重复"},
}


@pytest.mark.parametrize(
    ("event_type", "spoilt"),
    [
        ("REPORTED", {"matter_code": None}),
        ("REPORTED", {"matter_code": ""}),
        ("MERGED", {"primary_case_id": None}),
        ("MERGED", {"primary_case_id": "no id"}),
        ("EXTENDED", {"due_at": None}),
        ("VOIDED", {"void_reason": None}),
        ("VOIDED", {"void_reason": " \u3000"}),
        ("CLOSED", {"rating": 9}),
        ("CLOSED", {"rating": 0}),
        ("CLOSED", {"department": "a b"}),
        ("CLOSED", {"key_version": None}),
        ("CLOSED", {"lon": 180.5}),
        ("CLOSED", {"lat": float("nan")}),
    ],
)
def test_an_arrow_row_that_breaks_a_relation_or_range_of_the_contract_is_quarantined_alone(
    event_type: str, spoilt: dict[str, object]
) -> None:
    documents = [event(n, event_type=event_type, attributes=_LATER.get(event_type)) for n in (1, 2, 3)]
    rows = decoded(record(0, *documents))[0].select(list(EVENT))
    events, refused = decoded(Record(5, 0, ARROW, encode_frame(rows)))
    assert (ids(events), refused.height) == (["e1", "e2", "e3"], 0)
    # on any other type nothing is demanded
    others = rows.with_columns(
        event_type=pl.lit("SIGNED"), matter_code=None, primary_case_id=None, due_at=None, void_reason=None
    ).cast({name: EVENT[name] for name in ("matter_code", "primary_case_id", "due_at", "void_reason")})
    assert decoded(Record(5, 0, ARROW, encode_frame(others)))[1].is_empty()
    second = pl.col("event_id") == "e2"
    broken = rows.with_columns(
        pl.when(second).then(pl.lit(value, EVENT[name])).otherwise(name).alias(name)
        for name, value in spoilt.items()
    )
    events, refused = decoded(Record(5, 0, ARROW, encode_frame(broken)))
    assert ids(events) == ["e1", "e3"]
    assert refused.select("_off", "_idx", "event_id", "reason").rows() == [(5, 1, "e2", "MALFORMED")]


def test_receipt_is_the_gateways_in_a_block_and_the_records_timestamp_otherwise() -> None:
    at = datetime(2026, 5, 1, 9, tzinfo=UTC)
    direct, _ = decoded(record(0, event(1), received=at))
    block, _ = decoded(arrow(0, event(1), received=at)._replace(timestamp_ms=1))
    assert direct["ingested_at"].to_list() == block["ingested_at"].to_list() == [at]
    assert direct["request_id"].to_list() == [None]


def test_only_listed_sources_are_backfill() -> None:
    events, _ = decoded(record(0, event(1), event(2, source="archive")), backfill_sources=("archive",))
    assert events["backfill"].to_list() == [False, True]


def test_a_quarantined_payload_names_nobody_and_is_cut() -> None:
    line = json.dumps(
        {
            **event(1),
            "actor": {
                "type": "citizen",
                "id_number": "not a number",
                "phone": "13800138000",
                "name": "陈大文",
            },
        }
    )
    _, refused = decoded(Record(5, 0, None, line.encode() + b"," + b"x" * 100_000))
    payload = refused["payload"][0]
    assert len(payload) == PAYLOAD_CHARACTERS
    for secret in ("13800138000", "陈大文", "not a number"):
        assert secret not in payload
    assert refused["payload_bytes"].to_list() == [len(line.encode()) + 1 + 100_000]


@pytest.mark.parametrize(
    "raw",
    [
        '{"description": "电话13800138000"}'.encode("utf-16"),
        '{"description": "车粤J12345，电话13800138000"}'.encode("utf-16-le"),
        b"1\xff3\xff8\xff0\xff0\xff1\xff3\xff8\xff0\xff0\xff0",
        b"1\x003\x018\x000\x000\x001\x003\x008\x000\x000\x000 and more text that is ASCII, no UTF-16",
        rb'{"description": "\u7ca4J12345"}',
        rb'{"description": "138\u200b0013\u200b8000"}',
        rb'{"description": "\uff11\uff13\uff18\uff10\uff10\uff11\uff13\uff18\uff10\uff10\uff10"}',
        '{"name": ["陈大文"]}'.encode(),
        '{"name": ["李小明", "陈大文"]}'.encode(),
        '{"姓名":"陈大文"}'.encode(),
        r'{"name": "李\"陈大文"}'.encode(),
        r'{"name": "李\u0022陈大文"}'.encode(),
        rb'{"n\u0061me": "\u9648\u5927\u6587"}',
        b"{'actor': {'name': '\xe9\x99\x88\xe5\xa4\xa7\xe6\x96\x87', 'phone': '13800138000'}}",
        '{"address": "文昌花园3栋2单元501室"}'.encode(),
        '{"address": "东海路46号501室"}'.encode(),
        '{"address": "东海路46\\"号\\"501室"}'.encode(),
        '{"住址":"阳光大厦501"}'.encode(),
        "{'address': '凤凰苑12-3-501', 'x': 1}".encode(),
        '{"address": "凤凰苑12－3－５０１'.encode(),
    ],
)
def test_no_spelling_of_a_refused_payload_names_anybody(raw: bytes) -> None:
    payload = redacted_payload(raw)
    readable = "".join(sign for sign in payload if sign.isalnum())
    for secret in (
        "13800138000",
        "1380013",
        "１３８",
        "u200b",
        "uff1",
        "陈大文",
        "u9648",
        "J12345",
        "501",
        "５０１",
    ):
        assert secret not in readable, payload


@pytest.mark.parametrize("kept", range(1, 18))
@pytest.mark.parametrize(
    ("before", "filler", "written"),
    [
        ("", "y", "{}"),
        ("999999195003120018," * 20, "y", "{}"),  # marks are shorter than what they replace
        (f'"name": "{"x" * 100}",' * 10, "y", "{}"),
        (f'"name": "{"x" * 1_000}",' * 10, "y", "{}"),
        ("", "\\u0079", "\\u003{}"),  # six bytes a character: fewer are left than are kept
    ],
)
def test_a_number_across_the_cut_of_a_payload_is_not_left_in_half(
    before: str, filler: str, written: str, kept: int
) -> None:
    number = "999999195003120018"
    cuts = (PAYLOAD_CHARACTERS, PAYLOAD_CHARACTERS + 128, PAYLOAD_CHARACTERS + 2_048)
    for end in (*cuts, 4 * (PAYLOAD_CHARACTERS + 128)):
        spelled = [written.format(digit) for digit in number]
        room = end - len(before) - len(spelled[0]) * kept
        raw = f"{before}{filler * (room // len(filler))}{''.join(spelled)},more".encode() + b"z" * 80_000
        payload = redacted_payload(raw)
        assert re.search(r"[0-9]", payload) is None, (end, payload[-40:])
        assert 10_000 < len(payload) + len(before) <= PAYLOAD_CHARACTERS + len(before)


def test_a_number_across_the_cut_of_a_header_or_detail_is_not_left_in_half() -> None:
    number = "999999195003120018"
    for before in (3, 83, 90, 99, 475, 485, 499):
        text = "x" * before + number
        _, refused = decoded(
            Record(5, 0, text, b"{}"),
            Record(6, 0, None, b"{}", "7" * (before % 20) + number),
            record(7, event(1, event_type=text)),
            record(8, event(2) | {text: 1}),
        )
        assert refused.height == 4
        assert "99999" not in repr(refused.select("detail", "content_type", "payload").rows())


def test_what_is_not_personal_in_a_refused_payload_stays() -> None:
    text = '{"event_id": "e-1", "description": "路灯不亮 12345", "address": "江华路12号", "lon": 113.078}'
    for raw in (text.encode(), text.encode("utf-16-be"), json.dumps({"a": text}).encode()[7:-2]):
        assert "路灯不亮 12345" in redacted_payload(raw)
    assert redacted_payload(text.encode()) == text


def test_an_address_in_a_refused_payload_keeps_its_building() -> None:
    for address, kept in (("文昌花园3号楼旁王家", "文昌花园3号楼"), ("东海路46号501室", "东海路46号")):
        assert redacted_payload(f'{{"address": "{address}", "n": 1}}'.encode()) == (
            f'{{"address": "{kept}", "n": 1}}'
        )


def test_headers_of_a_quarantined_record_name_nobody() -> None:
    number = "999999195003120018"
    _, refused = decoded(
        Record(5, 0, f"text/{number}", b"{}"),
        Record(6, 0, None, b"{}", number),
        Record(7, 0, f"x{number}", b""),
    )
    assert refused.height == 3
    assert number not in repr(refused.to_dicts())


def test_hashes_are_the_same_in_every_process() -> None:
    rows, _ = decoded(record(0, event(1)))
    assert rows.select("id_hi", "id_lo").row(0) == (ID_HI, ID_LO)
    assert rows["content_hash"][0] == CONTENT


def test_a_content_hash_does_not_depend_on_the_rows_beside_it() -> None:
    """Columns that no row of a block fills are left out of the work, not of the text."""
    events = [
        event(1),
        event(2, title="x", attributes={"reason": "y", "rating": 3}),
        event(3, organisation={"name": "z"}, photos=[{"sha256": "0" * 64}]),
        event(4, persons=[{"role": "subject", "key": "k"}], submission_id="s"),
    ]
    together, _ = decoded(record(0, *events))
    alone = [decoded(record(0, one))[0]["content_hash"][0] for one in events]
    assert together["content_hash"].to_list() == alone
    assert len(set(alone)) == len(events)


def test_content_hash_sees_what_the_client_sent_and_nothing_else() -> None:
    first = datetime(2026, 5, 1, 4, 3, tzinfo=UTC)
    later = datetime(2026, 5, 2, tzinfo=UTC)
    rows, _ = decoded(
        record(0, event(1), received=first),
        record(1, event(1), received=later),
        record(2, event(1, description="别的"), received=first),
        record(3, event(1, title=""), received=first),
    )
    hashes = rows["content_hash"].to_list()
    assert hashes[0] == hashes[1]
    assert len({hashes[0], hashes[2], hashes[3]}) == 3
