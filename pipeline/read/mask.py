"""What of personal data an answer may show (domain, section 9): keys shortened, some reporters never."""

from __future__ import annotations

import re
from typing import Final

_PSEUDONYM = re.compile(r"[0-9a-f]{64}")
#: Reporters of these matters are whistle-blowers or stand close to one: nothing about them is shown.
_PROTECTED_MATTERS: Final = ("DM-02",)
_PROTECTED_CATEGORIES: Final = ("PO-",)


def short_key(key: str | None) -> str | None:
    """The first 8 digits of a pseudonym, the first 4 characters of any other key, then "…"."""
    if not key:
        return None
    return key[:8] + "…" if _PSEUDONYM.fullmatch(key) else key[:4] + "…"


def reporter_is_protected(matter_code: str | None) -> bool:
    """Whether a matter's reporters are never shown (DM-02 and PO-*)."""
    return matter_code is not None and (
        matter_code in _PROTECTED_MATTERS or matter_code.startswith(_PROTECTED_CATEGORIES)
    )
