"""What the worker counts of a block, and what it says about single events."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import structlog
from clickhouse_connect.driver.client import Client

from pipeline import metrics
from pipeline.contract.canary import CANARY_SOURCE, canary_grid
from pipeline.frames import EVENT
from pipeline.ingest.blocks import ARROW, encode_frame
from pipeline.process.account import Account
from pipeline.process.decode import decode
from pipeline.process.flow import Block, BlockResult, PartitionState, Rules, process_block
from pipeline.process.records import Record
from pipeline.settings import Settings
from pipeline.sink.tables import Extent
from pipeline.store.migrate import migrate
from tests.integration.worker_world import PRIVACY, event, load_reference, record, rules_of

NOW = datetime.now(UTC)
SETTINGS = Settings()


@pytest.fixture(scope="module")
def rules(open_client: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rules]:
    migrate(open_client, "counted")
    load_reference(open_client, tmp_path_factory.mktemp("reference"))
    yield rules_of(open_client)
    open_client.command("DROP DATABASE counted")
    open_client.database = "default"


@pytest.fixture
def account(rules: Rules) -> Iterator[Account]:
    made = Account(lambda: {"handset"})
    made.reasons(rules.catalogues.reason_names_zh)
    yield made
    made.starts_at(0, 0)
    made.lag(0, 0, 0.0)
    made.forget(0)


def judged(rules: Rules, *records: Record) -> BlockResult:
    return process_block(Block(0, records), PartitionState.empty(SETTINGS), rules)


def now_event(number: int, **changes: Any) -> dict[str, Any]:
    return event(number, occurred_at=NOW.isoformat(), **changes)


def canary(number: int) -> dict[str, Any]:
    return event(
        f"canary-{number}",
        source=CANARY_SOURCE,
        event_type="DISCOVERED",
        occurred_at=NOW.isoformat(),
        grid_code=canary_grid(number),
        matter_code=None,
        location=None,
        photos=None,
        description=None,
    )


def samples() -> dict[tuple[str, ...], float]:
    """Every sample of our counters, by name and label values."""
    return {
        (item.name, *item.labels.values()): item.value
        for family in metrics.REGISTRY.collect()
        if family.type in {"counter", "histogram"}
        for item in family.samples
        if not item.name.endswith("_bucket")
    }


def grown(before: dict[tuple[str, ...], float]) -> dict[tuple[str, ...], float]:
    return {key: value - before.get(key, 0) for key, value in samples().items() if value != before.get(key)}


def test_freshness_counts_events_and_not_blocks(account: Account, rules: Rules) -> None:
    now = datetime.now(UTC)  # the module may have been read long ago
    fresh = record(0, *(now_event(number) for number in range(7)), received=now)
    late = record(1, *(now_event(number) for number in range(10, 13)), received=now - timedelta(seconds=6))
    before = samples()
    account.committed([Extent(0, 0, 1)], account.tally(judged(rules, fresh, late)))
    found = grown(before)
    assert found["gridpipe_freshness_events_total", "5s"] == 7
    assert found["gridpipe_freshness_events_total", "longer"] == 3
    assert found["gridpipe_events_received_total", "handset"] == 10


def test_a_source_without_a_key_on_this_host_is_told_by_its_name(rules: Rules) -> None:
    """Workers alone on their host have no keys."""
    account, before = Account(frozenset), samples()
    given = record(
        0, now_event(1), now_event(2, source="hotline"), now_event(3, source="hotline"), received=NOW
    )
    account.committed([Extent(0, 0, 0)], account.tally(judged(rules, given)))
    found = grown(before)
    assert found["gridpipe_events_received_total", "handset"] == 1
    assert found["gridpipe_events_received_total", "hotline"] == 2
    assert ("gridpipe_events_received_total", "other") not in found


def test_sources_without_end_have_one_label(rules: Rules, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.process.account._MOST_SOURCES", 2)
    account, before = Account(lambda: {"handset"}), samples()
    for offset, names in enumerate((["a-1", "a-2", "handset"], ["a-1", "a-3", "a-4", "handset"])):
        given = (now_event(10 * offset + at, source=name) for at, name in enumerate(names))
        account.committed([Extent(0, offset, offset)], account.tally(judged(rules, record(offset, *given))))
    found = {
        key[1]: value for key, value in grown(before).items() if key[0] == "gridpipe_events_received_total"
    }
    assert found == {"a-1": 2, "a-2": 1, "handset": 2, "other": 2}


def test_a_source_and_a_partition_leave_a_trace(account: Account, rules: Rules) -> None:
    account.committed([Extent(0, 0, 0)], account.tally(judged(rules, record(0, now_event(1), received=NOW))))
    seen = metrics.source_last_event_timestamp_seconds.labels("handset")._value.get()
    assert time.time() - 60 < seen <= time.time()
    assert metrics.committed_offset.labels("0")._value.get() == 1


def test_a_source_whose_events_all_break_the_contract_is_counted_and_not_heard_of(
    account: Account, rules: Rules
) -> None:
    seen = metrics.source_last_event_timestamp_seconds.labels("handset")
    seen.set(1)
    before = samples()
    result = judged(rules, record(0, now_event(1, grid_code="44"), received=NOW))
    account.committed([Extent(0, 0, 0)], account.tally(result))
    assert grown(before)["gridpipe_events_received_total", "handset"] == 1
    assert grown(before)["gridpipe_events_total", "quarantined"] == 1
    assert seen._value.get() == 1


def test_canaries_move_the_offset_and_nothing_else(account: Account, rules: Rules) -> None:
    before = samples()
    result = judged(rules, record(0, canary(1), canary(2), received=NOW))
    assert result.received == result.events.height == 2
    assert result.case_events.is_empty()
    account.committed([Extent(0, 0, 0)], account.tally(result))
    left = {key[0] for key in grown(before)}
    assert left <= {"gridpipe_stage_seconds_sum", "gridpipe_stage_seconds_count"}
    assert metrics.committed_offset.labels("0")._value.get() == 1


def test_canaries_among_others_leave_the_others_counted(account: Account, rules: Rules) -> None:
    before = samples()
    account.committed(
        [Extent(0, 0, 0)],
        account.tally(judged(rules, record(0, canary(1), now_event(1), canary(2), received=NOW))),
    )
    found = grown(before)
    assert found["gridpipe_events_received_total", "handset"] == 1
    assert found["gridpipe_events_total", "admitted"] == 1
    assert ("gridpipe_events_received_total", "other") not in found
    assert found["gridpipe_batch_rows_sum",] == 1


@pytest.mark.parametrize(
    "changed",
    [{"event_type": "REPORTED", "matter_code": "SF-01"}, {"grid_code": "440703001001001"}],
    ids=["a report", "a grid of the city"],
)
def test_what_only_bears_a_canarys_source_is_quarantined(rules: Rules, changed: dict[str, Any]) -> None:
    """Who writes to the topic can name any source: it would be a report in some figures, in others none."""
    forged = canary(2) | changed
    result = judged(rules, record(0, canary(1), forged, now_event(3), received=NOW))
    assert result.quarantined.select("_idx", "reason", "event_id").rows() == [(1, "MALFORMED", "ecanary-2")]
    assert result.events["event_id"].to_list() == ["ecanary-1", "e3"]
    assert result.rejections.is_empty()
    assert result.case_events["event_id"].to_list() == ["e3"]


def test_every_reason_begins_at_zero(account: Account, rules: Rules) -> None:
    for code in rules.catalogues.reason_names_zh:
        assert ("gridpipe_rejections_total", code) in samples()
        assert ("gridpipe_life_safety_rejections_total", code) in samples()


def test_rejections_alarms_and_duplicates_are_counted_by_what_they_are(
    account: Account, rules: Rules
) -> None:
    """Two reports of a fire, one of an unknown matter, an id three times, a text that comes again."""
    before = samples()
    fires = (now_event(number, matter_code="REF-119") for number in (1, 2))
    unknown, report = now_event(3, matter_code="NO-SUCH"), now_event(4)
    again = now_event(5, description=report["description"])
    given = record(0, *fires, unknown, report, report, report, again, received=NOW)
    account.committed([Extent(0, 0, 0)], account.tally(judged(rules, given)))
    found = grown(before)
    kinds = (
        "gridpipe_rejections_total",
        "gridpipe_life_safety_rejections_total",
        "gridpipe_duplicates_total",
    )
    assert {key: value for key, value in found.items() if key[0] in kinds} == {
        ("gridpipe_rejections_total", "REFER_EMERGENCY_SERVICE"): 2,
        ("gridpipe_rejections_total", "UNKNOWN_MATTER"): 1,
        ("gridpipe_life_safety_rejections_total", "REFER_EMERGENCY_SERVICE"): 2,
        ("gridpipe_duplicates_total", "L1"): 2,
        ("gridpipe_duplicates_total", "L2"): 1,
    }


def test_alarms_and_quarantine_are_told_by_ids_alone(account: Account, rules: Rules) -> None:
    text = "老人独居，电话 13800001234，煤气泄漏"
    alarm = now_event(1, matter_code="REF-119", description=text)
    result = judged(
        rules,
        record(0, alarm, received=NOW),
        Record(1, round(NOW.timestamp() * 1000), "application/json", b'{"event_id": "half'),
    )
    with structlog.testing.capture_logs() as lines:
        account.committed([Extent(0, 0, 1)], account.tally(result))
    told = {line["event"]: line for line in lines}
    assert told["event_quarantined"]["reason"] == "MALFORMED"
    assert (told["event_quarantined"]["part"], told["event_quarantined"]["off"]) == (0, 1)
    rejected = told["life_safety_rejected"]
    assert (rejected["event_id"], rejected["case_id"], rejected["source"]) == ("e1", "c1", "handset")
    assert rejected["reasons"]
    assert "13800001234" not in str(lines)
    assert "煤气" not in str(lines)


def test_an_event_in_quarantine_is_told_with_the_ids_of_its_case_and_request(
    account: Account, rules: Rules
) -> None:
    sent = decode([(0, [record(0, now_event(1), now_event(1, description="another"))])], privacy=PRIVACY)
    rows = sent.events.select(list(EVENT)).with_columns(request_id=pl.lit("req-9"))
    result = judged(rules, Record(0, 0, ARROW, encode_frame(rows), "1"))
    with structlog.testing.capture_logs() as lines:
        account.committed([Extent(0, 0, 0)], account.tally(result))
    (told,) = [line for line in lines if line["event"] == "event_quarantined"]
    assert told["reason"] == "ID_CONFLICT"
    assert (told["event_id"], told["case_id"], told["request_id"]) == ("e1", "c1", "req-9")
    assert "another" not in str(lines)


def test_of_an_event_that_cannot_be_read_only_an_id_that_may_be_shown_is_told(
    account: Account, rules: Rules
) -> None:
    """Its text is the sender's: a request id in it is none of ours."""
    texts = [
        b'{"event_id": "e1", "case_id": "c1", "request_id": "forged"}',
        b'{"event_id": "e1", "case_id": "p-13800001234"}',
        b'{"event_id": "e1", "case_id": {"phone": 1}}',
        b'["e1"]',
    ]
    received = round(NOW.timestamp() * 1000)
    result = judged(
        rules, *(Record(offset, received, "application/json", text) for offset, text in enumerate(texts))
    )
    with structlog.testing.capture_logs() as lines:
        account.committed([Extent(0, 0, 3)], account.tally(result))
    told = [line for line in lines if line["event"] == "event_quarantined"]
    assert [line["case_id"] for line in told] == ["c1", None, None, None]
    assert [line["request_id"] for line in told] == [None] * 4
    assert "13800001234" not in str(lines)


def test_the_disk_of_the_data_directory_is_read_at_each_scrape(tmp_path: Path) -> None:
    gauges = (metrics.http_data_disk_free_ratio, metrics.worker_data_disk_free_ratio)
    metrics.watch_data_disk(tmp_path)
    disk = shutil.disk_usage(tmp_path)
    for gauge in gauges:
        ((sample,),) = (family.samples for family in gauge.collect())
        assert sample.value == pytest.approx(disk.free / disk.total, abs=0.02)
    metrics.watch_data_disk(tmp_path / "gone")
    for gauge in gauges:
        ((sample,),) = (family.samples for family in gauge.collect())
        assert math.isnan(sample.value), "no alarm, and no scrape that fails"
