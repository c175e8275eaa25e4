"""The simulated city is fed whatever listeners `gridpipe up` has."""

from __future__ import annotations

import json
import time
from pathlib import Path

import httpx
import pytest

from pipeline.ingest.keys import KeyStore
from pipeline.settings import load_settings
from tests.e2e.service import Service

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

#: Not among the loopback addresses, so that callers need keys; nobody else reaches it all the same.
PUBLIC = "[::ffff:127.0.0.1]:0"


@pytest.mark.parametrize(
    ("http", "admin_http", "form"),
    [
        ("127.0.0.1:0", "127.0.0.1:0", ("--json",)),
        pytest.param(PUBLIC, PUBLIC, (), marks=pytest.mark.slow),
    ],
    ids=["loopback", "public"],
)
def test_the_city_is_fed_with_its_backlog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, http: str, admin_http: str, form: tuple[str, ...]
) -> None:
    """Neither /metrics elsewhere nor one that asks for an admin key keeps the feed from its events."""
    monkeypatch.setenv("GRIDPIPE_SIMULATED_PERSONS", "2000")
    settings = load_settings(data_dir=tmp_path / "data")
    settings.data_dir.mkdir(mode=0o700)
    keys = KeyStore(settings.keys_path)
    keys.create(roles=["read"])
    keys.create(roles=["admin"])
    service = Service(settings.data_dir, "--http", http, "--admin-http", admin_http, *form)
    try:
        if form:
            (line,) = service.output
            told = json.loads(line)
            assert (told["url"], told["simulated_city"], told["new_key"]) == (service.url, True, True)
            assert Path(told["key_file"]).read_text().strip() == service.key
            assert httpx.get(f"{told['admin_url']}/health/ready", trust_env=False).status_code == 200
        else:
            assert "feeding the simulated city" in "".join(service.output)
        city = service.children()["city"]
        deadline = time.monotonic() + 100 * service.busy
        while service.get("/v1/kpi", by="city")["rows"][0]["cases"] < 300:
            assert time.monotonic() < deadline, service.log("city") + service.log("up")
            time.sleep(0.5)
        assert city.is_running()
        assert service.stop() == 0
        assert not form or len(service.output) == 1
    finally:
        service.kill()
