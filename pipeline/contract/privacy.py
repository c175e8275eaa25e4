"""Personal data stops here: pseudonyms of identity numbers and phones, masks, redaction of free text.

Rules: domain model, section 9. A pseudonym is HMAC-SHA-256 over a domain word and the normalised value; a
plain hash would not do, since all mobile numbers can be tried in seconds. Nothing here logs a value.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from copy import copy
from datetime import date
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

from pipeline.contract.secret import load_secret

_PERSON: Final = b"gridpipe:person:"
_PHONE: Final = b"gridpipe:phone:"
#: No number: its digest tells two secrets apart.
_CHECK: Final = b"gridpipe:key-check"
_FINGERPRINT_DIGITS: Final = 16

_SHA256_BLOCK: Final = 64
#: ASCII but letters, digits and the line break: a number in a key may be spelled with any of it.
_KEY_SIGNS: Final = bytes(code for code in range(128) if not chr(code).isalnum() and code != 0x0A)
_AS_DIGITS: Final = bytes.maketrans(b"123456789", b"000000000")
_MANY_DIGITS: Final = b"0" * 11

_WEIGHTS: Final = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
#: Digits of an identity number of the first generation.
_OLD_LENGTH: Final = 15
_CHECK_DIGITS: Final = "10X98765432"
#: The digits' values for the sum of a bank card, and those of every second one.
_SINGLE: Final = bytes.maketrans(b"0123456789", bytes(range(10)))
_DOUBLE: Final = bytes.maketrans(b"0123456789", bytes((0, 2, 4, 6, 8, 1, 3, 5, 7, 9)))

#: One character for one, so that positions in the folded text are positions in the original.
_FOLD: Final = str.maketrans(
    {
        **{chr(0xFF10 + digit): str(digit) for digit in range(10)},
        **{chr(0xFF21 + letter): chr(0x41 + letter) for letter in range(26)},
        **{chr(0xFF41 + letter): chr(0x41 + letter) for letter in range(26)},
        **{chr(0x61 + letter): chr(0x41 + letter) for letter in range(26)},
        "\u3000": " ",
        **dict.fromkeys("\uff0d\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
        **dict.fromkeys("\u00b7\uff0e\u30fb\uff65\u2022", "."),
        **dict(zip("\uff0b\uff08\uff09\uff0c\uff1a\uff0f\uff3f", "+(),:/_", strict=True)),
    }
)
#: What people put between digits, characters without width and undecodable ones included; at most four.
_GAP_SIGNS: Final = (
    r"\s.\u00ad\u034f\u061c\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u20e3"
    r"\ufe00-\ufe0f\ufeff\ufff9-\ufffd\-"
)
_GAP: Final = f"[{_GAP_SIGNS}]{{0,4}}"
#: Signs that also stand between amounts, times and dates: only where checksum or grouping tells a number.
_WIDE_SIGNS: Final = rf"_/(),:{_GAP_SIGNS}"
_ANY: Final = f"[{_WIDE_SIGNS}]{{0,4}}"
#: The region and the day of birth, 1800 to 2199: a look for it in Python takes twenty times as long.
_BORN: Final = (
    rf"[1-9](?:{_ANY}[0-9]){{5}}{_ANY}(?:1{_ANY}[89]|2{_ANY}[01])(?:{_ANY}[0-9]){{2}}"
    rf"{_ANY}(?:0{_ANY}[1-9]|1{_ANY}[0-2]){_ANY}[0-3]{_ANY}[0-9]"
)
#: In texts anywhere, even within longer runs of digits: date and checksum tell it.
_ID: Final = re.compile(rf"{_BORN}(?:{_ANY}[0-9]){{3}}{_ANY}[0-9X]")
#: In ids not within longer numbers: serial numbers would be refused by chance.
_ID_IN_ID: Final = re.compile(rf"(?<![0-9]){_BORN}(?:{_ANY}[0-9]){{3}}{_ANY}(?:X|[0-9](?![0-9]))")
#: Longest first: a short number may follow the card's.
_CARDS: Final = tuple(
    re.compile(rf"(?<![0-9])[1-9](?:{_GAP}[0-9]){{{length - 1}}}(?![0-9])") for length in (19, 18, 17, 16)
)
_PREFIX: Final = rf"(?:(?:\+|00?)?86{_ANY})?0?"
_GROUPED: Final = f"1[3-9][0-9][{_WIDE_SIGNS}]{{1,4}}[0-9]{{4}}[{_WIDE_SIGNS}]{{1,4}}[0-9]{{4}}"
#: Of one's own, in groups of 3, 4 and 4 with any signs between them, or several without anything between.
_MOBILE: Final = re.compile(
    rf"(?<![0-9]){_PREFIX}(?:1{_GAP}[3-9](?:{_GAP}[0-9]){{9}}|{_GROUPED}|(?:1[3-9][0-9]{{9}}){{2,3}})(?![0-9])"
)
#: In ids: in one piece, or in groups of 3, 4 and 4.
_MOBILE_IN_ID: Final = r"(?:(?:00?)?86[._/-]?)?0?1[3-9][0-9](?:[0-9]{8}|[._/-][0-9]{4}[._/-]?[0-9]{4})"
MOBILE_IN_ID: Final = re.compile(f"(?<![0-9]){_MOBILE_IN_ID}(?![0-9])")
#: A quick, generous look for either in a whole column of ids; polars takes it, too. Firms' credit codes have
#: as many digits, and no day of birth.
ID_CANDIDATE: Final = rf"(?:^|[^0-9]){_MOBILE_IN_ID}(?:[^0-9]|$)|{_BORN}(?:{_ANY}[0-9]){{3}}"
_HEX_LETTERS: Final = frozenset("ABCDEF")
_HEX_TOKEN: Final = re.compile("[0-9A-F-]+")
_PROVINCES: Final = "京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼"
_SERIAL: Final = "[A-HJ-NP-Z0-9]"
#: With letters right after it (a type of car) only where a digit ends it.
_PLATE: Final = re.compile(
    rf"[{_PROVINCES}]{_ANY}[A-Z]{_ANY}(?:"
    rf"(?:(?:{_SERIAL}{_ANY}){{5}}{_SERIAL}|(?:{_SERIAL}{_ANY}){{4}}[A-HJ-NP-Z0-9挂学警港澳领使])(?![A-Z0-9])"
    rf"|(?:{_SERIAL}{_ANY}){{4}}(?:应急|[0-9](?![0-9]))|[DF](?:{_ANY}[0-9]){{5}}(?![0-9]))"
    rf"|WJ{_ANY}[{_PROVINCES}]{_ANY}(?:[0-9]{_ANY}){{4}}[0-9A-Z](?![0-9])"
)
#: A quick, generous look for texts that may hold any of the above: eleven digits close together, or what a
#: plate begins with. One after the other they take less time than as one expression.
_DIGIT: Final = "[0-9\uff10-\uff19]"
_RAW_GAP_SIGNS: Final = rf"{_GAP_SIGNS}\u00b7\u2010-\u2015\u2022\u2212\u3000\u30fb\uff0d\uff0e\uff65"
_RAW_SIGNS: Final = rf"_/(),:{_RAW_GAP_SIGNS}\uff08\uff09\uff0c\uff0f\uff1a\uff3f"
_RAW_GAP: Final = f"[{_RAW_SIGNS}]{{0,4}}"
#: With the wider signs only what begins with six digits, or is grouped 3-4-4: dates end here.
_DIGITS_CANDIDATE: Final = (
    rf"{_DIGIT}(?:(?:[{_RAW_GAP_SIGNS}]{{0,4}}{_DIGIT}){{10}}|{_DIGIT}{{5}}(?:{_RAW_GAP}{_DIGIT}){{11}}"
    rf"|{_DIGIT}{{2}}{_RAW_GAP}{_DIGIT}{{4}}{_RAW_GAP}{_DIGIT}{{4}})"
)
_PLATE_CANDIDATE: Final = rf"[{_PROVINCES}]{_RAW_GAP}[0-9A-Za-z\uff10-\uff19\uff21-\uff3a\uff41-\uff5a]"
_CANDIDATES: Final = (re.compile(_DIGITS_CANDIDATE), re.compile(_PLATE_CANDIDATE))
#: The same look for a whole column: polars' expressions take it as it is.
CANDIDATE: Final = f"{_DIGITS_CANDIDATE}|{_PLATE_CANDIDATE}"
#: Joins texts for one look at all of them; no candidate reaches across it.
_BETWEEN: Final = "\x00"

#: What looks like a number and is none, in one text; what looks like one after that is taken for one. A text
#: of nothing but digits would take a tenth of a second, and the worker would look at it again.
_MOST_TRIES: Final = 40
#: The same of all texts of one request: of many short ones each has tries of its own, a second of them in a
#: megabyte. Eight for each of the most events: order numbers are many, and are told from cards one by one.
MOST_TRIES_OF_A_REQUEST: Final = 40_000

#: Characters of the longest spelling of a number, and more: so far beyond a cut one looks to see whole what
#: crosses it.
CUT_MARGIN: Final = 128

ID_MARK, CARD_MARK, PHONE_MARK, PLATE_MARK = "[身份证号]", "[银行卡号]", "[手机号]", "[车牌号]"

_COMPOUND_SURNAMES: Final = frozenset(
    (
        "欧阳", "太史", "端木", "上官", "司马", "东方", "独孤", "南宫", "万俟", "闻人", "夏侯",
        "诸葛", "尉迟", "公羊", "赫连", "澹台", "皇甫", "宗政", "濮阳", "公冶", "太叔", "申屠",
        "公孙", "慕容", "仲孙", "钟离", "长孙", "宇文", "司徒", "鲜于", "司空", "令狐",
    )
)  # fmt: skip
#: Traditional characters, too; one for one as in _FOLD.
_ADDRESS_FOLD: Final[dict[int, int | str]] = {**_FOLD, **str.maketrans("棟號樓單層戶廈＃", "栋号楼单层户厦#")}
_HAN: Final = "一二三四五六七八九十百零〇"
_FLAT: Final = "(?:(?:(?<![0-9A-Z])[A-Z]{0,2}|(?<![0-9]))[0-9]{1,8}[A-Z]?|(?<![A-Z])[A-Z])"
_SEPARATOR: Final = r"[\s,、(-]{0,4}"
#: What follows a distance, a road, another house or building, so that the number before it is no room.
_NO_ROOM: Final = (
    "(?![0-9]|[A-Z]?(?:[号#米多余M路街巷弄线村队组社栋幢座年亩]|公里|千米|KM|[国省县乡]道|公交))"
)
_ROOM_NUMBER: Final = f"[A-Z]?[0-9]{{3,4}}[A-Z]?{_NO_ROOM}"
#: In a folded address; the match ends where the building does. No part can make it slow: each is bounded.
_BUILDING_END: Final = re.compile(
    # unit or room, whatever stands before it
    rf"(?={_FLAT} ?(?:单元|室|房(?![产屋地管车租东改间]))|[0-9]{{3,4}}号[室房]"
    rf"|[{_HAN}]{{1,5}}(?:单元|室)|[{_HAN}]{{3,5}}房)"
    # a numbered building, and nothing but unit, floor and room up to the end, or a room and then whatever
    rf"|(?:[0-9A-Z甲乙丙丁东南西北中一二三四五六七八九十] ?(?:栋|幢|座|号楼)|[0-9] ?#楼?)"
    rf"(?=[0-9A-Z{_HAN}\s,、()单元梯层楼室房户号-]{{0,100}}\Z"
    rf"|{_SEPARATOR}(?:[0-9A-Z{_HAN}-]{{1,6}} ?(?:单元|[梯层楼室房户])|{_ROOM_NUMBER}))"
    # the number of a house, and floor or room
    rf"|[0-9{_HAN}] ?号(?:之[0-9{_HAN}]{{1,3}})?院?"
    rf"(?={_SEPARATOR}(?:(?:{_FLAT}|[{_HAN}]{{1,4}}) ?(?:单元|[梯层楼室房户])"
    rf"|[0-9]{{1,2}}-[0-9]{{1,4}}{_NO_ROOM}|{_ROOM_NUMBER}))"
    # building, unit and room with hyphens; not the kilometre of a road
    rf"|(?<![0-9A-Z-])(?:(?!K)[A-Z]?[0-9]{{1,3}}[A-Z]?|[A-Z])"
    rf"(?= ?- ?[0-9]{{1,2}} ?- ?[0-9]{{3,4}}(?![0-9-])| ?- ?[0-9]{{3,4}}{_NO_ROOM}(?!-[0-9]))"
    # a building's name
    rf"|(?:大厦|大楼|公寓|商厦|广场|中心|商场|市场)"
    rf"(?={_SEPARATOR}(?:{_FLAT}|[{_HAN}]{{1,3}}) ?[楼层](?![台梯]))"
    rf"|[厦楼寓舍苑园庭阁轩座邨](?={_SEPARATOR}{_ROOM_NUMBER})"
)
#: A quick, generous look for addresses with more than a building, as written; polars takes it, too.
ROOM_CANDIDATE: Final = (
    rf"[栋幢棟座楼樓室房单單层層#＃]|{_DIGIT}{{3}}"
    rf"|[号號](?s:.){{0,8}}[0-9A-Za-z\uff10-\uff19\uff21-\uff3a\uff41-\uff5a{_HAN}]"
)
_ROOMS: Final = re.compile(ROOM_CANDIDATE)


# --- identity and phone numbers


def is_id_number(text: str) -> bool:
    """Whether `text` is an 18-character citizen identity number: a date in it and the checksum hold."""
    if len(text) != 18 or not text.isascii() or not text[:17].isdigit():
        return False
    total = sum(weight * int(digit) for weight, digit in zip(_WEIGHTS, text, strict=False))
    if _CHECK_DIGITS[total % 11] != text[17].upper():
        return False
    try:
        born = date(int(text[6:10]), int(text[10:12]), int(text[12:14]))
    except ValueError:
        return False
    return 1850 <= born.year <= 2100


def is_mobile(text: str) -> bool:
    return len(text) == 11 and text.isascii() and text.isdigit() and text[0] == "1" and text[1] >= "3"


def normalise_id(number: str) -> str:
    """One spelling per identity number: full-width to ASCII, separators out, upper case, 15 digits to 18.

    Documents of other kinds (passport, permit) are folded the same way and keep their length.
    """
    folded = number.upper()
    if not (folded.isascii() and folded.isalnum()):
        folded = _bare(unicodedata.normalize("NFKC", folded))
    if len(folded) == _OLD_LENGTH and folded.isascii() and folded.isdigit():
        longer = f"{folded[:6]}19{folded[6:]}"
        total = sum(weight * int(digit) for weight, digit in zip(_WEIGHTS, longer, strict=True))
        return longer + _CHECK_DIGITS[total % 11]
    return folded


def _normalised(numbers: Sequence[str]) -> list[bytes]:
    """`normalise_id` of each number, together where all are plainly spelled."""
    spelled = "\n".join(numbers).upper().encode("utf-8", "replace").split(b"\n")
    plain = len(spelled) == len(numbers) and b"".join(spelled).isalnum()  # of bytes: ASCII alone
    if plain and _OLD_LENGTH not in map(len, spelled):
        return spelled
    return [normalise_id(number).encode("utf-8", "replace") for number in numbers]


def normalise_phone(phone: str) -> str:
    """Digits only, full-width to ASCII, the country prefix +86 or 0086 of a mobile number left out."""
    digits = phone
    if not (digits.isascii() and digits.isdigit()):
        digits = "".join(sign for sign in unicodedata.normalize("NFKC", phone) if "0" <= sign <= "9")
    for prefix in ("0086", "86"):
        if digits.startswith(prefix) and is_mobile(digits.removeprefix(prefix)):
            return digits.removeprefix(prefix)
    return digits


def is_personal_number(text: str) -> bool:
    """Whether the whole of `text` is an identity or mobile number."""
    return is_mobile(text) or is_id_number(text)


def may_hold_number(keys: str) -> bool:
    """Whether an id, key or code may hold an identity or mobile number. keys : one, or several in lines."""
    if len(keys) < len(_MANY_DIGITS):
        return False
    return not keys.isascii() or _MANY_DIGITS in keys.encode().translate(_AS_DIGITS, _KEY_SIGNS)


def holds_personal_number(text: str) -> bool:
    """Whether an id, key or code holds an identity number anywhere, or a mobile number of its own in it.

    Digits beside a mobile number make it another number (counters, times), and so does a long hexadecimal
    token around it: ids that machines make would be refused by chance.
    """
    if not may_hold_number(text):
        return False
    folded, position = text.translate(_FOLD), 0
    if any(not _made_by_machine(folded, found) for found in MOBILE_IN_ID.finditer(folded)):
        return True
    while found := _ID_IN_ID.search(folded, position):
        if is_id_number(_bare(found[0])):
            return True
        position = found.start() + 1
    return False


def _made_by_machine(folded: str, mobile: re.Match[str]) -> bool:
    """Whether what looks like a mobile number in an id is part of a UUID or a long hexadecimal token."""
    start, end = mobile.span()
    plain = mobile[0].isdigit() and mobile[0][0] == ("8" if len(mobile[0]) == 13 else "1")
    if plain and not (folded[start - 1 : start] in _HEX_LETTERS or folded[end : end + 1] in _HEX_LETTERS):
        return False
    for token in _HEX_TOKEN.finditer(folded):
        if token.start() <= start and end <= token.end():
            return len(_bare(token[0])) >= 16 and not _bare(token[0]).isdigit()
    return False


def shown_id(text: str) -> str:
    """An id for a message: what holds a personal number is not repeated, not even to who asked for it."""
    return "this id" if holds_personal_number(text) else text


# --- masks and redaction


def _bare(text: str) -> str:
    return "".join(filter(str.isalnum, text))


def _luhn(digits: str) -> bool:
    codes = digits.encode()
    return (sum(codes[-1::-2].translate(_SINGLE)) + sum(codes[-2::-2].translate(_DOUBLE))) % 10 == 0


class Tries:
    """What the texts of one request have left of `MOST_TRIES_OF_A_REQUEST`. Used on one thread."""

    __slots__ = ("left",)

    def __init__(self, left: int = MOST_TRIES_OF_A_REQUEST) -> None:
        self.left = left


def _spans(folded: str, shared: Tries | None) -> list[tuple[int, int, str]]:
    """(start, end, mark) of personal numbers in the folded text, in order, none overlapping."""
    found: list[tuple[int, int, str]] = []
    tries = 0
    most = _MOST_TRIES if shared is None else min(_MOST_TRIES, shared.left)

    def take(pattern: re.Pattern[str], mark: str, holds: Callable[[str], bool] | None = None) -> None:
        nonlocal folded, tries
        position = 0
        while match := pattern.search(folded, position):
            start, end = match.span()
            if holds is None or tries >= most or holds(_bare(match[0])):
                found.append((start, end, mark))
                # what was found is no neighbour of a number run together with it
                folded = folded[:start] + _BETWEEN * (end - start) + folded[end:]
                position = end
            else:
                tries += 1
                position = start + 1

    take(_ID, ID_MARK, is_id_number)
    for card in _CARDS:
        take(card, CARD_MARK, _luhn)
    take(_MOBILE, PHONE_MARK)
    take(_PLATE, PLATE_MARK)
    if shared is not None:
        shared.left -= tries
    return sorted(found)


def redact(text: str, tries: Tries | None = None) -> str:
    """`text` with identity numbers (checksum), bank cards (Luhn), mobile numbers and plates as marks.

    Full-width digits and separators between digits hide no number. Text without one comes back as it is,
    unless so much of it looks like numbers that the rest is not told apart, or of what was redacted before it
    with the same `tries`.

    >>> redact("联系人 138-0000-1234")
    '联系人 [手机号]'
    """
    return redact_head(text, len(text), tries=tries)


def redact_head(text: str, most: int, *, cut: bool = False, tries: Tries | None = None) -> str:
    """At most `most` characters: the first ones of `text`, redacted as by `redact`. Of a number across their
    end no half is left, which nothing would recognise; marks are shorter than numbers, so that cutting first
    and redacting then leaves one.

    cut : `text` was cut before, so that its end may be half a number: its last CUT_MARGIN characters are not
    kept.
    """
    head = text[: most + CUT_MARGIN]
    end = len(head) - CUT_MARGIN if cut or len(head) < len(text) else len(head)
    end = min(max(end, 0), most)
    if not any(candidate.search(head) for candidate in _CANDIDATES):
        return head[:end]
    parts: list[str] = []
    position = 0
    for start, stop, mark in _spans(head.translate(_FOLD), tries):
        if start >= end:
            break
        parts += (head[position:start], mark)
        position = stop
    parts.append(head[position:end])
    return "".join(parts)[:most]


def first_line(error: BaseException, most: int = 300) -> str:
    """The first line of an error's text, redacted: ClickHouse quotes the values that it refuses.

    Redacted before it is cut: a line break, too, may stand in a number.
    """
    return (redact_head(str(error).strip(), most).splitlines() or [type(error).__name__])[0]


def clean_texts(texts: Sequence[str], tries: Sequence[Tries] | None = None) -> Sequence[str]:
    """Each text in NFC and redacted; what nothing is to be done to costs one look at all texts together.

    tries : of each text's request, same length.
    """
    joined = _BETWEEN.join(texts)
    if not unicodedata.is_normalized("NFC", joined):
        texts = [unicodedata.normalize("NFC", text) for text in texts]
        joined = _BETWEEN.join(texts)
    starts = [found.start() for candidate in _CANDIDATES for found in candidate.finditer(joined)]
    if not starts:
        return texts
    ends = list(accumulate(len(text) + 1 for text in texts))
    clean = list(texts)
    for at in sorted({bisect_right(ends, start) for start in starts}):
        clean[at] = redact(texts[at], None if tries is None else tries[at])
    return clean


def mask_name(name: str) -> str:
    """The surname and two stars, whatever the length: `陈**`, `欧阳**`.

    >>> mask_name("陈大文"), mask_name("欧阳小明"), mask_name("  ")
    ('陈**', '欧阳**', '**')
    """
    name = name.strip()
    surname = name[:2] if len(name) > 2 and name[:2] in _COMPOUND_SURNAMES else name[:1]
    return f"{'' if surname.isdigit() else surname}**"


def mask_phone(phone: str) -> str:
    """`138****1234`; of other numbers only the last two digits stay.

    >>> mask_phone("+86 138 0000 1234"), mask_phone("0750-3333333")
    ('138****1234', '****33')
    """
    digits = normalise_phone(phone)
    if is_mobile(digits):
        return f"{digits[:3]}****{digits[-4:]}"
    return "****" + (digits[-2:] if len(digits) > 5 else "")


def cut_address(address: str) -> str:
    """The address down to its building or house: unit, floor and room, and what follows, are left out. Empty
    where it begins with them.

    >>> cut_address("礼乐街道文昌花园3栋2单元501室"), cut_address("江南街道东海路46号501室")
    ('礼乐街道文昌花园3栋', '江南街道东海路46号')
    """
    while _ROOMS.search(address) and (found := _BUILDING_END.search(address.translate(_ADDRESS_FOLD))):
        end = len(address[: found.end()].rstrip(" \t\n\u3000,，、(（-－"))
        if end == len(address):
            break
        # once more: what is last now may be read otherwise
        address = address[:end]
    return address


# --- pseudonyms


def _version_of(path: Path) -> int | None:
    number = path.suffix.removeprefix(".v")
    return int(number) if number.isdigit() else None


def secret_versions(path: Path) -> dict[int, Path]:
    """The secrets beside `path` by version, in order."""
    files = path.parent.glob(f"{path.stem}.v*") if path.parent.is_dir() else ()
    numbered = [(version, file) for file in files if (version := _version_of(file)) is not None]
    return dict(sorted(numbered))


def active_version(path: Path) -> int:
    """The version that new pseudonyms are made under."""
    pointer = path.with_suffix(".active")
    if pointer.exists() and (text := pointer.read_text().strip()).isdigit():
        return int(text)
    return _version_of(path) or 1


class Privacy:
    """Pseudonyms under the secret in force. `key_version` is stored beside each, so that keys can be rotated.

    others : secrets of other versions that still exist, for look-ups of a person across versions.
    """

    def __init__(
        self, secret: bytes, key_version: int = 1, others: Mapping[int, bytes] | None = None
    ) -> None:
        inner, self._outer = _hmac_state(secret, 0x36), _hmac_state(secret, 0x5C)
        self._person, self._phone, self._bare = inner, inner.copy(), inner.copy()
        self._person.update(_PERSON)
        self._phone.update(_PHONE)
        self.key_version = key_version
        self._others = dict(others or {})

    @classmethod
    def load(cls, path: Path, create: bool) -> Privacy:
        """Read the secrets beside `path` (`…/pseudonym.v<version>`); with `create`, make the first.

        In force is the version that `…/pseudonym.active` names; without that file, `path`.
        Raises ConfigurationError where a file is missing, readable by others, short or a known placeholder.
        """
        found = secret_versions(path)
        if not found:
            return cls(load_secret(path, create=create), _version_of(path) or 1)
        active = active_version(path)
        if active not in found:
            load_secret(path.with_suffix(f".v{active}"), create=False)  # says what to do
        secrets = {version: load_secret(file, create=False) for version, file in found.items()}
        return cls(secrets.pop(active), active, secrets)

    @property
    def versions(self) -> tuple[int, ...]:
        """Every version that still has its secret, in order."""
        return tuple(sorted({self.key_version, *self._others}))

    @property
    def fingerprints(self) -> dict[int, str]:
        """16 hexadecimal digits for each version: the same for the same secret, with no way back to it."""
        return {version: self.under(version)._fingerprint() for version in self.versions}

    def _fingerprint(self) -> str:
        return self._digest(self._bare, [_CHECK])[0][:_FINGERPRINT_DIGITS]

    def without(self, versions: Collection[int]) -> Privacy:
        """The same without some of the versions that are not in force."""
        if not any(version in versions for version in self._others):
            return self
        kept = copy(self)
        kept._others = {
            version: secret for version, secret in self._others.items() if version not in versions
        }
        return kept

    def under(self, version: int) -> Privacy:
        """Pseudonyms under one of `versions`."""
        return self if version == self.key_version else Privacy(self._others[version], version)

    def keys_of(self, *, id_numbers: Iterable[str] = (), phones: Iterable[str] = ()) -> dict[str, int]:
        """Every pseudonym, under every version, of a person's numbers, and its version."""
        found: dict[str, int] = {}
        ids, mobiles = list(id_numbers), list(phones)
        for version in self.versions:
            privacy = self.under(version)
            found |= dict.fromkeys(map(privacy.person_key, ids), version)
            found |= dict.fromkeys(map(privacy.phone_key, mobiles), version)
        return found

    def _digest(self, inner: Any, values: Sequence[bytes]) -> list[str]:
        """HMAC-SHA-256 of each value; inner : the hash's state after secret and domain.

        hmac.digest takes twice as long: it begins with the secret each time.
        """
        found = []
        for value in values:
            first, second = inner.copy(), self._outer.copy()
            first.update(value)
            second.update(first.digest())
            found.append(second.hexdigest())
        return found

    def person_key(self, id_number: str) -> str:
        """64 hexadecimal digits for a person's identity number, in whatever spelling it comes."""
        return self._digest(self._person, [normalise_id(id_number).encode("utf-8", "replace")])[0]

    def person_keys(self, id_numbers: Iterable[str | None]) -> list[str | None]:
        """`person_key` of each number that is given."""
        numbers = list(id_numbers)
        given = [number for number in numbers if number is not None]
        keys: list[str | None] = [*self._digest(self._person, _normalised(given))]
        if len(given) == len(numbers):
            return keys
        each = iter(keys)
        return [None if number is None else next(each) for number in numbers]

    def phone_key(self, phone: str) -> str:
        return self._digest(self._phone, [normalise_phone(phone).encode("utf-8", "replace")])[0]

    def clean_key(self, key: str) -> str:
        """A source's own key as it is; if it is itself an identity or mobile number, its pseudonym."""
        if is_mobile(normalise_phone(key)) and len(key) <= 20 and not any(c.isalpha() for c in key):
            return self.phone_key(key)
        if holds_personal_number(key):
            return self.person_key(key)
        return key

    def clean_keys(self, keys: Sequence[str | None]) -> Sequence[str | None]:
        """`clean_key` of each key; only those with the digits of a mobile number are looked at one by one."""
        if not may_hold_number("\n".join([key for key in keys if key])):
            return keys
        return [self.clean_key(key) if key is not None and may_hold_number(key) else key for key in keys]


def _hmac_state(secret: bytes, pad: int) -> Any:
    """SHA-256 after the inner (0x36) or outer (0x5C) block of HMAC, RFC 2104; to be copied per message."""
    if len(secret) > _SHA256_BLOCK:
        secret = hashlib.sha256(secret).digest()
    return hashlib.sha256(bytes(byte ^ pad for byte in secret.ljust(_SHA256_BLOCK, b"\0")))
