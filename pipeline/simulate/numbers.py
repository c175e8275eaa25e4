"""Identity numbers, phones and credit codes of people and firms that do not exist.

Id numbers carry the region prefix 999999, which GB/T 2260 never assigned, so that no real person can own
one; phones start with 154, an unassigned range; credit codes carry 999999 as their region, too.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

Ints = npt.NDArray[np.int64]

REGION: Final = "999999"
PHONE_PREFIX: Final = "154"

_ID_WEIGHTS: Final = np.array([7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2])
_ID_CHECK: Final = np.array(list("10X98765432"))
_CREDIT_ALPHABET: Final = "0123456789ABCDEFGHJKLMNPQRTUWXY"
_CREDIT_WEIGHTS: Final = np.array([1, 3, 9, 27, 19, 26, 16, 17, 20, 29, 25, 13, 8, 24, 10, 30, 28])


def id_numbers(birth_dates: pl.Series, sequences: Ints) -> pl.Series:
    """18-character id numbers of GB 11643: region 999999, birth date, sequence, checksum.

    birth_dates : (n,) Date; sequences : (n,) 0–999, odd for men. Returns (n,) String.
    """
    day = (
        birth_dates.dt.year().cast(pl.Int64) * 10_000
        + birth_dates.dt.month().cast(pl.Int64) * 100
        + birth_dates.dt.day().cast(pl.Int64)
    ).to_numpy()
    tail = day * 1_000 + sequences  # the 11 digits behind the region
    total = np.full(len(tail), int(_ID_WEIGHTS[:6].sum()) * 9, dtype=np.int64)
    for place, weight in enumerate(_ID_WEIGHTS[6:]):
        total += tail // 10 ** (10 - place) % 10 * weight
    check = pl.Series(_ID_CHECK[total % 11].tolist(), dtype=pl.String)
    frame = pl.DataFrame({"tail": tail, "check": check})
    return frame.select(
        pl.concat_str(pl.lit(REGION), pl.col("tail").cast(pl.String).str.zfill(11), "check").alias("id")
    )["id"]


def id_number_is_valid(number: str) -> bool:
    """Whether the checksum of an 18-character id number holds (GB 11643-1999)."""
    if len(number) != 18 or not number[:17].isdigit():
        return False
    total = int((np.array([int(digit) for digit in number[:17]]) * _ID_WEIGHTS).sum())
    return str(_ID_CHECK[total % 11]) == number[17]


def phones(numbers: Ints) -> pl.Series:
    """(n,) 11-digit phone numbers of the unassigned range 154, from numbers below 10^8."""
    return PHONE_PREFIX + pl.Series(numbers % 10**8).cast(pl.String).str.zfill(8)


def credit_codes(numbers: Ints) -> pl.Series:
    """(n,) 18-character credit codes of GB 32100: registry 91, region 999999, body MA…, check character."""
    alphabet = np.array(list(_CREDIT_ALPHABET))
    digits = np.empty((len(numbers), 17), dtype=np.int64)
    digits[:, :10] = [_CREDIT_ALPHABET.index(sign) for sign in f"91{REGION}MA"]
    for place in range(7):
        digits[:, 16 - place] = numbers // 31**place % 31
    check = (31 - (digits * _CREDIT_WEIGHTS).sum(axis=1) % 31) % 31
    signs: npt.NDArray[Any] = alphabet[np.column_stack([digits, check])]
    return pl.Series(["".join(row) for row in signs.tolist()], dtype=pl.String)
