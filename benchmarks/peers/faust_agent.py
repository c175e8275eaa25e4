"""A plain Faust agent: one event at a time, dictionaries for state, rows inserted in batches.

It is what the framework's tutorial leads to, written with care: orjson, prepared polygons, one dictionary
look-up per question, 5,000-row inserts, automatic commits. It does the work of our pipeline that the
comparison is about: decode and check, L1, look-ups, the 13 rules, L2, enrichment, rows into `peer_events`.
It does less than ours elsewhere: no positions, no case states, no recovery, and no personal data is replaced.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
from datetime import UTC, datetime, timedelta
from math import cos, degrees, pi, radians, sin, sqrt
from pathlib import Path
from typing import Any

import clickhouse_connect
import faust
import orjson
import polars as pl
import shapely
import yaml

BATCH_ROWS = 5_000
ID = re.compile(r"[A-Za-z0-9._:-]{1,64}$")
GRID = re.compile(r"\d{15}(-U\d{3})?$")
SHA = re.compile(r"[0-9a-f]{64}$")
TABLE = """
CREATE TABLE IF NOT EXISTS peer_events (source String, event_id String, event_type String, case_id String,
  occurred_at DateTime64(3,'UTC'), channel String, matter_code String, grid_code String,
  outcome String,
  reasons Array(String), category String, lead_department String, response_limit UInt32,
  resolution_limit UInt32,
  grid_name String, grid_type String, staff_kind String, age_bands Array(String), evidence_pending Bool,
  title String, description String) ENGINE = MergeTree ORDER BY (grid_code, occurred_at)
"""
REQUIRED = ("event_id", "source", "event_type", "case_id", "occurred_at", "grid_code", "channel", "actor")


class Work:
    """State and rules of the agent."""

    def __init__(self, city: Path, catalogue: Path) -> None:
        matters, channels = load_catalogue(catalogue)
        self.matters, self.channels = matters, channels
        grids = pl.read_parquet(city / "grids.parquet")
        self.grids = {}
        for row in grids.iter_rows(named=True):
            # 200 m around the polygon, in degrees at this latitude
            shape = shapely.from_wkt(row["boundary"]).buffer(0.0019)
            shapely.prepare(shape)
            self.grids[row["grid_code"]] = (row["grid_name"], row["grid_type"], row["status"], shape)
        self.staff = {
            row["worker_key"]: row for row in pl.read_parquet(city / "staff.parquet").iter_rows(named=True)
        }
        persons = pl.read_parquet(city / "persons.parquet")
        self.persons = dict(zip(persons["id_number"], persons["birth_date"], strict=True))
        self.seen: set[tuple[str, str]] = set()
        self.contents: dict[bytes, datetime] = {}
        self.counts = {"admitted": 0, "rejected": 0, "recorded": 0, "duplicate": 0, "quarantined": 0}

    def handle(self, value: bytes) -> list[Any] | None:
        try:
            event = orjson.loads(value)
            if any(event.get(name) is None for name in REQUIRED) or not ID.match(event["event_id"]):
                raise ValueError
            if not GRID.match(event["grid_code"]):
                raise ValueError
            occurred = datetime.fromisoformat(event["occurred_at"])
            if occurred.tzinfo is None:
                raise ValueError
        except (ValueError, KeyError, TypeError):
            self.counts["quarantined"] += 1
            return None
        identity = (event["source"], event["event_id"])
        if identity in self.seen:
            self.counts["duplicate"] += 1
            return None
        self.seen.add(identity)
        matter = self.matters.get(event.get("matter_code"))
        grid = self.grids.get(event["grid_code"][:15])
        bands: list[str] = []
        for person in event.get("persons") or ():
            born = self.persons.get(person.get("id_number"))
            if born is not None:
                bands.append(str((occurred.date() - born).days // 3652))
        reasons: list[str] = []
        pending = False
        outcome = "recorded"
        if event["event_type"] == "REPORTED":
            reasons, pending = self.judge(event, occurred, matter, grid, bands)
            outcome = "rejected" if reasons else "admitted"
            if not reasons and self.is_resend(event, occurred):
                self.counts["duplicate"] += 1
                return None
        self.counts[outcome] += 1
        worker = self.staff.get(event["actor"].get("key"))
        return [
            event["source"], event["event_id"], event["event_type"], event["case_id"], occurred,
            event["channel"], event.get("matter_code") or "", event["grid_code"], outcome, reasons,
            matter["category"] if matter else "", matter["lead_department"] if matter else "",
            matter["response_minutes"] * 60 if matter else 0,
            matter["resolution_hours"] * 3600 if matter else 0,
            grid[0] if grid else "", grid[1] if grid else "", worker["kind"] if worker else "",
            bands, pending, event.get("title") or "", event.get("description") or "",
        ]  # fmt: skip

    def judge(
        self, event: dict[str, Any], occurred: datetime, matter: Any, grid: Any, bands: list[str]
    ) -> tuple[list[str], bool]:
        reasons: list[str] = []
        now = datetime.now(UTC)
        if occurred > now + timedelta(minutes=5):
            reasons.append("TIME_IN_FUTURE")
        channel = event["channel"]
        if event["matter_code"].startswith("REF-"):
            reasons.append("REFER_EMERGENCY_SERVICE")
        elif matter is None:
            reasons.append("UNKNOWN_MATTER")
        else:
            if occurred.date() < matter["effective_from"]:
                reasons.append("MATTER_NOT_YET_IN_FORCE")
            if channel not in matter["allowed_channels"]:
                reasons.append("CHANNEL_NOT_ALLOWED")
        if channel in ("grid_patrol", "yuepingan", "rider_qrcode"):
            worker = self.staff.get(event["actor"].get("key"))
            if (
                worker is None
                or (worker["active_to"] is not None and worker["active_to"] <= occurred)
                or (channel == "grid_patrol" and worker["grid_code"] != event["grid_code"][:15])
            ):
                reasons.append("REPORTER_NOT_AUTHORISED")
        if grid is None:
            reasons.append("GRID_UNKNOWN")
        elif grid[2] != "active":
            reasons.append("GRID_INACTIVE")
        location = event.get("location")
        if grid is not None and location and location.get("lon") is not None:
            lon, lat = location["lon"], location["lat"]
            if location["crs"] == "gcj02":
                lon, lat = to_wgs84(lon, lat)
            point = shapely.Point(lon, lat)
            if not grid[3].contains(point):
                reasons.append("LOCATION_GRID_MISMATCH")
        pending = False
        if matter is not None:
            for field in matter["required_fields"]:
                if field == "photo" and not self.channels[channel]:
                    pending = True
                elif not event.get({"photo": "photos", "person": "persons"}.get(field, field)):
                    reasons.append("REQUIRED_FIELD_MISSING")
                    break
            for photo in event.get("photos") or ():
                taken = photo.get("taken_at")
                if not SHA.match(photo["sha256"]) or (
                    taken is not None and abs(datetime.fromisoformat(taken) - occurred) > timedelta(hours=24)
                ):
                    reasons.append("EVIDENCE_INVALID")
                    break
            if matter["needs_person"] and event.get("persons") and not bands:
                reasons.append("PERSON_UNRESOLVED")
        return reasons, pending

    def is_resend(self, event: dict[str, Any], occurred: datetime) -> bool:
        actor = event["actor"]
        reporter = actor.get("key") or actor.get("id_number") or actor.get("phone")
        text = f"{event.get('title') or ''} {event.get('description') or ''}".strip()
        if not reporter or not (text or event.get("photos")):
            return False
        content = orjson.dumps(
            [
                reporter,
                event.get("matter_code"),
                event["grid_code"],
                text,
                event.get("photos"),
                event.get("location"),
            ]
        )
        digest = hashlib.blake2b(content, digest_size=16).digest()
        first = self.contents.get(digest)
        if first is not None and abs(occurred - first) <= timedelta(minutes=10):
            return True
        self.contents[digest] = occurred
        return False


def to_wgs84(lon: float, lat: float) -> tuple[float, float]:
    """GCJ-02 degrees to WGS84, one round of the published formula."""
    x, y = lon - 105.0, lat - 35.0
    ripple = (20.0 * sin(6.0 * pi * x) + 20.0 * sin(2.0 * pi * x)) * 2.0 / 3.0
    north = -100.0 + 2.0 * x + 3.0 * y + 0.2 * y * y + 0.1 * x * y + 0.2 * sqrt(abs(x)) + ripple
    north += (20.0 * sin(pi * y) + 40.0 * sin(pi / 3.0 * y)) * 2.0 / 3.0
    north += (160.0 * sin(pi / 12.0 * y) + 320.0 * sin(pi / 30.0 * y)) * 2.0 / 3.0
    east = 300.0 + x + 2.0 * y + 0.1 * x * x + 0.1 * x * y + 0.1 * sqrt(abs(x)) + ripple
    east += (20.0 * sin(pi * x) + 40.0 * sin(pi / 3.0 * x)) * 2.0 / 3.0
    east += (150.0 * sin(pi / 12.0 * x) + 300.0 * sin(pi / 30.0 * x)) * 2.0 / 3.0
    magic = 1.0 - 0.00669342162296594323 * sin(radians(lat)) ** 2
    meridian = 6_378_245.0 * (1.0 - 0.00669342162296594323) / (magic * sqrt(magic))
    return lon - degrees(east / (6_378_245.0 / sqrt(magic) * cos(radians(lat)))), lat - degrees(
        north / meridian
    )


def load_catalogue(path: Path) -> tuple[dict[str, Any], dict[str, bool]]:
    """Matters by code, and per channel whether it can carry a photo, from the product's catalogue."""
    matters: dict[str, Any] = {}
    channels: dict[str, bool] = {}
    for file in sorted(path.rglob("*.yaml")):
        document = yaml.safe_load(file.read_text())
        for matter in document.get("matters", ()) if isinstance(document, dict) else ():
            matters[matter["code"]] = matter
        for channel in document.get("channels", ()) if isinstance(document, dict) else ():
            channels[channel["code"]] = channel["carries_photo"]
    return matters, channels


def main() -> None:
    bootstrap, topic, city, catalogue, path, expected = sys.argv[1:]
    work = Work(Path(city), Path(catalogue))
    client = clickhouse_connect.get_client(interface="chdb", path=path)
    client.command(TABLE)
    app = faust.App(
        "peer",
        broker=f"kafka://{bootstrap}",
        value_serializer="raw",
        web_enabled=False,
        topic_disable_leader=True,
        topic_allow_declare=False,
        broker_rebalance_timeout=6.0,
        broker_session_timeout=6.0,
        broker_heartbeat_interval=1.0,
        stream_wait_empty=False,
    )
    events = app.topic(topic, value_serializer="raw")
    rows: list[list[Any]] = []
    taken = 0
    started = 0.0

    @app.agent(events)
    async def handle(stream: Any) -> None:
        nonlocal taken, started
        async for value in stream:
            if not taken:
                started = time.perf_counter()
            taken += 1
            row = work.handle(value)
            if row is not None:
                rows.append(row)
            if len(rows) >= BATCH_ROWS or (taken == int(expected) and rows):
                client.insert("peer_events", rows)
                rows.clear()
            if taken == int(expected):
                seconds = time.perf_counter() - started
                stored = client.command("SELECT count() FROM peer_events")
                print(
                    orjson.dumps({"seconds": seconds, "stored": stored, "counts": work.counts}).decode(),
                    flush=True,
                )
                os._exit(0)

    app.finalize()
    worker = faust.Worker(app, loglevel="ERROR", redirect_stdouts=False)
    worker.execute_from_commandline()


if __name__ == "__main__":
    main()
