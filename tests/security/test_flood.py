"""Hostile input 50 in its long form: 10,000 requests of one key, many keys of one address."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from pipeline.ingest.keys import KeyStore
from pipeline.settings import Settings
from tests.e2e.service import Service
from tests.hostile.flood import REQUESTS_PER_SECOND, SETTINGS, costs_others_nothing, flood

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]


def test_50_flood_of_one_key_costs_other_sources_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (SETTINGS | {REQUESTS_PER_SECOND: "100"}).items():
        monkeypatch.setenv(name, value)
    service = Service(tmp_path, "--no-simulate", "--http", "127.0.0.1:0")
    try:
        keys = KeyStore(Settings(data_dir=tmp_path).keys_path)
        costs_others_nothing(service, keys, 10_000, calm_posts=40)
    finally:
        service.kill()


def test_50_many_keys_of_one_address_share_its_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIDPIPE_QUOTA_LOOPBACK", "true")
    monkeypatch.setenv("GRIDPIPE_QUOTA_ADDRESS_REQUESTS_PER_SECOND", "40")
    service = Service(tmp_path, "--no-simulate", "--http", "127.0.0.1:0")
    try:
        keys = KeyStore(Settings(data_dir=tmp_path).keys_path)
        answers = Counter[str]()
        for number in range(20):
            answers += flood(service.url, keys.create(f"source-{number}"), 100)
        assert set(answers) <= {"400", "429 with Retry-After"}, answers
        assert answers["429 with Retry-After"] > 1_000, answers
        assert service.stop() == 0
    finally:
        service.kill()
