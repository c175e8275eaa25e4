"""Every hostile input of the table against the real service: never a 5xx, never a hang, never more memory,
never a good event lost to a bad one."""

from __future__ import annotations

import gzip
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.settings import Settings
from tests.hostile import callers
from tests.hostile.listing import listing
from tests.hostile.memory import Peak
from tests.hostile.rows import Row
from tests.hostile.table import TABLE
from tests.hostile.world import GROWTH_BYTES, World, open_world

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

#: Of this run: the rows that held, and how long each took.
HELD: set[str] = set()
TOOK: list[tuple[float, str]] = []
GREW: dict[str, int] = {}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("hostile")
    shutil.copytree(Settings().schemas_dir, directory / "schemas")  # a row spoils the catalogue
    with open_world(
        directory / "data",
        GRIDPIPE_SCHEMAS_DIR=str(directory / "schemas"),
        GRIDPIPE_REFERENCE_REFRESH_SECONDS="0.5",
    ) as opened:
        opened.settings = opened.settings.model_copy(update={"schemas_dir": directory / "schemas"})
        opened.still_well()
        slow = callers.SlowClients(opened)
        callers.SLOW.append(slow)
        try:
            yield opened
        finally:
            slow.close()
            callers.SLOW.clear()


@pytest.fixture(scope="module")
def before(world: World) -> int:
    """Resident bytes of the HTTP process once it is warm: the largest bodies that are taken and refused."""
    callers.million_keys(world)
    assert (
        world.post(gzip.compress(bytes(200_000_000)), headers={"Content-Encoding": "gzip"}).status_code == 413
    )
    for _ in range(2):
        answer = world.post([world.event(description="x" * 3_900) for _ in range(1_200)])
        assert answer.status_code == 202, answer.text[:300]
    return world.http.memory_info().rss


def _id(row: Row) -> str:
    return f"{row.number:02d} {row.name}"


@pytest.mark.parametrize("row", TABLE, ids=_id)
def test_hostile_input(world: World, before: int, row: Row) -> None:
    if world.playing != row.number:  # after all forms of one input a sound event is taken as ever
        world.still_well()
        world.playing = row.number
    pid = world.http.pid
    started = time.monotonic()
    with Peak(pid) as peak:
        row.run(world)
    seconds = time.monotonic() - started
    TOOK.append((seconds, _id(row)))
    assert world.http.pid == pid, "the HTTP process was replaced"
    assert peak.samples or seconds < 1, "nobody looked"  # refused before the first look, mostly
    GREW[_id(row)] = grown = max(peak.grown, peak.now - peak.first)
    assert grown < row.grows, f"grew by {grown / 1e6:.0f} MB"
    HELD.add(_id(row))


def _asked_for(request: pytest.FixtureRequest) -> set[int]:
    """Numbers of the list all of whose forms this run was to play: every one, unless some were chosen."""
    params = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    chosen = {_id(given["row"]) for given in params if "row" in given and given["row"] in TABLE}
    return {row.number for row in TABLE} - {row.number for row in TABLE if _id(row) not in chosen}


def test_the_service_is_as_small_as_before_and_just_the_good_events_are_stored(
    world: World, before: int, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    world.still_well()
    grown = world.http.memory_info().rss - before
    assert grown < GROWTH_BYTES, f"grew by {grown / 1e6:.0f} MB"
    counted = Counter(world.stored_ids())
    lost = world.ledger - counted.keys()
    twice = world.stored_twice()
    refused = world.refused - world.ledger  # less those that were taken from a better request
    kept = refused & world.traces()
    # of an input all forms must have held in this run
    numbers = {row.number for row in TABLE} - {row.number for row in TABLE if _id(row) not in HELD}
    seconds, slowest = max(TOOK, default=(0.0, "none"))
    within = max(GREW.values(), default=0)
    with capsys.disabled():
        print(
            f"\nhostile inputs: {len(numbers)} of 62 held in {len(HELD)} forms; "
            f"{len(world.ledger)} good events, lost {len(lost)}, stored twice {len(twice)}; "
            f"{len(refused):,} refused events looked for, stored {len(kept)}; "
            f"memory {grown / 1e6:+.0f} MB, within a row {within / 1e6:+.0f} MB at most, "
            f"of the worker {world.worker_grown / 1e6:+.0f} MB at most "
            f"in {world.records} hostile records; longest row {seconds:.1f} s ({slowest})",
            file=sys.stderr,  # the other stream of a test process beside others is lost
        )
    assert not lost, sorted(lost)[:10]
    assert not twice, twice[:10]
    assert numbers == _asked_for(request), "not every form of these held"
    assert world.ledger, "nothing was sent"
    assert not kept, f"refused, and stored: {sorted(kept)[:10]}"
    assert refused, "nothing was refused"


def test_the_table_is_complete() -> None:
    assert {row.number for row in TABLE} == set(range(1, 63))
    assert len({_id(row) for row in TABLE}) == len(TABLE), "two rows of one name"


def test_the_readme_holds_the_table() -> None:
    assert listing() in (Path(__file__).parent / "README.md").read_text(), "python -m tests.hostile.listing"
