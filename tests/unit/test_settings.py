"""Settings: one place, checked together, every problem at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cli.operate import mask_password, setting_rows
from pipeline.errors import ConfigurationError
from pipeline.settings import ENV_PREFIX, Settings, is_loopback, load_settings, split_address


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith(ENV_PREFIX)]:
        monkeypatch.delenv(name)


def test_flags_win_over_the_environment_which_wins_over_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().partitions == 12
    monkeypatch.setenv("GRIDPIPE_PARTITIONS", "4")
    assert load_settings().partitions == 4
    assert load_settings(partitions=6).partitions == 6
    assert load_settings(partitions=None).partitions == 4


def test_every_problem_is_reported_at_once_one_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIDPIPE_PARTITIONS", "0")
    monkeypatch.setenv("GRIDPIPE_BLOCK_LINGER_SECONDS", "-1")
    monkeypatch.setenv("GRIDPIPE_NO_SUCH_SETTING", "1")
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    assert len(caught.value.problems) == 3
    for name in ("PARTITIONS", "BLOCK_LINGER_SECONDS", "NO_SUCH_SETTING"):
        assert sum(f"GRIDPIPE_{name}" in line for line in caught.value.problems) == 1
    assert not any("\n" in line for line in caught.value.problems)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"http": "8080"}, "host:port"),
        ({"http": "127.0.0.1:99999"}, "host:port"),
        ({"admin_http": "nowhere"}, "host:port"),
        ({"database": "Robert'); DROP"}, "GRIDPIPE_DATABASE"),
        ({"max_decompressed_bytes": 2_000_000}, "MAX_BODY_BYTES"),
        # a packed body and what it unpacks to; a signed one, that has a quarter until it is verified
        ({"in_flight_limit_bytes": 24_999_999}, "IN_FLIGHT_LIMIT_BYTES must be at least 25000000"),
        (
            {"in_flight_limit_bytes": 35_999_999, "max_body_bytes": 9_000_000},
            "IN_FLIGHT_LIMIT_BYTES must be at least 36000000",
        ),
        ({"log_level": "loud"}, "GRIDPIPE_LOG_LEVEL"),
    ],
)
def test_values_that_cannot_work_are_refused(values: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigurationError, match=word):
        load_settings(**values)


def test_a_budget_with_room_for_the_largest_body_is_taken() -> None:
    assert load_settings(in_flight_limit_bytes=25_000_000).in_flight_limit_bytes == 25_000_000


def test_addresses() -> None:
    assert split_address("127.0.0.1:0") == ("127.0.0.1", 0)
    assert split_address("[::1]:8080") == ("::1", 8080)
    assert [is_loopback(host) for host in ("localhost", "127.9.9.9", "::1", "0.0.0.0", "10.0.0.1")] == [
        True,
        True,
        True,
        False,
        False,
    ]


def test_settings_survive_the_way_to_a_child_process() -> None:
    settings = load_settings(
        data_dir=Path("elsewhere"), http="127.0.0.1:0", direct_backfill_sources=("a", "b")
    )
    assert Settings(**settings.model_dump(mode="json")) == settings


def test_every_setting_is_shown_with_its_meaning_and_none_with_a_password() -> None:
    rows = setting_rows(load_settings(clickhouse="https://grid:topsecret@ch.example:8443/?secure=1"))
    assert {row["name"] for row in rows} == set(Settings.model_fields)
    assert all(row["meaning"] and row["env"] == ENV_PREFIX + row["name"].upper() for row in rows)
    assert "topsecret" not in str(rows)
    assert mask_password("http://ch.example:8123") == "http://ch.example:8123"
