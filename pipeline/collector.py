"""Python's collector of reference cycles, in processes that make many objects for a short time."""

from __future__ import annotations

import gc
from typing import Final

#: Objects made before the collector looks at the young ones.
_YOUNG_OBJECTS: Final = 50_000


def spare_collections() -> None:
    """Keep the collector off what lives for ever, and let it come less often; once what lives for ever is
    built.

    Some thousand events in JSON make as many tuples, which would start collections of everything that
    start-up has built: a third of the gateway's time, a tenth of reading such records in the worker. Cycles
    are still found, some megabytes later.
    """
    collect_what_ended()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, *gc.get_threshold()[1:])


def collect_what_ended() -> None:
    """Let go of what was built for ever and has ended all the same: the collector does not look at what is
    frozen."""
    gc.unfreeze()
    gc.collect()
