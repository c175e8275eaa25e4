"""The files of a demo's year: its events in lanes, and the state that lets an interrupted demo go on."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Self

import orjson
import polars as pl

from pipeline.clock import utc_now
from pipeline.errors import ConfigurationError
from pipeline.ingest.blocks import partitions_of
from pipeline.settings import Settings
from pipeline.simulate.city import GENERATOR_VERSION, ensure_city
from pipeline.simulate.events import simulate
from pipeline.simulate.ndjson import to_json
from pipeline.simulate.plan import Plan, published_year
from pipeline.simulate.scene import Scene
from pipeline.store.lock import DirectoryLock

SOURCE: Final = "demo"
#: A lane holds whole partitions of the topic, so whole villages, and sends one batch at a time: the order of
#: what concerns one village survives retries, and a batch becomes few, large blocks.
LANES: Final = 6
_STATE: Final = "demo.json"
_LOCK: Final = "demo.lock"
#: Raised when the same seed gives other events: an interrupted demo of the earlier ones is not gone on with.
_YEAR_VERSION: Final = 2
_OWN: Final = frozenset({_LOCK, _STATE, f"{_STATE}.new"})
_SLICE_ROWS: Final = 50_000


@dataclass(frozen=True)
class DemoDirectory:
    """`var/demo`: holds the lock from `open` to `close`.

    started_at : end of the simulated year; resumed : whether an interrupted demo goes on.
    """

    path: Path
    started_at: datetime
    seed: int
    resumed: bool
    _lock: DirectoryLock

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Take the directory: empty it after a finished demo, go on after an interrupted one.

        Raises ConfigurationError if another process uses it or it holds something that is no demo's.
        """
        path = settings.data_dir
        state = _read_state(path)
        if state is None and path.exists() and any(child.name not in _OWN for child in path.iterdir()):
            raise ConfigurationError(f"{path} holds other data than a demo's; choose another --data-dir")
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = DirectoryLock(path / _LOCK, path)
        try:
            # refuse to touch the data of a service that still runs on them
            DirectoryLock(settings.run_dir / "gridpipe.lock", path).release()
            made_from = {
                "generator": GENERATOR_VERSION,
                "year": _YEAR_VERSION,
                "seed": settings.simulate_seed,
                "persons": settings.simulated_persons,
                "finished": False,
            }
            usable = state is not None and made_from.items() <= state.items()
            if not usable:
                _empty(path)
                state = made_from | {"started_at": utc_now().isoformat()}
                _write_state(path, state)
            assert state is not None
            return cls(path, datetime.fromisoformat(state["started_at"]), int(state["seed"]), usable, lock)
        except BaseException:
            lock.release()
            raise

    def finish(self) -> None:
        """The next demo starts from an empty directory."""
        state = _read_state(self.path) or {}
        _write_state(self.path, state | {"finished": True})

    def close(self) -> None:
        self._lock.release()

    @property
    def ledger_path(self) -> Path:
        return self.path / "ledger.ndjson"

    @property
    def plan(self) -> Plan:
        return published_year(self.started_at, self.seed, SOURCE)

    def write_year(self, settings: Settings) -> pl.DataFrame:
        """Write the city and the year's events, unless they are there. Returns the events' lines.

        Columns lane, line, event_id. The same seed and start give the same lines, so that an interrupted
        demo can make the files again.
        """
        ensure_city(
            settings.city_dir,
            catalogue_dir=settings.catalogue_dir,
            seed=self.seed,
            persons=settings.simulated_persons,
        )
        index = self._events / "lines.parquet"  # written last: says that the lanes are complete
        if not index.exists():
            scene = Scene.load(settings.city_dir, settings.catalogue_dir)
            shutil.rmtree(self._events, ignore_errors=True)
            self._events.mkdir()
            lines = _write_lanes(scene, self.plan, self._events, settings.partitions)
            lines.write_parquet(index.with_suffix(".partial"))
            index.with_suffix(".partial").replace(index)
        return pl.read_parquet(index)

    def lane(self, number: int) -> list[bytes]:
        """The events of a lane, one JSON text each, in the order in which they are sent."""
        return (self._events / f"lane-{number}.ndjson").read_bytes().splitlines()

    @property
    def _events(self) -> Path:
        return self.path / "events"


def _write_lanes(scene: Scene, plan: Plan, directory: Path, partitions: int) -> pl.DataFrame:
    events = simulate(scene, plan).events
    lane = partitions_of(scene.grids["grid_code"], partitions).cast(pl.Int64) % LANES
    events = events.with_columns(lane.gather(events["grid"].cast(pl.UInt32)).alias("lane"))
    files = [(directory / f"lane-{number}.ndjson").open("wb") for number in range(LANES)]
    try:
        for part in events.iter_slices(_SLICE_ROWS):
            texts = to_json(scene, part, plan.source)
            for number, file in enumerate(files):
                mine = texts.filter(part["lane"] == number).to_list()
                file.write("".join(f"{text}\n" for text in mine).encode())
    finally:
        for file in files:
            file.close()
    return events.select("lane", pl.int_range(pl.len()).over("lane").alias("line"), "event_id")


def _read_state(path: Path) -> dict[str, Any] | None:
    try:
        state = orjson.loads((path / _STATE).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, orjson.JSONDecodeError) as error:
        raise ConfigurationError(f"{path / _STATE} is damaged; delete {path} and start again") from error
    if not isinstance(state, dict) or not {"started_at", "seed", "finished"} <= state.keys():
        raise ConfigurationError(f"{path / _STATE} is damaged; delete {path} and start again")
    return state


def _write_state(path: Path, state: dict[str, Any]) -> None:
    fresh = path / f"{_STATE}.new"
    fresh.write_bytes(orjson.dumps(state, option=orjson.OPT_INDENT_2))
    fresh.replace(path / _STATE)


def _empty(path: Path) -> None:
    """Remove everything but the lock that we hold; the state last, since it says whose directory this is."""
    for child in sorted(path.iterdir(), key=lambda child: child.name == _STATE):
        if child.name == _LOCK:
            continue
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink()
