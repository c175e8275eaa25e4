"""The forms of texts over many events at once: one regular expression per form instead of one per text.

Texts are joined by line breaks, which no form matches, and matched as a whole. This says only whether all is
well; `contract.exact` says what is not.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from pipeline.contract.columns import Columns, given
from pipeline.contract.event import CODE, GRID, ID, KEY, ORGANISATION_CODE, SHA256, Form


def _lines_of(form: Form) -> re.Pattern[str]:
    return re.compile(rf"(?:{form.expression}\n)*")


_LINES: Final = {form: _lines_of(form) for form in (ID, KEY, CODE, GRID, ORGANISATION_CODE, SHA256)}


def _hold(form: Form, texts: Collection[str]) -> bool:
    if not texts:
        return True
    joined = "\n".join(texts) + "\n"
    # a line break within a text would make two of it
    return joined.count("\n") == len(texts) and _LINES[form].fullmatch(joined) is not None


def forms_hold(columns: Columns) -> bool:
    """Whether every text of these events has the form that its field demands. columns : of `Event`."""
    ids = [*columns["event_id"], *columns["case_id"], *set(columns["source"])]
    ids += given(columns["submission_id"])
    codes = {*columns["channel"], *given(columns["matter_code"])}
    persons = [person for several in columns["persons"] if several for person in several]
    photos = [photo.sha256 for several in columns["photos"] if several for photo in several]
    keys = [person.key for person in (*columns["actor"], *persons) if person.key is not None]
    firms = [firm.code for firm in given(columns["organisation"]) if firm.code is not None]
    return (
        _hold(ID, ids)
        and _hold(CODE, codes)
        and _hold(GRID, set(columns["grid_code"]))
        and _hold(KEY, keys)
        and _hold(ORGANISATION_CODE, firms)
        and _hold(SHA256, photos)
    )
