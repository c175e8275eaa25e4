"""The one registry of metrics: every metric object, its help text and its buckets.

Metrics are emitted once per batch or request. Labels come from closed sets: never an id, a person or
free text. The sources of direct producers are an open set: `process.account` bounds it, and calls the others
"other".
A role owns its metrics: no name is written by two roles, so that their expositions can be joined.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY = CollectorRegistry()

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

# --- embedded log
embedded_log_bytes = Gauge(
    "gridpipe_embedded_log_bytes",
    "Memory that the embedded broker took since its log began, bytes.",
    registry=REGISTRY,
)
embedded_log_rolls = Counter(
    "gridpipe_embedded_log_rolls",
    "Times that the embedded log was replaced by an empty one.",
    registry=REGISTRY,
)

# --- gateway
http_requests = Counter(
    "gridpipe_http_requests", "HTTP requests by route and status.", ["route", "status"], registry=REGISTRY
)
http_seconds = Histogram(
    "gridpipe_http_seconds",
    "Time to answer a request, by route.",
    ["route"],
    buckets=_SECONDS,
    registry=REGISTRY,
)
gateway_events = Counter(
    "gridpipe_gateway_events",
    "Events in requests, by what the gateway answered.",
    ["answer"],
    registry=REGISTRY,
)
gateway_refusals = Counter(
    "gridpipe_gateway_refusals", "Events refused by the gateway, by error code.", ["code"], registry=REGISTRY
)
gateway_quota_refusals = Counter(
    "gridpipe_gateway_quota_refusals",
    "Requests refused since a source of their key is over its quota, by that source.",
    ["source"],
    registry=REGISTRY,
)
gateway_in_flight_bytes = Gauge(
    "gridpipe_gateway_in_flight_bytes",
    "Bytes held for requests, as sent and as unpacked; with a plain key as declared before the body came.",
    registry=REGISTRY,
)
gateway_oldest_request_seconds = Gauge(
    "gridpipe_gateway_oldest_request_seconds",
    "For how long the oldest request whose body has come has waited for its answer; 0 when none waits.",
    registry=REGISTRY,
)

balance_missing_events = Gauge(
    "gridpipe_balance_missing_events",
    "Events of a sample that this gateway answered with 2xx over five minutes ago and that have no row yet.",
    ["source"],
    registry=REGISTRY,
)

process_up = Gauge(
    "gridpipe_process_up", "Whether this role answered this scrape.", ["role"], registry=REGISTRY
)

http_memory_bytes = Gauge(
    "gridpipe_http_memory_bytes", "Resident memory of the HTTP process.", registry=REGISTRY
)
http_start_time_seconds = Gauge(
    "gridpipe_http_start_time_seconds", "When the HTTP process was started.", registry=REGISTRY
)
http_loop_late_seconds = Gauge(
    "gridpipe_http_loop_late_seconds",
    "By how much the HTTP process's event loop came late at most within the last minute.",
    registry=REGISTRY,
)
http_machine_memory_free_ratio = Gauge(
    "gridpipe_http_machine_memory_free_ratio",
    "Share of the memory of the HTTP process's machine that is available.",
    registry=REGISTRY,
)

http_data_disk_free_ratio = Gauge(
    "gridpipe_http_data_disk_free_ratio",
    "Share of the disk of the HTTP process's data directory that is free.",
    registry=REGISTRY,
)

# --- canary (gateway): synthetic events that take the ordinary way, see pipeline/runtime/canary.py
canary_sent = Counter("gridpipe_canary_sent", "Canary events that the log took.", registry=REGISTRY)
canary_missing = Counter(
    "gridpipe_canary_missing",
    "Canary events that were not written, or not found in ClickHouse in time.",
    ["partition"],
    registry=REGISTRY,
)
canary_delay_seconds = Gauge(
    "gridpipe_canary_delay_seconds",
    "From sending the latest canary event to finding it in ClickHouse; "
    "if it was not found: the vain wait, the interval at least.",
    ["partition"],
    registry=REGISTRY,
)
canary_last_seen_timestamp_seconds = Gauge(
    "gridpipe_canary_last_seen_timestamp_seconds",
    "When a canary event was last found in ClickHouse; before the first one: the start of the process.",
    ["partition"],
    registry=REGISTRY,
)

# --- worker
worker_memory_bytes = Gauge(
    "gridpipe_worker_memory_bytes",
    "Resident memory of the worker's process, the embedded ClickHouse included.",
    registry=REGISTRY,
)
worker_start_time_seconds = Gauge(
    "gridpipe_worker_start_time_seconds", "When the worker's process was started.", registry=REGISTRY
)
worker_loop_late_seconds = Gauge(
    "gridpipe_worker_loop_late_seconds",
    "By how much the worker's event loop came late at most within the last minute.",
    registry=REGISTRY,
)
worker_buffer_bytes = Gauge(
    "gridpipe_worker_buffer_bytes",
    "Records that wait in the worker for their block. Over its limit nothing more is fetched.",
    registry=REGISTRY,
)
worker_machine_memory_free_ratio = Gauge(
    "gridpipe_worker_machine_memory_free_ratio",
    "Share of the memory of the worker's machine that is available.",
    registry=REGISTRY,
)
worker_data_disk_free_ratio = Gauge(
    "gridpipe_worker_data_disk_free_ratio",
    "Share of the disk of the worker's data directory that is free.",
    registry=REGISTRY,
)
events_received = Counter(
    "gridpipe_events_received",
    "Events taken from the topic and committed, by feeding source.",
    ["source"],
    registry=REGISTRY,
)
events = Counter(
    "gridpipe_events",
    "Events by outcome: admitted, rejected, recorded, duplicate or quarantined; they add up to received.",
    ["outcome"],
    registry=REGISTRY,
)
rejections = Counter(
    "gridpipe_rejections", "Rejected reports by primary reason.", ["reason"], registry=REGISTRY
)
duplicates = Counter("gridpipe_duplicates", "Duplicates by level (L1, L2).", ["level"], registry=REGISTRY)
stage_seconds = Histogram(
    "gridpipe_stage_seconds",
    "Time a round, the blocks that are stored together, spends in a stage.",
    ["stage"],
    buckets=_SECONDS,
    registry=REGISTRY,
)
batch_rows = Histogram(
    "gridpipe_batch_rows",
    "Events per round: of the blocks that are stored together.",
    buckets=(1, 10, 100, 1_000, 5_000, 10_000, 20_000, 50_000, 100_000),
    registry=REGISTRY,
)
ingest_delay_seconds = Histogram(
    "gridpipe_ingest_delay_seconds", "From accepted to queryable.", buckets=_SECONDS, registry=REGISTRY
)
freshness_events = Counter(
    "gridpipe_freshness_events",
    "Stored events by whether they were queryable within five seconds of being accepted.",
    ["within"],
    registry=REGISTRY,
)
source_last_event_timestamp_seconds = Gauge(
    "gridpipe_source_last_event_timestamp_seconds",
    "When an event of this source that was not quarantined was last committed.",
    ["source"],
    registry=REGISTRY,
)
partition_braked = Gauge(
    "gridpipe_partition_braked",
    "Whether a partition stands still because too many of its records cannot be read.",
    ["partition"],
    registry=REGISTRY,
)
committed_offset = Gauge(
    "gridpipe_committed_offset", "Next offset to process of a partition.", ["partition"], registry=REGISTRY
)
consumer_lag_records = Gauge(
    "gridpipe_consumer_lag_records", "Records not yet committed.", ["partition"], registry=REGISTRY
)
consumer_lag_seconds = Gauge(
    "gridpipe_consumer_lag_seconds",
    "Age of the oldest record not yet committed.",
    ["partition"],
    registry=REGISTRY,
)
insert_seconds = Histogram(
    "gridpipe_insert_seconds", "Time of one insert, by table.", ["table"], buckets=_SECONDS, registry=REGISTRY
)
insert_retries = Counter(
    "gridpipe_insert_retries", "Inserts sent again after a passing error.", registry=REGISTRY
)
sink_blocked_seconds = Gauge(
    "gridpipe_sink_blocked_seconds",
    "How long the store has refused, or not answered, the call that is repeated longest; 0 when none is.",
    registry=REGISTRY,
)
life_safety_rejections = Counter(
    "gridpipe_life_safety_rejections",
    "Rejected reports that may concern life and limb: a clerk must look at once.",
    ["reason"],
    registry=REGISTRY,
)
verifier_gap = Counter(
    "gridpipe_verifier_gap",
    "Offsets passed over by committed blocks, or committed before an assignment, without any row.",
    registry=REGISTRY,
)
verifier_overlap = Counter(
    "gridpipe_verifier_overlap", "Blocks that overlap a committed one.", registry=REGISTRY
)
verifier_drift = Counter(
    "gridpipe_verifier_drift",
    "Cases whose stored state was not that of their stored events, each minute anew.",
    registry=REGISTRY,
)
verifier_double_ids = Counter(
    "gridpipe_verifier_double_ids",
    "Ids that stand twice within the redelivery window in the cases last written to, each minute anew.",
    registry=REGISTRY,
)
verifier_backward = Counter("gridpipe_verifier_backward", "Commits that went backward.", registry=REGISTRY)
dedup_entries = Gauge(
    "gridpipe_dedup_entries", "Ids and report contents held for deduplication.", ["level"], registry=REGISTRY
)
dedup_forgotten = Counter(
    "gridpipe_dedup_forgotten",
    "Ids dropped from memory inside the redelivery window: a copy of theirs would be taken for new.",
    registry=REGISTRY,
)
reference_rows = Gauge(
    "gridpipe_reference_rows", "Rows of reference data loaded.", ["kind"], registry=REGISTRY
)

# --- api: business figures of the KPI defaults (cohort, last 30 days, as of now)
closure_ratio = Gauge("gridpipe_closure_ratio", "Closure rate (办结率).", ["district"], registry=REGISTRY)
response_ratio = Gauge("gridpipe_response_ratio", "Response rate (响应率).", ["district"], registry=REGISTRY)
open_cases = Gauge("gridpipe_open_cases", "Open cases (未办结).", ["district"], registry=REGISTRY)
overdue_cases = Gauge(
    "gridpipe_overdue_cases", "Open cases past their limit (超期).", ["district"], registry=REGISTRY
)
response_breached_cases = Gauge(
    "gridpipe_response_breached_cases",
    "Cases whose response limit passed without a response in time (响应超时).",
    ["district"],
    registry=REGISTRY,
)
response_breaches_last_hour_cases = Gauge(
    "gridpipe_response_breaches_last_hour_cases",
    "Cases whose response limit passed within the last hour without a response by then.",
    ["district"],
    registry=REGISTRY,
)
life_safety_rejections_last_hour_reports = Gauge(
    "gridpipe_life_safety_rejections_last_hour_reports",
    "Reports that may concern life and limb, received within the last hour and rejected, from the table.",
    ["reason"],
    registry=REGISTRY,
)
business_as_of_timestamp_seconds = Gauge(
    "gridpipe_business_as_of_timestamp_seconds",
    "The instant as of which the business gauges hold.",
    registry=REGISTRY,
)
store_disk_free_bytes = Gauge(
    "gridpipe_store_disk_free_bytes", "Free bytes of ClickHouse's disks.", ["disk"], registry=REGISTRY
)
store_disk_size_bytes = Gauge(
    "gridpipe_store_disk_size_bytes", "Size of ClickHouse's disks.", ["disk"], registry=REGISTRY
)
response_seconds = Gauge(
    "gridpipe_response_seconds", "Response time (响应时间).", ["district", "quantile"], registry=REGISTRY
)
held_cases = Gauge(
    "gridpipe_held_cases",
    "Cases whose figures are held in memory (0: KPI calls are answered by ClickHouse).",
    registry=REGISTRY,
)
held_bytes = Gauge("gridpipe_held_bytes", "Memory of the cases and reports that are held.", registry=REGISTRY)


def _resident_bytes() -> float:
    return float(psutil.Process().memory_info().rss)


def _memory_free_ratio() -> float:
    memory = psutil.virtual_memory()
    return float(memory.available / memory.total)


def _disk_free_ratio(directory: Path) -> float:
    """Not a number where nothing can be said: a scrape tells all else all the same."""
    try:
        disk = os.statvfs(directory)
    except OSError:
        return float("nan")
    return disk.f_bavail / disk.f_blocks if disk.f_blocks else float("nan")


def watch_data_disk(directory: Path) -> None:
    """Each scrape of this process tells how full the disk of its data directory is."""
    for gauge in (http_data_disk_free_ratio, worker_data_disk_free_ratio):
        gauge.set_function(lambda: _disk_free_ratio(directory))


# A zero would be an alarm of a process that has no data directory.
for _gauge in (http_data_disk_free_ratio, worker_data_disk_free_ratio):
    _gauge.set(float("nan"))
# Read at the scrape, each by the process that the scrape reaches.
for _gauge in (http_memory_bytes, worker_memory_bytes):
    _gauge.set_function(_resident_bytes)
for _gauge in (http_machine_memory_free_ratio, worker_machine_memory_free_ratio):
    _gauge.set_function(_memory_free_ratio)
for _gauge in (http_start_time_seconds, worker_start_time_seconds):
    _gauge.set(psutil.Process().create_time())

# A counter that appears with its first increment hides that increment from rate(): closed sets begin at zero.
for _answer in ("accepted", "refused", "not_written"):
    gateway_events.labels(_answer)
for _outcome in ("admitted", "rejected", "recorded", "duplicate", "quarantined"):
    events.labels(_outcome)
for _level in ("L1", "L2"):
    duplicates.labels(_level)
for _within in ("5s", "longer"):
    freshness_events.labels(_within)


def begin_reasons(codes: Iterable[str]) -> None:
    """Let the rejection counters of these reason codes begin at zero."""
    for code in codes:
        rejections.labels(code)
        life_safety_rejections.labels(code)
