"""Rates as people read them, alike on the page, the command line and in reports."""

from __future__ import annotations

import math


def percent_text(rate: float, digits: int = 2) -> str:
    """0.714285 → "71.43": rounded half up, but what is below 1 never reads as 100.

    The live page does the same in `format.js`.
    """
    scale = 10**digits
    hundredths = math.floor(rate * 100 * scale + 0.5 + 1e-7)
    if rate < 1:
        hundredths = min(hundredths, 100 * scale - 1)
    return f"{hundredths / scale:.{digits}f}"
