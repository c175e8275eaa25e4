"""Small cells: blank below the town for readers, exact for officials, and not to be had by subtraction."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import httpx
import pytest
from clickhouse_connect.driver.client import Client
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from pipeline.ingest.keys import KeyStore
from pipeline.read.kpi import kpi
from pipeline.read.small_cells import for_reader, without_small_cells
from pipeline.runtime.access import ReadKeys, SmallCells
from tests.integration.case_world import KpiNames, World, at, chain

VILLAGE = "440704001001"


def row(key: str, reports: int) -> dict[str, Any]:
    return {
        "key": key, "name_zh": "某格", "reports": reports, "cases": reports, "closure_rate": 0.5,
        "duplicates": {"L1": 1, "L2": 0, "L3": 0}, "response_seconds": {"p50": 60, "p90": 90, "p99": 99},
    }  # fmt: skip


def answer(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"from": "a", "to": "b", "as_of": "c", "view": "cohort", "rows": list(rows)}


def hidden(found: dict[str, Any]) -> list[str]:
    return [one["key"][-3:] for one in found["rows"] if one.get("suppressed")]


def test_small_rows_are_blank_and_others_as_they_were() -> None:
    given = answer(*(row(f"{VILLAGE}00{n}", n) for n in (1, 4, 5, 9)))
    found = without_small_cells(given, "grid", 5)
    assert hidden(found) == ["001", "004"]
    assert found["rows"][2:] == given["rows"][2:]
    blank = found["rows"][0]
    assert blank == {
        "key": f"{VILLAGE}001", "name_zh": "某格", "reports": None, "cases": None, "closure_rate": None,
        "duplicates": {"L1": None, "L2": None, "L3": None},
        "response_seconds": {"p50": None, "p90": None, "p99": None}, "suppressed": True,
    }  # fmt: skip
    assert given["rows"][0]["reports"] == 1  # the answer may be cached


def test_the_only_small_row_of_a_parent_takes_the_next_one_along() -> None:
    given = answer(row(f"{VILLAGE}001", 2), row(f"{VILLAGE}002", 50), row(f"{VILLAGE}003", 20))
    assert hidden(without_small_cells(given, "grid", 5)) == ["001", "003"]
    apart = answer(row(f"{VILLAGE}001", 2), row("440704002002002", 50))
    assert hidden(without_small_cells(apart, "grid", 5)) == ["001"]
    villages = answer(row("440704001001", 2), row("440704001002", 6), row("440704002001", 6))
    assert hidden(without_small_cells(villages, "village", 5)) == ["001", "002"]


def test_what_the_hidden_rows_of_a_parent_have_together_is_not_small() -> None:
    """Two of one report each are no secret where the difference to their parent is two."""
    given = answer(*(row(f"{VILLAGE}00{at}", reports) for at, reports in enumerate((1, 1, 7, 30))))
    assert hidden(without_small_cells(given, "grid", 5)) == ["000", "001", "002"]


def test_grids_of_a_hidden_village_are_blank() -> None:
    """A village of 2 and one of 6 in a single grid: that grid would give the other village away."""
    villages = answer(row("440704001001", 2), row("440704001002", 6), row("440704001003", 9))
    assert hidden(without_small_cells(villages, "village", 5)) == ["001", "002"]
    grids = answer(
        row("440704001001001", 2), row("440704001002002", 6), row("440704001003003", 4),
        row("440704001003004", 5),
    )  # fmt: skip
    # the grid of 4 and, for the village's sake, the one of 5: its own village is shown
    assert hidden(without_small_cells(grids, "grid", 5)) == ["001", "002", "003", "004"]
    shown = answer(row("440704001001001", 2), row("440704001002002", 6), row("440704001003003", 9))
    assert hidden(without_small_cells(shown, "grid", 5)) == ["001", "002"]


def test_copies_of_a_report_are_no_further_persons() -> None:
    one = row(f"{VILLAGE}001", 6) | {"cases": 1, "duplicates": {"L1": 3, "L2": 2, "L3": 0}}
    assert hidden(without_small_cells(answer(one), "grid", 5)) == ["001"]


def test_nothing_small_is_left_by_subtraction_at_any_level() -> None:
    """Whatever towns look like: what shown rows leave of the exact town above is nothing, or not small."""
    chance = random.Random(11)
    for _ in range(300):
        sizes = [0, 1, 1, 2, 4, 5, 6, 20] if chance.random() < 0.5 else [5, 6, 9, 20, 1]
        grids = [
            row(f"44070400100{village}00{grid}", chance.choice(sizes))
            for village in range(chance.randint(1, 4))
            for grid in range(chance.randint(1, 4))
        ]
        villages: dict[str, int] = {}
        for grid in grids:
            villages[grid["key"][:12]] = villages.get(grid["key"][:12], 0) + grid["reports"]
        of_villages = without_small_cells(answer(*(row(*one) for one in villages.items())), "village", 5)[
            "rows"
        ]
        of_grids = without_small_cells(answer(*grids), "grid", 5)["rows"]
        shown = {one["key"] for one in of_villages if "suppressed" not in one}
        shown_grids = {one["key"] for one in of_grids if "suppressed" not in one}
        left = [reports for key, reports in villages.items() if key not in shown]
        # a town whose villages are all hidden is exact all the same
        assert not left or not shown or (len(left) > 1 and sum(left) >= 5), grids
        for village in villages:
            inside = [grid for grid in grids if grid["key"][:12] == village]
            unseen = [grid["reports"] for grid in inside if grid["key"] not in shown_grids]
            if village not in shown:
                assert len(unseen) == len(inside), grids
            else:
                assert not unseen or (len(unseen) > 1 and sum(unseen) >= 5), grids


def test_one_closure_of_an_older_case_is_a_small_cell(clickhouse: Client) -> None:
    """The flow lists a grid where nothing was reported: its time to closure is that one case's."""
    world = World(clickhouse)
    steps = [("REPORTED", 0), ("ACCEPTED", 1), ("DISPATCHED", 2), ("SIGNED", 3), ("RESOLVED", 4)]
    world.write(*chain("old", [*steps, ("CLOSED", 30)]))
    asked: dict[str, Any] = {"from_": at(24), "to": at(48), "as_of": at(48), "names": KpiNames()}
    for by in ("grid", "village", "town"):
        found = kpi(clickhouse, by=by, view="flow", **asked)
        (exact,) = found["rows"]
        assert (exact["reports"], exact["cases"], exact["closed"]) == (0, 0, 1)
        (one,) = without_small_cells(found, by, 5)["rows"]
        assert one["closed"] == (1 if by == "town" else None)
        assert one["resolution_seconds"]["p50"] == (29 * 3600 if by == "town" else None)


@pytest.mark.parametrize("by", ["city", "district", "town", "matter", "category", "department", "channel"])
def test_official_figures_are_never_touched(by: str) -> None:
    given = answer(row("4407", 1))
    assert without_small_cells(given, by, 5) is given
    assert without_small_cells(answer(row(f"{VILLAGE}001", 1)), "grid", 0)["rows"][0]["reports"] == 1


async def test_who_sees_what(tmp_path: Path) -> None:
    keys = KeyStore(tmp_path / "keys.json")

    async def figures(request: Request) -> JSONResponse:
        return JSONResponse(for_reader(request, answer(row(f"{VILLAGE}001", 1)), "grid", 5))

    plain = Starlette(routes=[Route("/v1/kpi", figures)])
    public = ReadKeys(SmallCells(plain), keys)

    async def reports(app: Any, key: str | None) -> Any:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://api", headers=headers
        ) as http:
            return (await http.get("/v1/kpi")).json()["rows"][0]["reports"]

    assert await reports(public, keys.create(roles=["read"])) is None
    assert await reports(public, keys.create(roles=["read", "admin"])) == 1
    assert await reports(plain, None) == 1  # the operator, on the machine itself
    assert await reports(SmallCells(plain), None) is None  # small_cells_on_loopback


async def test_the_http_process_blanks_them_on_a_public_listener(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.rules.catalogue import load_catalogues
    from pipeline.runtime import http as http_process
    from pipeline.runtime.http import Parts, build_app
    from pipeline.settings import Settings

    async def figures(request: Request) -> JSONResponse:
        return JSONResponse(for_reader(request, answer(row(f"{VILLAGE}001", 1)), "grid", 5))

    monkeypatch.setattr(http_process, "page_routes", lambda *_: [Route("/v1/kpi", figures, methods=["GET"])])
    key = KeyStore(tmp_path / "keys.json").create(roles=["read"])
    passed_on = {"X-Forwarded-For": "203.0.113.9"}
    for settings, more, expected in (
        (Settings(data_dir=tmp_path, http="0.0.0.0:8080", admin_http="127.0.0.1:1"), {}, None),
        (Settings(data_dir=tmp_path), {}, 1),
        (Settings(data_dir=tmp_path), passed_on, None),
        (Settings(data_dir=tmp_path, small_cells_on_loopback=True), {}, None),
    ):
        catalogues = load_catalogues(settings.catalogue_dir)
        parts = Parts(settings, catalogues, KeyStore(settings.keys_path), None, None, None, {})
        public, _ = build_app(parts)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(public),
            base_url="http://127.0.0.1",
            headers={"Authorization": f"Bearer {key}", **more},
        ) as client:
            found = (await client.get("/v1/kpi")).json()
        assert found["rows"][0]["reports"] == expected, settings.http
