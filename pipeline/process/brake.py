"""The brake: a partition that brings a flood of unreadable records stops before they all lie in quarantine.

One broken record is the business of its sender; thousands are a wrong schema, a wrong topic or a fault of
ours. Quarantining them all would look like progress, and would commit past everything that somebody could
still repair and read again. Nothing of the block that makes a partition stop is stored or committed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from pipeline.process.decode import MALFORMED, UNSUPPORTED_VERSION
from pipeline.process.flow import UNSTORABLE, Block, BlockResult

#: Share of bad ones is taken over so many records.
WINDOW_RECORDS: Final = 10_000
#: As many bad ones in a row are left alone.
RUN_RECORDS: Final = 1_000
#: What speaks against a record. An event whose id is known with other content does not: whoever holds a key
#: of one source could stop the partition for all.
_BAD_REASONS: Final = (MALFORMED, UNSUPPORTED_VERSION, UNSTORABLE)

_Numbers = npt.NDArray[np.int64]


@dataclass
class Brake:
    """Counts the bad ones among the last records of one partition.

    A record is bad when more than `share` of its events are quarantined as unreadable. share : also how many
    of the last 10,000 records may be bad; 1 never stops.
    """

    share: float
    _seen: int = 0
    _bad: _Numbers = field(default_factory=lambda: np.zeros(0, np.int64))  # running numbers of bad records

    def stops(self, block: Block, result: BlockResult) -> str | None:
        """Why the partition must stop before this block is stored, None if it may go on.

        result : of this block, alone or among those of other partitions.
        """
        if self.share >= 1:
            return None
        bad = np.concatenate([self._bad, self._bad_records(block, result)])
        if _crowded(bad, RUN_RECORDS, RUN_RECORDS + 1):
            return f"more than {RUN_RECORDS} unreadable records in a row"
        if _crowded(bad, int(self.share * WINDOW_RECORDS), WINDOW_RECORDS):
            return f"more than {self.share:.0%} of {WINDOW_RECORDS} records are unreadable"
        return None

    def remember(self, block: Block, result: BlockResult) -> None:
        """The block is stored."""
        bad = np.concatenate([self._bad, self._bad_records(block, result)])
        self._seen += len(block.records)
        self._bad = bad[bad >= self._seen - WINDOW_RECORDS]

    def _bad_records(self, block: Block, result: BlockResult) -> _Numbers:
        """Running numbers of this block's bad records, ascending."""
        if result.quarantined.is_empty():
            return np.zeros(0, np.int64)
        ours = pl.col("_part") == block.partition
        refused = (
            result.quarantined.filter(ours & pl.col("reason").is_in(_BAD_REASONS))
            .group_by("_off")
            .agg(pl.len().alias("refused"))
        )
        if refused.is_empty():
            return np.zeros(0, np.int64)
        frames = (result.events, result.rejections, result.duplicates, result.quarantined)
        events = (
            pl.concat([frame.filter(ours).select("_off") for frame in frames])
            .group_by("_off")
            .agg(pl.len().alias("events"))
        )
        bad = refused.join(events, on="_off").filter(pl.col("refused") > self.share * pl.col("events"))
        offsets = np.fromiter((record.offset for record in block.records), np.int64, len(block.records))
        numbers = np.searchsorted(offsets, np.sort(bad["_off"].to_numpy().astype(np.int64)))
        return np.asarray(self._seen + numbers, np.int64)


def _crowded(numbers: _Numbers, most: int, within: int) -> bool:
    """Whether more than `most` of these ascending numbers lie within as many consecutive ones."""
    if len(numbers) <= most:
        return False
    return bool((numbers[most:] - numbers[: len(numbers) - most] < within).any())
