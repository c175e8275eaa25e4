"""The catalogue in ClickHouse: written once, again when it changed, also when it changed back."""

from __future__ import annotations

from pathlib import Path

import pytest
from clickhouse_connect.driver.client import Client

from pipeline.rules.catalogue import load_catalogues
from pipeline.rules.publish import PUBLISHED, publish
from tests.unit.admit_rows import catalogues, copy_catalogue, edit


def test_the_frame_has_the_columns_of_its_table(clickhouse: Client) -> None:
    columns = [row[0] for row in clickhouse.query("DESCRIBE TABLE ref_matters").result_rows]
    assert set(columns) - {"published_at"} == set(PUBLISHED)


def test_a_second_start_writes_nothing(clickhouse: Client) -> None:
    assert publish(clickhouse, catalogues()) is True
    assert publish(clickhouse, catalogues()) is False
    assert clickhouse.command("SELECT count() FROM ref_matters") == 67


def test_names_and_limits_can_be_looked_up(clickhouse: Client) -> None:
    publish(clickhouse, catalogues())
    rows = clickhouse.query(
        "SELECT name_zh, category_name_zh, lead_department_name_zh, response_limit_seconds,"
        " toString(effective_from, 'Asia/Shanghai'), effective_to, emergency_modes, temporary"
        " FROM ref_matters FINAL WHERE code = 'SA-07'"
    ).result_rows
    names = ("高空坠物及外墙悬挂物隐患", "安全隐患排查", "住房和城乡建设局")
    assert rows == [(*names, 3600, "2022-04-01 00:00:00.000", None, ["typhoon"], False)]


def test_a_changed_catalogue_replaces_the_rows_and_may_change_back(
    clickhouse: Client, tmp_path: Path
) -> None:
    directory = copy_catalogue(tmp_path / "catalogue")
    edit(directory / "matters" / "2022-04-01.yaml", "response_minutes: 1440", "response_minutes: 720")
    changed = load_catalogues(directory)

    def limit() -> int:
        seconds = clickhouse.command(
            "SELECT response_limit_seconds FROM ref_matters FINAL WHERE code = 'BI-01'"
        )
        assert isinstance(seconds, int)
        return seconds

    limits = []
    for rules in (catalogues(), changed, catalogues()):
        assert publish(clickhouse, rules) is True
        limits.append(limit())
    assert limits == [86_400, 43_200, 86_400]
    rows = "SELECT count(), uniqExact(rules) FROM ref_matters FINAL"
    assert clickhouse.query(rows).result_rows == [(67, 1)]


def test_two_processes_that_publish_at_once_write_one_copy(
    clickhouse: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have read the table before either wrote: the insert token absorbs the second."""
    nothing_yet = clickhouse.query("SELECT max(publication), argMax(rules, publication) FROM ref_matters")
    publish(clickhouse, catalogues())
    monkeypatch.setattr(clickhouse, "query", lambda *_: nothing_yet)
    assert publish(clickhouse, catalogues()) is True
    assert clickhouse.command("SELECT count() FROM ref_matters") == 67
