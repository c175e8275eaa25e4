"""Rows that claim to be the gateway's, cleaned as it cleans them: whoever may write to the topic can write an
Arrow block, and its form says nothing of the personal data in it.

Each look is generous and costs one expression of polars over a column; only what it finds is read one by one.
What the gateway wrote stays as it is.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import orjson
import polars as pl
from numpy.typing import NDArray

from pipeline.contract.privacy import (
    CANDIDATE,
    ROOM_CANDIDATE,
    Privacy,
    holds_personal_number,
    mask_name,
    mask_phone,
    redact,
)
from pipeline.contract.rows import canonical_attributes, shown_address
from pipeline.frames import null_counts

#: Kept in clear, so that none may hold a personal number.
_IDS: Final = (
    "event_id", "source", "case_id", "submission_id", "matter_code", "channel", "organisation_code",
    "primary_case_id", "department", "unit_code", "actor_type", "crs", "request_id",
)  # fmt: skip
_TEXTS: Final = ("title", "description", "organisation_name", "void_reason", "level")
#: Of ids and keys, beside _NOT_ASCII, which finds every other text: eleven digits with anything but letters
#: between them. (With the letters of all scripts it takes a tenth of a second to compile, in each thread.)
_NUMBERS: Final = r"[0-9](?:[\x00-/:-@\[-`{-\x7f]{0,6}[0-9]){10}"
_MASKED_NAME: Final = r"^.{0,2}\*\*$"
_MASKED_PHONE: Final = r"^(?:[0-9]{3})?\*{4}[0-9]{0,4}$"
_NOT_ASCII: Final = r"[^\x00-\x7f]"
_PSEUDONYM: Final = "^[0-9a-f]{64}$"
#: Anything but ranges in which every character is its own NFC, and composes with nothing before it: Latin,
#: general punctuation, Chinese and its signs, whole Hangul, private and full-width forms, pictures.
_MAY_COMPOSE: Final = (
    r"[^\x00-\u02ff\u2002-\u20cf\u3000-\u3029\u3030-\u3098\u309b-\ua66e\uac00-\ud7a3\ue000-\uf8ff\uff00-\uffff"
    r"\U0001f000-\U0001faff]"
)
_UNCLEAN: Final = f"{CANDIDATE}|{_MAY_COMPOSE}"


def cleaned(rows: pl.DataFrame, privacy: Privacy) -> tuple[pl.DataFrame, NDArray[np.bool_]]:
    """The rows with texts in NFC and redacted, names, phones and addresses cut, and numbers as pseudonyms;
    and (n,) True where an id or code of a row, which is kept in clear, holds an identity or mobile number.

    rows : `frames.EVENT`, or wider.
    """
    doubts = _doubts(rows)
    functions: dict[str, Callable[[Any], Any]] = {
        **dict.fromkeys(_TEXTS, _text),
        "attributes": _attributes,
        "address": _address,
        "actor_name": mask_name,
        "actor_phone": mask_phone,
        "actor_key": privacy.clean_key,
    }
    refused = np.zeros(rows.height, bool)
    for name, places in doubts.items():
        if name in functions:
            rows = _mapped(rows, name, places, functions[name])
        else:
            values = rows[name][places].to_list()
            known = {value: holds_personal_number(value) for value in set(values)}
            refused[places] |= np.array([known[value] for value in values], bool)
    return _clean_people(rows, privacy), refused


def _doubts(rows: pl.DataFrame) -> dict[str, NDArray[np.intp]]:
    """Column → numbers of the rows that must be read one by one, where there are any. One query for all."""
    nulls = null_counts(rows)
    held = [name for name in _LOOKS if nulls[name] < rows.height]
    found = rows.select([_LOOKS[name] for name in held])
    return {name: np.flatnonzero(found[name].to_numpy()) for name in held if found[name].any()}


def _clean_people(rows: pl.DataFrame, privacy: Privacy) -> pl.DataFrame:
    others = rows.select(_OTHER_KEYS)  # one look at all lists together
    if others.is_empty() or not others.select(_own_number(pl.col("key")).any()).item():
        return rows

    def cleaner(persons: list[dict[str, Any] | None]) -> list[dict[str, Any] | None]:
        # a null stays one: its row is refused later
        return [
            person and person | {"key": person["key"] and privacy.clean_key(person["key"])}
            for person in persons
        ]

    places = rows.select(pl.col("persons").list.len() > 0).to_series().arg_true().to_numpy()
    return _mapped(rows, "persons", places, cleaner)


def _own_number(key: pl.Expr) -> pl.Expr:
    """Whether a key that is no pseudonym may be, or hold, a number."""
    return key.str.contains(f"{_NUMBERS}|{_NOT_ASCII}") & ~key.str.contains(_PSEUDONYM)


_KEYS: Final = pl.col("persons").explode(empty_as_null=False).struct.field("key")
_OTHER_KEYS: Final = _KEYS.filter(~_KEYS.str.contains(_PSEUDONYM))
#: Column → whether a value must be read. Built once: expressions cost as much as a look at a small block.
_LOOKS: Final = {
    name: look.fill_null(False).alias(name)
    for name, look in {
        **{name: pl.col(name).str.contains(f"{_NUMBERS}|{_NOT_ASCII}") for name in _IDS},
        **{name: pl.col(name).str.contains(_UNCLEAN) for name in (*_TEXTS, "attributes")},
        "address": pl.col("address").str.contains(f"{_UNCLEAN}|{ROOM_CANDIDATE}"),
        "actor_name": ~pl.col("actor_name").str.contains(_MASKED_NAME),
        "actor_phone": ~pl.col("actor_phone").str.contains(_MASKED_PHONE),
        "actor_key": _own_number(pl.col("actor_key")),
    }.items()
}


def _mapped(
    rows: pl.DataFrame, name: str, places: NDArray[np.intp], function: Callable[[Any], Any]
) -> pl.DataFrame:
    """`function` of the values of a column at these rows."""
    values = rows[name].to_list()
    for place in places.tolist():
        values[place] = function(values[place])
    return rows.with_columns(pl.Series(name, values, dtype=rows.schema[name]))


def _text(text: str) -> str:
    return redact(unicodedata.normalize("NFC", text))


def _address(address: str) -> str | None:
    cut = shown_address(address)
    return None if cut is None else _text(cut)


def _attributes(text: str) -> str | None:
    try:
        given = orjson.loads(text)
    except orjson.JSONDecodeError:
        return _text(text)
    if not isinstance(given, dict):
        return _text(text)
    known = canonical_attributes(given)
    if known and any(isinstance(value, list | dict) for value in given.values()):
        return _text(known)  # the gateway lets none in there, others may
    return known
