"""The forms of texts over many events at once: one regular expression per form instead of one per text.

Texts are joined by line breaks, which no form matches, and matched as a whole. This says only whether all is
well; `contract.exact` says what is not.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Final

from pipeline.contract.columns import Columns, given
from pipeline.contract.event import CODE, GRID, ID, KEY, ORGANISATION_CODE, SHA256, Form


def _lines_of(form: Form) -> re.Pattern[str]:
    return re.compile(rf"(?:{form.expression}\n)*")


_LINES: Final = {form: _lines_of(form) for form in (CODE, GRID, SHA256)}
#: Of the forms that demand no more than these signs, one at least. How many may stand the types say.
_SIGNS: Final = {
    form: bytes(sign for sign in range(128) if re.fullmatch(form.expression, chr(sign)))
    for form in (ID, KEY, ORGANISATION_CODE)
}
_GRID_DIGITS: Final = 15


def _hold(form: Form, texts: Collection[str]) -> bool:
    if not texts:
        return True
    joined = "\n".join(texts) + "\n"
    # a line break within a text would make two of it
    return joined.count("\n") == len(texts) and _LINES[form].fullmatch(joined) is not None


def _hold_signs(form: Form, texts: Sequence[str]) -> bool:
    """`_hold` of a form of `_SIGNS`. To take these out of the bytes takes a fifth of matching them."""
    joined = "\n".join(texts)
    left = joined.encode().translate(None, _SIGNS[form]) if joined.isascii() else None
    return all(texts) and left == b"\n" * (len(texts) - 1)


def _hold_grids(codes: Collection[str]) -> bool:
    """`_hold` of `GRID`; most codes are of a grid and not of a unit in it."""
    joined = "".join(codes)
    if joined.isascii() and joined.isdigit() and {*map(len, codes)} == {_GRID_DIGITS}:
        return True
    return _hold(GRID, set(codes))


def forms_hold(columns: Columns) -> bool:
    """Whether every text of these events has the form that its field demands. columns : of `Event`."""
    ids = [*columns["event_id"], *columns["case_id"], *columns["source"], *given(columns["submission_id"])]
    codes = {*columns["channel"], *given(columns["matter_code"])}
    persons = [person for several in columns["persons"] if several for person in several]
    photos = [photo.sha256 for several in columns["photos"] if several for photo in several]
    keys = [person.key for person in (*columns["actor"], *persons) if person.key is not None]
    firms = [firm.code for firm in given(columns["organisation"]) if firm.code is not None]
    return (
        _hold_signs(ID, ids)
        and _hold(CODE, codes)
        and _hold_grids(columns["grid_code"])
        and _hold_signs(KEY, keys)
        and _hold_signs(ORGANISATION_CODE, firms)
        and _hold(SHA256, photos)
    )
