"""Personal numbers: recognised, normalised, replaced; and none left in what the gateway sends on."""

from __future__ import annotations

import doctest
import os
import re
import time
import unicodedata
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.contract import privacy
from pipeline.contract.event import Actor, Event, Location, Organisation, Person
from pipeline.contract.privacy import (
    Privacy,
    Tries,
    clean_texts,
    cut_address,
    first_line,
    holds_personal_number,
    is_id_number,
    mask_name,
    mask_phone,
    normalise_id,
    normalise_phone,
    redact,
)
from pipeline.contract.rows import to_frame
from pipeline.errors import ConfigurationError
from pipeline.reference.validate import _quote

PRIVACY = Privacy(bytes(range(1, 33)))
#: Invented persons: the region 999999 is not assigned.
ID_1 = "99999919900101018X"
ID_2 = "999999195003120018"


def _with_checksum(first17: str) -> str:
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    return first17 + "10X98765432"[sum(w * int(d) for w, d in zip(weights, first17, strict=True)) % 11]


ids = st.builds(
    lambda day, number: _with_checksum(f"999999{day:%Y%m%d}{number:03d}"),
    st.dates(datetime(1920, 1, 1).date(), datetime(2020, 12, 31).date()),  # noqa: DTZ001
    st.integers(0, 999),
)

mobiles = st.from_regex(r"1[3-9][0-9]{9}", fullmatch=True)


def test_docstrings_hold() -> None:
    assert doctest.testmod(privacy).failed == 0


def test_published_example_of_the_standard_is_an_id_number() -> None:
    assert is_id_number("11010519491231002X")  # GB 11643-1999
    assert is_id_number("11010519491231002x")
    assert not is_id_number("110105194912310021")
    assert not is_id_number(_with_checksum("11010519491331002"))  # month 13


@given(ids)
def test_every_spelling_of_an_id_number_gives_one_key(number: str) -> None:
    key = PRIVACY.person_key(number)
    wide = "".join(chr(ord(sign) + 0xFEE0) for sign in number)
    spellings = [number.lower(), f" {number[:6]} {number[6:14]}-{number[14:]} ", wide, wide.lower()]
    assert {PRIVACY.person_key(spelling) for spelling in spellings} == {key}
    assert len(key) == 64
    assert number not in key


def test_old_form_of_15_digits_is_the_same_person() -> None:
    assert normalise_id("999999900101018") == normalise_id("99999919900101018X")
    assert PRIVACY.person_keys(["999999900101018", None]) == [PRIVACY.person_key("99999919900101018X"), None]


@pytest.mark.parametrize(
    "phone",
    ["13800001234", "+86 138 0000 1234", "0086-138-0000-1234", "８６１３８００００１２３４", "138 0000 1234"],
)
def test_every_spelling_of_a_phone_gives_one_key(phone: str) -> None:
    assert normalise_phone(phone) == "13800001234"
    assert PRIVACY.phone_key(phone) == PRIVACY.phone_key("13800001234")
    assert mask_phone(phone) == "138****1234"


def test_domains_and_secrets_separate_keys() -> None:
    assert PRIVACY.person_key("13800001234") != PRIVACY.phone_key("13800001234")
    assert PRIVACY.person_key(ID_1) != Privacy(bytes(range(2, 34))).person_key(ID_1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"身份证{ID_1}的老人", "身份证[身份证号]的老人"),
        ("身份证99999919900101018x。", "身份证[身份证号]。"),
        ("９９９９９９１９９００１０１０１８Ｘ", "[身份证号]"),
        ("999999 19900101 018X", "[身份证号]"),
        ("999999-19900101-018X", "[身份证号]"),
        ("99999919900101\u200b018X", "[身份证号]"),
        ("电话13800001234，请联系", "电话[手机号]，请联系"),
        ("138 0000 1234", "[手机号]"),
        ("138-0000-1234", "[手机号]"),
        ("1３8００００12３4", "[手机号]"),
        ("+86 13800001234", "[手机号]"),
        ("008613800001234", "[手机号]"),
        ("13800001234/13900005678", "[手机号]/[手机号]"),
        ("13800001234 13900005678", "[手机号] [手机号]"),
        ("粤J12345违停", "[车牌号]违停"),
        ("粤J·12345", "[车牌号]"),
        ("粤 J D12345 新能源", "[车牌号] 新能源"),
        ("粤Ｊ１２３４５", "[车牌号]"),
        ("粤Z1234港", "[车牌号]"),
        ("卡号6222020200112233440", "卡号6222020200112233440"),  # Luhn fails
        ("卡号6222 0202 0011 2233 446", "卡号[银行卡号]"),
        ("卡号4111111111111111", "卡号[银行卡号]"),
        ("卡号4111-1111-1111-1111", "卡号[银行卡号]"),
        ("4111 1111 1111 1111 123", "[银行卡号] 123"),
        ("4111 1111 1111 1111 12/28", "[银行卡号] 12/28"),
        ("4111111111111111 50元", "[银行卡号] 50元"),
        ("99999919900101018X13800001234", "[身份证号][手机号]"),
        ("1380000123499999919900101018X", "[手机号][身份证号]"),
        ("99999919900101018X0750-3333333", "[身份证号]0750-3333333"),
        ("999999 - 19900101 - 018X", "[身份证号]"),
        ("999999/19900101/018X", "[身份证号]"),
        ("013800001234", "[手机号]"),
        ("08613800001234", "[手机号]"),
        ("1380000123413900005678", "[手机号]"),
        ("138 - 0000 - 1234", "[手机号]"),
        ("138   0000   1234", "[手机号]"),
        ("(138)0000-1234", "([手机号]"),
        ("（138）0000-1234", "（[手机号]"),
        ("138_0000_1234", "[手机号]"),
        ("138/0000/1234", "[手机号]"),
        ("138，0000，1234", "[手机号]"),
        ("138\u20100000\u20111234", "[手机号]"),
        ("138\u20120000\u20151234", "[手机号]"),
        ("138\u00ad0000\u200e1234", "[手机号]"),
        ("1\ufffd3\ufffd8\ufffd0\ufffd0\ufffd0\ufffd0\ufffd1\ufffd2\ufffd3\ufffd4", "[手机号]"),
        *(
            (f"138{sign}0000{sign}1234", "[手机号]")
            for sign in (
                "\u034f\u061c\u180b\u180e\u200b\u200f\u202a\u202d\u202e\u2060\u2061\u2066\u2069\u206f"
                "\ufe0f\ufeff\ufff9"
            )
        ),
        ("138\u202d00001234", "[手机号]"),
        ("\ufe0f\u20e3".join("13800001234"), "[手机号]"),
        ("\u2061".join(ID_1), "[身份证号]"),
        ("粤\u2066J\u206912345", "[车牌号]"),
        ("粤J・12345", "[车牌号]"),
        ("粤J•12345", "[车牌号]"),
        ("粤J：12345", "[车牌号]"),
        ("粤J(12345)", "[车牌号])"),
        ("粤J12345SUV", "[车牌号]SUV"),
        ("粤J12345BYD", "[车牌号]BYD"),
        ("粤JD12345SUV", "[车牌号]SUV"),
        ("粤X1234应急", "[车牌号]"),
        ("WJ粤12345", "[车牌号]"),
    ],
)
def test_personal_numbers_are_redacted(text: str, expected: str) -> None:
    assert redact(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "路灯不亮",
        "网格440704001001003",
        "单元440704001001003-U014",
        "2024-05-06 09:12:30 至 2024-05-07 10:00:00",
        "编号20240506000123",
        "999999199001010181",  # wrong check digit
        "电话0750-3333333",
        "12345热线",
        "粤省事小程序",
        "江门JM12345",
        "面积1234567890平方",
        "电话0750-3333333，0750-3333334",
        "金额1,380,000,123.40元",
        "坐标113.078123,22.578456",
        "113.0781234567, 22.5784567890",
        "15:30:00,2024/5/6",
        "2024/05/06 15:30:00.123",
        "1763769600123",
        "999999900101018",  # fifteen digits: no checksum
        "新COVID19病例",
        "京A座1203室",
        "编号1234567890123456789012345",
        "192.168.100.200:8080",
    ],
)
def test_other_numbers_stay(text: str) -> None:
    assert redact(text) == text


@given(st.text(max_size=40), ids, st.text(max_size=40))
def test_an_id_number_between_other_text_is_found(before: str, number: str, after: str) -> None:
    digits = "0123456789０１２３４５６７８９"
    before, after = before.rstrip(digits + "+ .-·"), after.lstrip(digits + " .-·")
    before = before[:-1] if before and not before[-1].isalpha() else before
    text = f"{before} 号{number}号 {after}"
    assert number not in redact(text)


@settings(deadline=None)  # a busy machine is no fault
@given(st.lists(st.one_of(st.text(max_size=30), ids, st.from_regex(r"1[3-9][0-9]{9}", fullmatch=True))))
def test_texts_are_cleaned_together_as_one_by_one(texts: list[str]) -> None:
    assert list(clean_texts(texts)) == [redact(unicodedata.normalize("NFC", text)) for text in texts]


@pytest.mark.parametrize(
    ("name", "masked"),
    [
        ("陈大文", "陈**"),
        ("欧阳小明", "欧阳**"),
        ("李*", "李**"),
        ("", "**"),
        ("John", "J**"),
        ("13800001234", "**"),
    ],
)
def test_names_are_masked_to_the_surname(name: str, masked: str) -> None:
    assert mask_name(name) == masked


@pytest.mark.parametrize(
    ("address", "kept"),
    [
        ("礼乐街道文昌花园3栋2单元501室", "礼乐街道文昌花园3栋"),
        ("礼乐街道文昌花园3栋501", "礼乐街道文昌花园3栋"),
        ("江华路12号楼 5层 502房", "江华路12号楼"),
        ("文昌花园3栋2单元501室 王五", "文昌花园3栋"),
        ("文昌花园3号楼（501室）", "文昌花园3号楼"),
        ("文昌花园３栋２单元５０１室", "文昌花园３栋"),
        ("文昌花园 3 栋 501", "文昌花园 3 栋"),
        ("江南街道东海路46号501室", "江南街道东海路46号"),
        ("圭峰路12号302房", "圭峰路12号"),
        ("圭峰路12号(302)", "圭峰路12号"),
        ("东海路46号2单元501室", "东海路46号"),
        ("东海路46号之二301", "东海路46号之二"),
        ("东海路46号四楼", "东海路46号"),
        ("东海路46號5樓", "东海路46號"),
        ("东海路46号A座501", "东海路46号A座"),
        ("东海路４６号５０１王五", "东海路４６号"),
        ("农林横路12号2-301", "农林横路12号"),
        ("建设路三十二号201", "建设路三十二号"),
        ("麻三村3巷5号201", "麻三村3巷5号"),
        ("5号院3号楼201", "5号院3号楼"),
        ("文昌花园15棟602室", "文昌花园15棟"),
        ("文昌花园3#楼2单元", "文昌花园3#楼"),
        ("文昌花园3＃501", "文昌花园3＃"),
        ("文昌花园十二栋五零一房", "文昌花园十二栋"),
        ("碧桂园凤凰苑12-3-501", "碧桂园凤凰苑12"),
        ("碧桂园凤凰苑１２－３－５０１", "碧桂园凤凰苑１２"),
        ("凤凰苑12–501室", "凤凰苑12"),
        ("凤凰苑A-3-501", "凤凰苑A"),
        ("丽苑东座1203", "丽苑东座"),
        ("阳光大厦1203室", "阳光大厦"),
        ("阳光大厦 B1203", "阳光大厦"),
        ("阳光大厦3楼", "阳光大厦"),
        ("Vanke501室", "Vanke"),
        ("3座桥旁5栋501室", "3座桥旁5栋"),
        ("501室", ""),
    ],
)
def test_addresses_end_at_the_building(address: str, kept: str) -> None:
    assert cut_address(address) == kept


@pytest.mark.parametrize(
    "address",
    [
        "文昌花园3栋旁的路灯", "文昌花园3栋东侧100米", "江华路12号", "天沙河第三座桥旁", "滘头村委会",
        "地铁2号线", "江华路12号旁200米", "东海路46号100米处", "东海路46号100多米", "东海路46号-48号",
        "东海路146号148号", "东海路46、48号", "100-108号", "东海路46号101路公交站", "G325国道K12-300",
        "325国道边", "麻三村3巷5号", "三堡村5队12号", "胜利新村12号之一", "凤凰苑101号", "万达广场3号门",
        "1号桥", "2号泵房", "双龙大道39号101号铺", "产业园302路", "文昌公园200米", "二房祠堂",
        "五邑中医院1号楼", "迎宾大道中128号", "迎宾大道1200号", "龙榜村三组201县道",
        "文昌花园旁138-0000-1234",
    ],
)  # fmt: skip
def test_what_is_no_room_stays_in_an_address(address: str) -> None:
    assert cut_address(address) == address


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [*"0123456789A- (号栋座楼层室房苑厦路米一二#１－棟號", "单元", "号楼", "大厦", "王五", "\n"]
        ),
        max_size=25,
    ).map("".join)
)
def test_an_address_that_was_cut_stays_as_it_is(address: str) -> None:
    """The worker cuts again what the gateway has cut, and looks only at what may hold a room."""
    cut = cut_address(address)
    assert cut_address(cut) == cut
    assert address.startswith(cut)
    assert cut == address or pl.Series([address]).str.contains(privacy.ROOM_CANDIDATE).item()
    assert cut_address(address + "，3栋501室") != address + "，3栋501室"


def test_ids_with_personal_numbers_are_recognised() -> None:
    assert holds_personal_number(f"r-{ID_1}-2")
    assert holds_personal_number(f"7-{ID_1}")
    assert holds_personal_number("13800001234")
    for text in ("20240506-13800001234", "tel:13800001234", "wx_13800001234", "M8613800001234",
        "138-0000-1234", "138.0000.1234", "013800001234", "a13800001234", "case13800001234", "e-013800001234",
        "e13800001234", "999999_19900101_018X", "999999/19900101/018X", "tel:138-0000-1234", "b13800001234",
        "86-138-0000-1234@qq.com", "138_0000_1234", f"{ID_1}13800001234",
    ):  # fmt: skip
        assert holds_personal_number(text), text
    for text in ("440704001001003", "1763769600", "1763769600123", "20240506-000123-0001",
        "5f3a13800001234bc0ffee12",  # pragma: allowlist secret
        "e-00000013800001234", "550e8400-e29b-41d4-a716-013800001234",
        "550e8400-e29b-41d4-a716-a13800001234", "r2024-05-06T15-30-00", "138000012345678",
    ):  # fmt: skip
        assert not holds_personal_number(text), text


@given(st.uuids(), st.integers(0, 2**64))
def test_ids_that_machines_make_hold_no_mobile_number(made: uuid.UUID, counter: int) -> None:
    assert not holds_personal_number(made.hex)
    assert not holds_personal_number(str(made))
    assert not holds_personal_number(f"e-{counter:020d}")


def test_no_personal_number_reaches_the_frame() -> None:
    numbers = [ID_1, ID_2, "13800001234", "6222020200112233446", "粤J12345", "陈大文"]
    prose = f"{ID_1} 与 {ID_2}，电话 13800001234，卡 6222020200112233446，车 粤J12345"
    common: dict[str, Any] = {
        "event_id": "e-1",
        "source": "12345",
        "event_type": "VOIDED",
        "case_id": "c-1",
        "occurred_at": datetime(2026, 1, 1, tzinfo=UTC),
        "channel": "hotline_12345",
        "matter_code": "DM-01",
        "grid_code": "440704001001003",
        "location": Location(113.1, 22.5, "wgs84", prose),
        "title": prose,
        "description": prose,
        "organisation": Organisation(name=prose),
        "attributes": {
            "reason": prose,
            "level": "13800001234",
            "phone": 13800001234,
            "card": 6222020200112233446,
            "13800001234": ID_1,
        },
    }
    cases = [
        (Actor("citizen", None, ID_1, "13800001234", "陈大文"), [Person("subject", None, ID_2)]),
        (Actor("citizen", ID_1), [Person("party", ID_2)]),
        (Actor("citizen", "13800001234"), [Person("party", "13800001234")]),
        (Actor("citizen", None, None, "+86 13800001234"), None),
        (Actor("citizen", "tel:13800001234"), [Person("party", "wx_13800001234")]),
    ]
    events = [Event(actor=actor, persons=persons, **common) for actor, persons in cases]
    frame = to_frame(
        events, ingested_at=datetime(2026, 1, 1, tzinfo=UTC), request_id="r", backfill=False, privacy=PRIVACY
    )
    dumped = repr(frame.to_dicts())
    for number in numbers:
        assert number not in dumped, number
    person, phone = PRIVACY.person_key(ID_1), PRIVACY.phone_key("13800001234")
    assert frame["actor_key"].to_list()[:4] == [person, person, phone, phone]
    assert frame["persons"].to_list()[0] == [{"key": PRIVACY.person_key(ID_2), "role": "subject"}]
    assert frame["persons"].to_list()[1:4] == [
        [{"key": PRIVACY.person_key(ID_2), "role": "party"}], [{"key": phone, "role": "party"}], []
    ]  # fmt: skip


# --- the secret


def test_secret_is_made_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "secrets" / "pseudonym.v3"
    first = Privacy.load(path, create=True)
    assert path.stat().st_mode & 0o777 == 0o600
    assert first.key_version == 3
    assert Privacy.load(path, create=True).person_key(ID_1) == first.person_key(ID_1)


def test_missing_secret_is_not_replaced_silently(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="restore it"):
        Privacy.load(tmp_path / "pseudonym.v1", create=False)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "at least 32"),
        (b"k" * 31, "at least 32"),
        (b"a" * 64, "placeholder"),
        (b"changeme" * 8, "placeholder"),
        (b"0123456789abcdef" * 4, "placeholder"),
    ],
)
def test_weak_secret_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "pseudonym.v1"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match=reason):
        Privacy.load(path, create=True)


def test_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pseudonym.v1"
    path.write_bytes(os.urandom(48).hex().encode())
    path.chmod(0o640)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        Privacy.load(path, create=True)


@pytest.mark.parametrize(
    "text",
    [
        "3栋" + "a" * 498,
        "3栋" + "a1" * 248 + "！",
        "1号楼" * 1_300 + "!",
        "5号2" * 1_000,
        "A-1-2" * 800,
        "大厦1" * 1_300,
        "1 " * 2_000,
        "-" * 4_000,
        "京" * 4_000,
        "1380000123" * 400,
        "9" * 4_000,
        "19900101" * 500,
        "1." * 2_000,
        "113.0781234567, 22.5784567890 " * 130,
    ],
)
def test_no_text_makes_redaction_slow(text: str) -> None:
    """A request may hold thousands of such texts, and the worker looks at a block of them at once."""
    started = time.thread_time()
    for cleaned in clean_texts([text] * 50):
        redact(cleaned)
        cut_address(text)
    assert time.thread_time() - started < 1.5


def test_what_looks_like_a_number_is_taken_for_one_where_too_much_does() -> None:
    serials = [str(1_000_000_000_000_001 + 10 * number) for number in range(200)]
    several = [number for number in serials if redact(number) == number][:60]
    shown = redact("，".join(several)).split("，")
    assert shown == several[:40] + [privacy.CARD_MARK] * 20
    assert redact("，".join(several[:40])) == "，".join(several[:40])


def test_many_short_texts_of_one_request_share_their_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = 0
    plain = privacy._luhn

    def counted(digits: str) -> bool:
        nonlocal looked
        looked += 1
        return plain(digits)

    monkeypatch.setattr(privacy, "_luhn", counted)
    texts = ["1 2 3 4 5 6 7 8 9 0 " * 2] * 100
    own = Tries(200)
    clean_texts(texts, [own] * len(texts))
    assert looked < 300  # two for each without a budget, and more
    assert own.left <= 0


@pytest.mark.parametrize(
    "number", [ID_1, ID_1.lower(), "6222021234567890128", "4111 1111 1111 1111", "138-0000-1234", "粤J·12345"]
)
def test_no_number_slips_through_where_the_tries_are_spent(number: str) -> None:
    shown = redact(f"见 {number}，谢谢", Tries(0))
    assert re.fullmatch(r"见 \[[^0-9]+\]，谢谢", shown), shown


@settings(deadline=None)
@given(st.text(st.sampled_from("0123456789 -.,/粤J"), min_size=200, max_size=1_000))
def test_what_was_redacted_stays_as_it_is(text: str) -> None:
    assert redact(redact(text)) == redact(text)


@pytest.mark.parametrize("at", range(1, 18))
@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\u2028", "\x0b"])
def test_a_number_across_the_end_of_an_errors_first_line_is_redacted_before_it_is_cut(
    at: int, line_break: str
) -> None:
    number = f"{ID_1[:at]}{line_break}{ID_1[at:]}"
    assert first_line(ValueError(f"Cannot parse {number} as a date\nrest")) == (
        f"Cannot parse {privacy.ID_MARK} as a date"
    )
    assert first_line(ValueError(number + "\nrest")) == privacy.ID_MARK


@pytest.mark.parametrize("before", range(60, 84))
def test_of_a_cell_or_an_error_that_is_cut_no_half_of_a_number_is_shown(before: int) -> None:
    """Marks are shorter than numbers: what lay across the cut moves into what is shown."""
    cell = " ".join([ID_1] * 8)[: before + 80] + " " + ID_2
    for shown in (_quote(cell), first_line(ValueError(f"{cell}\n second line"), 80)):
        assert len(shown) <= 80
        assert not re.search(r"[0-9]{5}", shown), shown
    assert first_line(ValueError(f"{cell}\n second line"), 80) == first_line(ValueError(cell), 80)
    assert first_line(ValueError("Code: 241. too much")) == "Code: 241. too much"
    assert first_line(ValueError()) == "ValueError"
