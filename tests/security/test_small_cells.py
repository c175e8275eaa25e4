"""Small cells: blank below the town for readers, exact for officials, and not to be had by subtraction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from pipeline.ingest.keys import KeyStore
from pipeline.read.small_cells import for_reader, without_small_cells
from pipeline.runtime.access import ReadKeys, SmallCells

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
    given = answer(*(row(f"{VILLAGE}00{n}", n) for n in (0, 1, 4, 5, 9)))
    found = without_small_cells(given, "grid", 5)
    assert hidden(found) == ["001", "004"]
    assert [found["rows"][at] for at in (0, 3, 4)] == [given["rows"][at] for at in (0, 3, 4)]
    blank = found["rows"][1]
    assert blank == {
        "key": f"{VILLAGE}001", "name_zh": "某格", "reports": None, "cases": None, "closure_rate": None,
        "duplicates": {"L1": None, "L2": None, "L3": None},
        "response_seconds": {"p50": None, "p90": None, "p99": None}, "suppressed": True,
    }  # fmt: skip
    assert given["rows"][1]["reports"] == 1  # the answer may be cached


def test_the_only_small_row_of_a_parent_takes_the_next_one_along() -> None:
    given = answer(row(f"{VILLAGE}001", 2), row(f"{VILLAGE}002", 50), row(f"{VILLAGE}003", 20))
    assert hidden(without_small_cells(given, "grid", 5)) == ["001", "003"]
    apart = answer(row(f"{VILLAGE}001", 2), row("440704001002002", 50))
    assert hidden(without_small_cells(apart, "grid", 5)) == ["001"]
    villages = answer(row("440704001001", 2), row("440704001002", 6), row("440704002001", 6))
    assert hidden(without_small_cells(villages, "village", 5)) == ["001", "002"]


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
    for settings, expected in (
        (Settings(data_dir=tmp_path, http="0.0.0.0:8080", admin_http="127.0.0.1:1"), None),
        (Settings(data_dir=tmp_path), 1),
        (Settings(data_dir=tmp_path, small_cells_on_loopback=True), None),
    ):
        catalogues = load_catalogues(settings.catalogue_dir)
        parts = Parts(settings, catalogues, KeyStore(settings.keys_path), None, None, None, {})
        public, _ = build_app(parts)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(public),
            base_url="http://127.0.0.1",
            headers={"Authorization": f"Bearer {key}"},
        ) as client:
            found = (await client.get("/v1/kpi")).json()
        assert found["rows"][0]["reports"] == expected, settings.http
