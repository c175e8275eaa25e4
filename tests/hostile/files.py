"""Hostile files and settings: what operators can get wrong. Each is refused with its place, and the running
service goes on with what it had."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import orjson
import polars as pl
import pytest

from pipeline.errors import ConfigurationError
from pipeline.rules.catalogue import load_catalogues
from pipeline.rules.conditions import COLUMNS, compile_condition
from tests.hostile.world import GRID, Document, World, fresh, patience

#: Grids of ten cities like Jiangmen.
_TEN_CITIES: Final = 27_000
_SINCE = "2020-01-01T00:00:00+08:00"


def _start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli.main", *arguments],
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# --- reference files


def _square(lon: float, row: int) -> str:
    """Two hundred metres wide, the `row`th of those at this longitude."""
    west, south = round(lon, 3), round(21.9 + row / 500, 3)
    east, north = round(west + 0.002, 3), round(south + 0.002, 3)
    return f"POLYGON(({west} {south}, {east} {south}, {east} {north}, {west} {north}, {west} {south}))"


def _grid(**changes: Any) -> dict[str, Any]:
    square = "POLYGON((113.09 22.56, 113.11 22.56, 113.11 22.58, 113.09 22.58, 113.09 22.56))"
    return {
        "grid_code": GRID, "version": 1, "valid_from": _SINCE, "grid_name": "一格",
        "grid_type": "residential", "boundary": square, "status": "active",
        "updated_at": _SINCE, "source_system": "test",
    } | changes  # fmt: skip


def _worker(**changes: Any) -> dict[str, Any]:
    return {
        "worker_key": "GW-0001", "kind": "full_time", "name_masked": "陈**", "grid_code": GRID,
        "district_code": GRID[:6], "active_from": _SINCE, "updated_at": _SINCE, "source_system": "test",
    } | changes  # fmt: skip


def _load(world: World, directory: Path) -> tuple[int, str]:
    process = _start(
        "reference",
        "load",
        str(directory),
        "--data-dir",
        str(world.settings.data_dir),
        "--url",
        world.service.url,
    )
    out, err = process.communicate(timeout=60 * patience())
    return process.returncode, out + err


def patrol_grid(world: World) -> Document:
    """Load a grid with its grid worker; what a report from there needs to be admitted, once the worker has
    taken the two over. No other row's grid is known by it."""
    code, key = "440704001001014", "GW-0014"
    square = "POLYGON((113.19 22.56, 113.21 22.56, 113.21 22.58, 113.19 22.58, 113.19 22.56))"
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        grid = _grid(grid_code=code, boundary=square)
        (directory / "grids.ndjson").write_bytes(orjson.dumps(grid))
        staff = _worker(worker_key=key, grid_code=code, channel_rights=["grid_patrol"])
        (directory / "staff.ndjson").write_bytes(orjson.dumps(staff))
        refused, text = _load(world, directory)
    assert refused == 0, text
    report = {
        "channel": "grid_patrol", "matter_code": "SA-07", "grid_code": code,
        "actor": {"type": "full_time", "key": key}, "photos": [{"sha256": "0123456789abcdef" * 4}],
        "location": {"lon": 113.2, "lat": 22.57, "crs": "wgs84"},
    }  # fmt: skip
    deadline = time.monotonic() + 20 * patience()
    while True:
        probe = world.event(**report, description=fresh("阳台铁皮松动"))
        world.take(probe)
        found = world.outcome(probe["event_id"])
        if found["outcome"] == "admitted":
            return report
        assert time.monotonic() < deadline, f"the grid was not taken over: {found}"
        time.sleep(0.2)


def reference_files(world: World) -> None:
    """Repeated keys, broken polygons, codes of another form, an unknown grid, damaged files, the grids of ten
    cities: bad rows are refused by line, good ones stored, and one event still becomes one row."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        grids = [
            _grid(),
            _grid(),
            _grid(grid_code="x"),
            _grid(grid_code="440704001001004", boundary="POLYGON(("),
        ]
        staff = [
            _worker(),
            _worker(),
            _worker(worker_key="GW-0002", grid_code="999999999999999"),
            _worker(worker_key="' OR 1=1 --"),
        ]
        (directory / "grids.ndjson").write_bytes(b"\n".join(map(orjson.dumps, grids)))
        (directory / "staff.ndjson").write_bytes(b"\n".join(map(orjson.dumps, staff)))
        code, text = _load(world, directory)
        assert code == 1, text
        assert "Traceback" not in text
        for damaged in (b"\x00" * 100, b"PAR1" + b"\xff" * 100, b""):
            (directory / "grids.ndjson").unlink(missing_ok=True)
            (directory / "grids.parquet").write_bytes(damaged)
            code, text = _load(world, directory)
            assert code in {1, 2}, text
            assert "Traceback" not in text
        (directory / "grids.parquet").unlink()
        (directory / "staff.ndjson").unlink()
        many = (
            _grid(grid_code=f"440705{number:09d}", boundary=_square(112 + number % 300 / 500, number // 300))
            for number in range(_TEN_CITIES)
        )
        (directory / "grids.ndjson").write_bytes(b"\n".join(map(orjson.dumps, many)))
        code, text = _load(world, directory)
        assert code == 0, text[-2_000:]
    loaded = world.rows("SELECT uniqExact(grid_code) FROM ref_grids WHERE grid_code LIKE '440705%'")
    assert loaded == [(_TEN_CITIES,)]
    deadline = time.monotonic() + 20 * patience()
    last = f"440705{_TEN_CITIES - 1:09d}"
    while True:  # the worker takes new reference data over by itself
        event, far = (
            world.event(channel="grid_patrol", actor={"type": "full_time", "key": "GW-0001"}, grid_code=code)
            for code in (GRID, last)
        )
        world.take(event, far)
        unknown = [
            "GRID_UNKNOWN" in world.outcome(report["event_id"]).get("reasons", []) for report in (event, far)
        ]
        if not any(unknown):
            break
        assert time.monotonic() < deadline, f"the sound grids were not taken over: {unknown}"
        time.sleep(0.2)
    ids = world.stored_ids()  # a repeated key multiplies nothing
    assert (ids.count(event["event_id"]), ids.count(far["event_id"])) == (1, 1)


# --- rule files


def _problems(directory: Path) -> Sequence[str]:
    with pytest.raises(ConfigurationError) as caught:
        load_catalogues(directory)
    return caught.value.problems


def rule_files(world: World) -> None:
    """Unknown columns, no SQL, no condition, a table function, divisions by zero, conditions and rules
    without end, a pattern that kills other engines, aliases of YAML."""
    place = world.settings.catalogue_dir / "admission.yaml"
    text = place.read_text()
    old = "event_id IS NULL OR case_id IS NULL OR occurred_at IS NULL OR ingested_at IS NULL"
    line = text[: text.index(old)].count("\n") + 1
    spoilt = {
        "unknown column": text.replace(old, "no_such_column = 1"),
        "not SQL": text.replace(old, "DROP TABLE events; --"),
        "not a condition": text.replace(old, "1 / 0"),
        "a table function": text.replace(old, "event_id IN (SELECT * FROM read_csv('/etc/passwd'))"),
        "10,000 conditions": text.replace(old, " OR ".join(["event_id IS NULL"] * 10_000)),
    }
    head, rules, rest = text.partition("\nrules:\n")
    many_rules = head + rules + "  - number: 1\n" * 10_000 + rest
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary) / "catalogue"
        shutil.copytree(world.settings.catalogue_dir, directory)
        for name, content in spoilt.items():
            (directory / "admission.yaml").write_text(content)
            began = time.monotonic()
            problems = _problems(directory)
            assert time.monotonic() - began < 10, name
            assert f"admission.yaml:{line}" in problems[0], (name, problems)
        (directory / "admission.yaml").write_text(many_rules)
        began = time.monotonic()
        (problem,) = (text for text in _problems(directory) if "rule entries" in text)
        assert time.monotonic() - began < 10
        assert f"admission.yaml:{head.count(chr(10)) + 2}: " in problem, problem
        # the engine divides by zero without an error: infinity, or unknown, comes of it, of that row alone
        rows = pl.DataFrame({"age_seconds": [0.0, 1.0, None, 0.5]})
        for division, results in (
            ("1 / 0 = 1", [False] * 4),
            ("1 % 0 = 1", [None] * 4),
            ("1 / (age_seconds - 1) > 1", [False, True, None, False]),
        ):
            judged = rows.with_columns(result=compile_condition(division, COLUMNS))
            assert judged["result"].to_list() == results, division
        # and a rule that is unknown by it for all reports is refused by its own examples
        (directory / "admission.yaml").write_text(text.replace(old, f"{old} OR 1 % 0 = 1"))
        assert any(
            "admission.yaml:" in problem and "give unknown" in problem for problem in _problems(directory)
        )
        # polars' engine is linear in the text: a pattern that kills others is harmless, and is taken
        hard = text.replace(old, f"{old} OR regexp_like(event_id, '^(a+)+$')")
        (directory / "admission.yaml").write_text(hard)
        load_catalogues(directory)
        began = time.monotonic()
        assert not pl.Series(["a" * 100_000 + "!"]).str.contains("^(a+)+$").any()
        assert time.monotonic() - began < 1
        (directory / "admission.yaml").write_text("a: &a [*a, *a]\n" * 3)
        assert _problems(directory)
    log = world.settings.log_dir / "store.log"
    try:  # the running worker keeps its rules
        place.write_text(spoilt["unknown column"])
        deadline = time.monotonic() + 20
        while b"catalogue_refused_old_one_stays" not in log.read_bytes():
            assert time.monotonic() < deadline, "the worker did not notice"
            time.sleep(0.1)
        world.still_well()
    finally:
        place.write_text(text)


# --- settings


def configuration(world: World) -> None:
    """Exit 2, one line per problem, no secret printed."""
    secret = "Hunter2-must-not-be-shown"  # pragma: allowlist secret
    with tempfile.TemporaryDirectory() as temporary:
        unreadable = Path(temporary) / "keys"
        unreadable.mkdir()
        (unreadable / "keys.json").write_text('{"keys":[]}')
        (unreadable / "keys.json").chmod(0o644)
        # whoever runs the tests as root may read every file: one that nobody can read is a directory
        directory = Path(temporary) / "directory"
        (directory / "keys.json").mkdir(parents=True)
        directory.chmod(0o700)
        common = {"GRIDPIPE_CLICKHOUSE": f"http://default:{secret}@127.0.0.1:1"}
        asked: list[tuple[str, tuple[str, ...], dict[str, str]]] = [
            ("GRIDPIPE_BLOCK_MAX_ROWS", ("config", "show"), {"GRIDPIPE_BLOCK_MAX_ROWS": "-5"}),
            ("GRIDPIPE_NO_SUCH", ("config", "show"), {"GRIDPIPE_NO_SUCH": secret}),
            ("GRIDPIPE_MAX_BODY_BYTES", ("config", "show"), {"GRIDPIPE_MAX_BODY_BYTES": "many"}),
            (
                "host:port",
                ("up", "--no-simulate", "--data-dir", f"{temporary}/a"),
                {"GRIDPIPE_HTTP": "nowhere"},
            ),
            (
                "in use",
                (
                    "up",
                    "--no-simulate",
                    "--data-dir",
                    f"{temporary}/b",
                    "--http",
                    ":".join(map(str, world.address)),
                ),
                {},
            ),
            (
                "can be read by others",
                ("up", "--no-simulate", "--data-dir", str(unreadable), "--http", "127.0.0.1:0"),
                {},
            ),
            (
                f"{directory / 'keys.json'}: Is a directory",
                ("up", "--no-simulate", "--data-dir", str(directory), "--http", "127.0.0.1:0"),
                {},
            ),
            (
                f"{directory / 'none'}: No such file",
                ("up", "--no-simulate", "--data-dir", f"{temporary}/c", "--http", "127.0.0.1:0"),
                {"GRIDPIPE_CLICKHOUSE_PASSWORD_FILE": str(directory / "none")},
            ),
            (
                f"{directory}: Is a directory",
                ("up", "--no-simulate", "--data-dir", f"{temporary}/d", "--http", "127.0.0.1:0"),
                {"GRIDPIPE_CLICKHOUSE_PASSWORD_FILE": str(directory)},
            ),
        ]
        running = [(words, _start(*arguments, **common, **more)) for words, arguments, more in asked]
        for words, process in running:
            out, err = process.communicate(timeout=60)
            assert process.returncode == 2, (words, out, err)
            assert words in err, err
            assert len(err.strip().splitlines()) == 1, err
            assert "Traceback" not in err
            assert secret not in out + err
