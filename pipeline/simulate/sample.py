"""A file of simulated events of ordinary days, with its ledger of truth."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson

from pipeline.clock import LOCAL_ZONE, utc_now
from pipeline.errors import ConfigurationError
from pipeline.simulate.events import Simulation, keep_exactly, ledger, simulate
from pipeline.simulate.ndjson import write_ndjson
from pipeline.simulate.plan import Noise, ordinary_days
from pipeline.simulate.scene import Scene
from pipeline.simulate.texts import tokens

#: A case brings eight events or more in the mean; a fifth more cases than needed are drawn, then cut.
_FEWEST_EVENTS_PER_CASE: Final = 6.0


def sample(scene: Scene, *, count: int, seed: int, end: datetime, days: int, source: str) -> Simulation:
    """Exactly `count` events of the `days` before `end`, over all seven districts."""
    tag = "e" + tokens(np.array([seed * 7_919 + 1]))[0]
    cases = math.ceil(count / _FEWEST_EVENTS_PER_CASE) + 7
    while True:
        # a handful of events needs single ones: rejected reports, at least one per district
        noise = Noise(rejected=max(Noise.rejected, min(1.0, 14 / cases)))
        plan = ordinary_days(
            cases, end - timedelta(days=days), end, seed=seed, tag=tag, source=source, noise=noise
        )
        drawn = simulate(scene, plan)
        if len(drawn.events) >= count:
            return keep_exactly(drawn, count)
        cases *= 2


def write_sample(
    *,
    city_dir: Path,
    catalogue_dir: Path,
    count: int,
    seed: int,
    end: datetime | None,
    days: int,
    source: str,
    out: Path,
    truth: Path | None,
) -> dict[str, Any]:
    """Write `count` events to `out` and their ledger to `truth`. Returns the ledger.

    end : the last local midnight if None, so that a file can be made again on the same day.
    Raises ConfigurationError if there is no city or a file cannot be written.
    """
    end = end or utc_now().astimezone(LOCAL_ZONE).replace(hour=0, minute=0, second=0, microsecond=0)
    scene = Scene.load(city_dir, catalogue_dir)
    simulation = sample(scene, count=count, seed=seed, end=end, days=days, source=source)
    expected = ledger(simulation)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_ndjson(scene, simulation, out)
        if truth is not None:
            truth.parent.mkdir(parents=True, exist_ok=True)
            truth.write_bytes(orjson.dumps(expected, option=orjson.OPT_INDENT_2))
    except OSError as error:
        raise ConfigurationError(f"cannot write {error.filename}: {error.strerror}") from error
    return expected
