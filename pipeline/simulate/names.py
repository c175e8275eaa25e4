"""Masked names: a surname and asterisks. Full names exist nowhere, not even simulated ones."""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl

#: Common surnames of the Pearl River Delta.
_SURNAMES: Final = pl.Series(list("陈李黄梁张林吴周何刘谢杨赵冯邓余谭区黎罗叶甄司容伍胡朱郭马曾"))
_MASKS: Final = pl.Series(["**", "**", "**", "*"])  # three signs are more frequent than two


def masked_names(rng: np.random.Generator, count: int) -> pl.Series:
    """(count,) masked names, such as 陈**."""
    # the first surnames are the most frequent ones
    surname = (rng.beta(1.0, 2.2, count) * len(_SURNAMES)).astype(np.uint32)
    mask = rng.integers(0, len(_MASKS), count).astype(np.uint32)
    return (_SURNAMES.gather(surname) + _MASKS.gather(mask)).alias("name_masked")
