"""The stream shows single rejected reports: who opens it leaves a line, and it ends with the key's rights."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from pipeline.ingest.keys import KeyStore
from pipeline.ingest.signing import SigningAuth
from pipeline.page.live import Live
from pipeline.runtime.http import build_app
from pipeline.settings import Settings, load_settings
from tests.page.test_first_page import live_page
from tests.unit.test_runtime_http import parts_of

BEFORE, AFTER = "e-before", "e-after"


def told(live: Live, event_id: str) -> None:
    live._publish("rejected", {"newest": [{"source": "handset", "event_id": event_id}]})


def lines(settings: Settings) -> list[dict[str, Any]]:
    return [
        orjson.loads(line)
        for path in sorted(settings.audit_dir.glob("*.jsonl"))
        for line in path.read_bytes().splitlines()
    ]


@asynccontextmanager
async def watched(live: Live, keys: KeyStore, settings: Settings, **shown: Any) -> AsyncIterator[Any]:
    """The task that reads the whole of a stream, once it is open."""
    public, _ = build_app(replace(parts_of(settings), live=live, keys=keys))
    transport = httpx.ASGITransport(public)
    async with (
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080", **shown) as client,
        asyncio.timeout(30),
    ):
        somebody_watches = live._wanted
        reading = asyncio.create_task(client.get("/v1/live"))
        await somebody_watches.wait()
        told(live, BEFORE)
        await asyncio.sleep(0.1)  # it is sent
        yield reading
        live.close()
        await reading


@pytest.mark.parametrize("http_", ["127.0.0.1:0", "0.0.0.0:0"])
async def test_who_opens_the_stream_leaves_one_line(tmp_path: Path, http_: str) -> None:
    settings = load_settings(data_dir=tmp_path, http=http_, admin_http="127.0.0.1:0")
    keys = KeyStore(settings.keys_path)
    key, live = keys.create(roles=["read"]), live_page()
    headers = {"Authorization": f"Bearer {key}"}
    async with watched(live, keys, settings, headers=headers) as reading:
        pass
    assert BEFORE in (await reading).text
    (line,) = lines(settings)
    assert (line["who"], line["call"], line["subject"], line["status"]) == (
        f"key {key.split('_')[1]}", "GET /v1/live", None, 200,
    )  # fmt: skip


async def test_no_line_no_stream(tmp_path: Path) -> None:
    settings = load_settings(data_dir=tmp_path)
    settings.audit_dir.write_text("a file where the directory should be")
    live = live_page()
    told(live, BEFORE)
    public, _ = build_app(replace(parts_of(settings), live=live))
    live.close()  # a stream that is given after all ends at once
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(public), base_url="http://127.0.0.1:8080"
    ) as client:
        answer = await client.get("/v1/live")
        assert (answer.status_code, answer.json()["code"]) == (503, "not_audited")
        # what the page asks beside it tells of nobody
        assert (await client.get("/v1/live/key")).json()["code"] == "unauthorised"


def revoke(keys: KeyStore, key: str, clock: list[datetime]) -> None:
    keys.revoke(key.split("_")[1])


def expire(keys: KeyStore, key: str, clock: list[datetime]) -> None:
    clock[0] += timedelta(hours=2)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("stop", [revoke, expire])
async def test_a_stream_ends_with_its_key(
    tmp_path: Path, stop: Callable[[KeyStore, str, list[datetime]], None], *, signed: bool
) -> None:
    settings = load_settings(data_dir=tmp_path, http="0.0.0.0:0", admin_http="127.0.0.1:0")
    clock = [datetime.now(UTC)]
    keys, live = KeyStore(settings.keys_path, clock=lambda: clock[0]), live_page()
    key = keys.create(roles=["read"], signed=signed, expires_at=clock[0] + timedelta(hours=1))
    shown: dict[str, Any] = {"headers": {"Authorization": f"Bearer {key}"}}
    async with watched(live, keys, settings, **({"auth": SigningAuth(key)} if signed else shown)) as reading:
        stop(keys, key, clock)
        told(live, AFTER)
        answer = await reading
    assert BEFORE in answer.text
    assert AFTER not in answer.text
    assert live.viewers == 0


async def test_an_idle_stream_ends_with_its_key_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.page.live._HEARTBEAT_SECONDS", 0.05)
    settings = load_settings(data_dir=tmp_path, http="0.0.0.0:0", admin_http="127.0.0.1:0")
    keys, live = KeyStore(settings.keys_path), live_page()
    key = keys.create(roles=["read"])
    headers = {"Authorization": f"Bearer {key}"}
    async with watched(live, keys, settings, headers=headers) as reading:
        await asyncio.sleep(0.2)
        keys.revoke(key.split("_")[1])
        assert ": still here" in (await reading).text
