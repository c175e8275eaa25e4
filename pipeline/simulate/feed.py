"""The live feed of `gridpipe up`: a few days of backlog, then new cases as time goes by.

New cases live `TIME_LAPSE` times as fast as real ones, so that a visitor sees them close within minutes; the
backlog has lived at its natural pace. Everything is dated now or in the past, and younger than the seven
days after which an event counts as late.
"""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import httpx
import numpy as np
import polars as pl

from pipeline import logs
from pipeline.clock import utc_now
from pipeline.settings import load_settings
from pipeline.simulate.city import read_manifest
from pipeline.simulate.events import simulate
from pipeline.simulate.ndjson import to_json
from pipeline.simulate.plan import Noise, ordinary_days
from pipeline.simulate.scene import Scene
from pipeline.simulate.sender import Pace, Sender, wait_for_reference
from pipeline.simulate.texts import tokens

SOURCE: Final = "local"
TIME_LAPSE: Final = 600.0
BACKLOG: Final = timedelta(days=6)
BACKLOG_CASES: Final = 600
_WINDOW: Final = timedelta(seconds=60)
_LIFE: Final = timedelta(days=30)  # far enough that no life is cut
_EVENTS_PER_CASE: Final = 9.0
_BATCH: Final = 500
_REFERENCE_SECONDS: Final = 60.0
#: Few late events: in a session of minutes most of them would never arrive.
_NOISE: Final = Noise(slow=0.01, offline=0.003)

log = logs.get_logger(__name__)


class _Upcoming:
    """Events that wait for their arrival, as JSON texts."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._waiting = pl.DataFrame(schema={"arrival": pl.Int64(), "json": pl.String()})

    def add(self, events: pl.DataFrame) -> None:
        fresh = pl.DataFrame({"arrival": events["arrival"], "json": to_json(self._scene, events, SOURCE)})
        self._waiting = pl.concat([self._waiting, fresh]).sort("arrival", maintain_order=True)

    def due(self, now: datetime) -> list[str]:
        """Take out what has arrived by `now`."""
        number = int(self._waiting["arrival"].search_sorted(int(now.timestamp() * 1_000), side="right"))
        texts = self._waiting["json"].head(number).to_list()
        self._waiting = self._waiting.slice(number)
        return texts


def run_city_feed(  # noqa: PLR0917  the order that the supervisor agreed on
    url: str,
    key: str,
    city_dir: Path,
    seed: int,
    events_per_second: float,
    stop: threading.Event,
    *,
    catalogue_dir: Path | None = None,
    metrics_url: str | None = None,
    metrics_key: str | None = None,
) -> None:
    """Feed simulated events of the city in `city_dir` to the service at `url` until `stop` is set.

    key : a key for source `local`; its reference data must be loaded (or be loading) in the service.
    metrics_url, metrics_key : where the worker's `/metrics` answers, and for which key; None: `url`, `key`.
    events_per_second : pace of new events once the first lives are under way; the backlog goes at once.
    A service that is away for a moment is waited for. Raises ConfigurationError without a city or where
    `/metrics` is not shown, UnavailableError when the reference data do not show up, ContractError when the
    key is refused.
    """
    scene = Scene.load(city_dir, catalogue_dir or load_settings().catalogue_dir)
    manifest = read_manifest(city_dir) or {}
    wait_for_reference(
        metrics_url or url,
        manifest.get("rows", {}),
        seconds=_REFERENCE_SECONDS,
        stopped=stop.is_set,
        key=metrics_key or key,
    )
    started = utc_now()
    # every run has ids of its own
    tag = "live-" + tokens(np.array([int(started.timestamp() * 1_000)]))[0]
    upcoming = _Upcoming(scene)
    if not stop.is_set() and _table_is_empty(url, key):
        plan = ordinary_days(
            BACKLOG_CASES, started - BACKLOG, started + _LIFE, seed=seed, tag=f"{tag}-b", source=SOURCE,
            last_report=started, noise=_NOISE,
        )  # fmt: skip
        upcoming.add(simulate(scene, plan).events)
    with Sender(url, key) as sender:
        if not _send_due(sender, upcoming, Pace(0), stop):
            return
        pace, number, window_end = Pace(events_per_second), 0, started
        while not stop.is_set() and events_per_second > 0:
            now = utc_now()
            if now >= window_end:
                window_start, window_end = max(window_end, now - _WINDOW), now + _WINDOW
                cases = max(7, round(events_per_second * _WINDOW.total_seconds() / _EVENTS_PER_CASE))
                plan = ordinary_days(
                    cases, max(window_start, now), now + _LIFE, seed=seed + number, tag=f"{tag}-{number}",
                    source=SOURCE, last_report=window_end, noise=_NOISE, time_lapse=TIME_LAPSE,
                )  # fmt: skip
                upcoming.add(simulate(scene, plan).events)
                number += 1
            if not _send_due(sender, upcoming, pace, stop):
                return
            stop.wait(0.5)


def _send_due(sender: Sender, upcoming: _Upcoming, pace: Pace, stop: threading.Event) -> bool:
    """Send what is due, in order, each batch until the service has taken it. False: stopped."""
    texts = upcoming.due(datetime.now(UTC))
    for at in range(0, len(texts), _BATCH):
        batch = texts[at : at + _BATCH]
        if not pace.take(len(batch), stop):
            return False
        while batch:
            answer = sender.post(batch)
            if answer.refused:
                log.warning("simulated_events_refused", count=len(answer.refused), code=answer.refused[0][1])
            if answer.taken:
                batch = [batch[number] for number in answer.again]
            if batch and stop.wait(answer.wait_seconds):
                return False
    return True


def _table_is_empty(url: str, key: str) -> bool:
    """Whether the service counts hardly any case yet, so that a backlog is wanted."""
    for _ in range(20):
        try:
            answer = httpx.get(
                f"{url}/v1/kpi",
                params={"by": "city"},
                headers={"Authorization": f"Bearer {key}"},  # a public listener asks readers too
                timeout=10.0,
                trust_env=False,
            )
            if answer.status_code == 200:
                return bool(answer.json()["rows"][0]["cases"] < BACKLOG_CASES // 4)
        except httpx.HTTPError:
            log.debug("kpi_not_ready")
        time.sleep(0.5)
    return False
