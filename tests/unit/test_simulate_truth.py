"""What the ledger expects of every simulated event is what the pipeline's own stages make of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
from clickhouse_connect.driver.client import Client

from pipeline.contract.privacy import Privacy
from pipeline.process.flow import Block, PartitionState, Rules, process_block
from pipeline.process.records import Record
from pipeline.reference.load import load_directory
from pipeline.reference.snapshot import Reference
from pipeline.rules.catalogue import load_catalogues
from pipeline.settings import load_settings
from pipeline.simulate.events import simulate
from pipeline.simulate.ndjson import to_json
from pipeline.simulate.plan import Noise, ordinary_days
from tests.unit.simulate_world import CATALOGUE, small_city, small_scene

END = datetime(2026, 9, 9, tzinfo=UTC)  # the days before it hold the simulated typhoon of September


def test_every_event_becomes_what_the_ledger_says(clickhouse: Client, tmp_path: Path) -> None:
    settings = load_settings(direct_backfill_sources=("local",))
    privacy = Privacy.load(tmp_path / "pseudonym.v1", create=True)
    report = load_directory(clickhouse, small_city(), privacy)
    assert report.fine, str(report)
    rules = Rules(
        Reference.load(clickhouse, tolerance_m=settings.grid_tolerance_m),
        load_catalogues(CATALOGUE),
        privacy,
        settings,
    )
    scene = small_scene()
    noise = Noise(
        rejected=0.4, resends=0.1, redeliveries=0.05, conflicts=0.01, supplements=0.05, orphans=0.05
    )
    plan = ordinary_days(700, END - timedelta(days=20), END, seed=9, tag="truth", source="local", noise=noise)
    events = simulate(scene, plan).events
    body = "\n".join(to_json(scene, events, "local")).encode()
    record = Record.of(0, plan.end_ms, body, [("content-type", b"application/x-ndjson")])
    result = process_block(Block(0, [record]), PartitionState.empty(settings), rules)

    no_reason = pl.lit(None, dtype=pl.String).alias("reason")
    made = pl.concat(
        [
            result.events.select("_idx", "outcome", no_reason),
            result.rejections.select("_idx", "outcome", reason=pl.col("reasons").list.first()),
            result.duplicates.select("_idx", pl.col("level").alias("outcome"), no_reason),
            result.quarantined.select("_idx", pl.lit("quarantined").alias("outcome"), no_reason),
        ]
    ).sort("_idx")
    assert len(made) == len(events)
    expected_reason = pl.when(pl.col("outcome") == "rejected").then("reason")
    expected = events.select("event_id", "outcome", expected_reason.alias("reason"))
    both = pl.concat([expected, made.select(pl.all().name.prefix("made_"))], how="horizontal")
    wrong = both.filter(
        (pl.col("outcome") != pl.col("made_outcome")) | pl.col("reason").ne_missing(pl.col("made_reason"))
    )
    assert wrong.is_empty(), wrong
    assert expected["reason"].n_unique() > 10
    assert set(expected["outcome"]) == {"admitted", "recorded", "rejected", "L1", "L2", "quarantined"}
    # the emergency mode of these days acted on some reports
    assert result.events["mode"].drop_nulls().len() > 0
