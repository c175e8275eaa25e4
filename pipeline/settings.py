"""Every setting, declared once: default, unit, meaning. Environment name: GRIDPIPE_<NAME>.

Start-up calls `load_settings`, which reports every problem at once and refuses contradictory pairs.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from pipeline.errors import ConfigurationError

ENV_PREFIX = "GRIDPIPE_"


def _schemas_dir() -> Path:
    """`schemas/` of the checkout, or the copy that a wheel carries."""
    package = Path(__file__).parent
    packed = package / "_schemas"
    return packed if packed.is_dir() else package.parent / "schemas"


class Settings(BaseSettings):
    """Settings of all roles; flags of the command line override the environment, which overrides defaults."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True)

    # --- where things are
    data_dir: Path = Field(Path("var"), description="Directory for everything that gridpipe writes.")
    schemas_dir: Path = Field(
        default_factory=_schemas_dir, description="Directory of the contract and catalogue."
    )
    http: str = Field("127.0.0.1:8080", description="Address of the HTTP listener, host:port.")
    admin_http: str | None = Field(
        None, description="Address for /metrics and /health; unset: they share `http` while it is loopback."
    )
    kafka: str | None = Field(None, description="Kafka bootstrap servers; unset: the embedded broker.")
    clickhouse: str | None = Field(
        None,
        description="ClickHouse URL (http or https, user and password in it); unset: the embedded engine.",
    )
    database: str = Field("grid", pattern=r"^[a-z_][a-z0-9_]{0,62}$", description="ClickHouse database.")
    topic: str = Field(
        "grid.events", pattern=r"^[A-Za-z0-9._-]{1,200}$", description="Topic of incoming events."
    )
    partitions: int = Field(
        12, ge=1, le=1024, description="Partitions of the topic when gridpipe creates it."
    )
    topic_replication: int = Field(
        3,
        ge=1,
        le=100,
        description="Copies of each record, on as many Kafka nodes: the topic is created with so many, and "
        "a gateway refuses one with fewer. Below 3 a lost disk or two can lose answered events. Unset, with "
        "a Kafka on loopback: at most as many as it has nodes.",
    )
    topic_min_insync_replicas: int = Field(
        2,
        ge=1,
        le=100,
        description="Copies that must have a record before it is answered (min.insync.replicas), at most "
        "`topic_replication`: the topic is created with it, and a gateway refuses one with fewer.",
    )
    topic_retention_days: float = Field(
        7.0,
        gt=0,
        le=3_650,
        description="Days that Kafka keeps a record (retention.ms): the topic is created with it, and a "
        "difference is told. A worker that is away longer loses events; docs/privacy.md says 7 at most.",
    )
    consumer_group: str = Field("gridpipe", min_length=1, description="Kafka consumer group of the workers.")

    # --- the page of an api whose gateways and workers are processes of their own
    watch: str | None = Field(
        None,
        description="Addresses of gateways' and workers' /metrics, host:port or https://host:port with "
        "commas between, for the flow on the page of an api by itself; unset: its own processes only.",
    )
    watch_key_file: Path | None = Field(
        None,
        description="File (0600) with an admin key, which they ask for where they are not on loopback.",
    )

    # --- transport
    tls_cert: Path | None = Field(
        None, description="Certificate chain (PEM) of the HTTP listener; unset: plain HTTP."
    )
    tls_key: Path | None = Field(None, description="Its private key (PEM, 0600).")
    tls_client_ca: Path | None = Field(
        None, description="Authority (PEM) whose certificates callers must show (mTLS); unset: none."
    )
    tls_ca: Path | None = Field(
        None, description="Authority (PEM) that commands trust when --url is https; unset: the system's."
    )
    tls_client_cert: Path | None = Field(None, description="Certificate (PEM) that commands show.")
    tls_client_key: Path | None = Field(None, description="Its private key (PEM, 0600).")
    kafka_security: Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"] = Field(
        "plaintext", description="How to talk to --kafka; the embedded broker is plain, on loopback."
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "SCRAM-SHA-512", description="SASL mechanism for sasl_plaintext and sasl_ssl."
    )
    kafka_username: str | None = Field(None, description="SASL user.")
    kafka_password_file: Path | None = Field(None, description="File (0600) with the SASL user's password.")
    kafka_ca: Path | None = Field(None, description="Authority (PEM) of the brokers; unset: the system's.")
    kafka_cert: Path | None = Field(None, description="Certificate (PEM) that we show to the brokers.")
    kafka_key: Path | None = Field(None, description="Its private key (PEM, 0600).")
    clickhouse_password_file: Path | None = Field(
        None, description="File (0600) with the password for --clickhouse, instead of one in the URL."
    )
    clickhouse_ca: Path | None = Field(None, description="Authority (PEM) of the server; default: system.")
    clickhouse_cert: Path | None = Field(None, description="Certificate (PEM) that we show to the server.")
    clickhouse_key: Path | None = Field(None, description="Its private key (PEM, 0600).")

    # --- commands
    key_file: Path | None = Field(
        None,
        description="File (0600) with the key that commands send and read with; unset: `local.key`.",
    )

    # --- gateway
    max_body_bytes: int = Field(5_000_000, ge=1_000, description="Largest request body as sent, bytes.")
    max_decompressed_bytes: int = Field(
        20_000_000,
        ge=1_000,
        description="Largest body decompressed, bytes; above `max_body_bytes` at most 50 times as sent.",
    )
    max_events_per_request: int = Field(5_000, ge=1, description="Most events in one request.")
    max_json_depth: int = Field(32, ge=4, le=512, description="Deepest nesting of a document.")
    max_block_bytes: int = Field(900_000, ge=10_000, description="Largest Arrow block on the topic, bytes.")
    durability_timeout_seconds: float = Field(
        20.0, gt=0, description="How long a request waits for its events to be durable before 503."
    )
    in_flight_limit_bytes: int = Field(
        256_000_000,
        ge=1_000_000,
        description="Bytes of requests handled at once, sent and unpacked; above: 503. At least four times "
        "`max_body_bytes`, and it and `max_decompressed_bytes` together.",
    )

    max_connections: int = Field(
        2_000, ge=10, description="Open connections of the HTTP process; whoever comes above gets 503."
    )

    # --- quotas
    quota_window_seconds: int = Field(
        10, ge=1, le=3_600, description="Seconds over which every quota is averaged: bursts may be as long."
    )
    quota_address_requests_per_second: int = Field(
        1_000, ge=0, description="Requests per second of one address (IPv6: one /64); 0: no limit."
    )
    quota_address_bytes_per_second: int = Field(
        50_000_000, ge=0, description="Bytes of request bodies per second of one address; 0: no limit."
    )
    quota_source_requests_per_second: int = Field(
        5_000, ge=0, description="Requests per second of one source, whatever its keys; 0: no limit."
    )
    quota_source_events_per_second: int = Field(
        50_000, ge=0, description="Events per second of one source, whatever its keys; 0: no limit."
    )
    quota_source_bytes_per_second: int = Field(
        50_000_000,
        ge=0,
        description="Bytes of request bodies per second of one source, whatever its keys; 0: no limit.",
    )
    quota_loopback: bool = Field(
        False,
        description="Quotas also for callers on a loopback address, as behind a proxy on the same machine.",
    )

    # --- worker
    block_max_rows: int = Field(50_000, ge=1, description="Rows after which a block is closed.")
    block_linger_seconds: float = Field(0.05, ge=0, description="Longest wait for more records in a block.")
    worker_buffer_bytes: int = Field(
        24_000_000,
        ge=1_000_000,
        description="Bytes that a worker buffers of all its partitions together before fetching pauses.",
    )
    unreadable_share: float = Field(
        0.2,
        ge=0,
        le=1,
        description="Share of a partition's last 10,000 records that may be unreadable before it stops, "
        "as it does after 1,000 in a row; 1: it never stops, all go into quarantine.",
    )
    insert_timeout_seconds: float = Field(30.0, gt=0, description="Longest wait for one insert.")
    stall_seconds: float = Field(
        120.0,
        ge=0,
        description="A process ends, to be started again, when its event loop stood still for so long, or a "
        "partition with records that wait, the longest insert left out; 0: it never does.",
    )
    dedup_window_days: float = Field(
        7.0, gt=0, le=90, description="Redelivery (L1) window, by ingested_at, days."
    )
    resend_window_seconds: int = Field(
        600, ge=0, description="Resend (L2) window between occurred_ats, seconds."
    )
    submission_window_hours: float = Field(
        72.0, ge=0, description="Window for an equal submission_id, hours."
    )
    direct_backfill_sources: tuple[str, ...] = Field(
        (), description="Sources of direct Kafka records that are exempt from TOO_OLD and the late flags."
    )
    embedded_log_limit_bytes: int = Field(
        512_000_000, ge=1_000_000, description="Memory of the embedded broker's log above which it is rolled."
    )
    embedded_log_quiet_seconds: float = Field(
        60.0, ge=0, description="The embedded log is rolled only when no direct record came for this long."
    )
    reference_refresh_seconds: float = Field(
        5.0, gt=0, description="How often workers look for new reference data."
    )

    # --- canary
    canary_interval_seconds: float = Field(
        60.0,
        ge=0,
        le=60,  # GridpipeCanaryMissing fires after three minutes
        description="Seconds between two canary events of a partition, at most 60; 0: none are sent.",
    )

    # --- domain
    event_retention_days: int = Field(
        90, ge=7, description="Days after receipt for which single events are shown; later: 410 Gone."
    )
    districts_taking_part: tuple[str, ...] = Field(
        ("440703", "440704", "440705", "440781", "440783", "440784", "440785"),
        description="Districts whose grids may report (rule 8).",
    )
    grid_tolerance_m: float = Field(
        200.0, ge=0, description="Tolerance around a grid's polygon (rule 9), metres."
    )

    # --- simulated city
    simulated_persons: int = Field(20_000, ge=0, le=5_000_000, description="Residents of the simulated city.")
    simulate_seed: int = Field(20221001, ge=0, description="Seed of the simulated city and its events.")
    simulate_events_per_second: float = Field(
        5.0, ge=0, description="Pace of `up`'s simulated events, events/s."
    )

    # --- personal data
    person_link_days: int = Field(
        365, ge=7, description="Days after receipt that an event stays linked to persons (keys, facts)."
    )
    fact_retention_days: int = Field(
        1_095, ge=30, description="Days after receipt that events without personal data are kept."
    )
    held_cases: int = Field(
        1_200_000,
        ge=0,
        description="Most cases of which the api holds the figures in memory, half a kilobyte each; with "
        "more, and with 0, ClickHouse counts them for every call.",
    )
    small_cell_k: int = Field(
        5, ge=0, description="Rows of villages and grids with fewer reports are blank for readers; 0: none."
    )
    small_cells_on_loopback: bool = Field(
        False,
        description="Blank small rows also for who reads on this machine, as behind a proxy without headers.",
    )
    audit_keep_days: int = Field(
        1_095, ge=1, description="Days that the audit log of reads of personal data is kept."
    )

    # --- logs
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe log line shown."
    )

    @property
    def topic_min_insync(self) -> int:
        """`topic_min_insync_replicas`; one copy alone cannot be two."""
        return min(self.topic_min_insync_replicas, self.topic_replication)

    @property
    def place(self) -> str:
        """Options that lead another command to the same store, with a space before each: for advice."""
        if self.clickhouse is not None:
            return " --clickhouse …"  # it may hold a password
        default = type(self).model_fields["data_dir"].default
        return "" if self.data_dir == default else f" --data-dir {shlex.quote(str(self.data_dir))}"

    # --- derived places under data_dir
    @property
    def clickhouse_dir(self) -> Path:
        return self.data_dir / "clickhouse"

    @property
    def tmp_dir(self) -> Path:
        return self.data_dir / "tmp"

    @property
    def engine_tmp_dir(self) -> Path:
        """Temporary files of the embedded engine's process, emptied whenever it starts."""
        return self.tmp_dir / "engine"

    @property
    def log_dir(self) -> Path:
        return self.data_dir / "log"

    @property
    def audit_dir(self) -> Path:
        """Who read or changed personal data, a file a day."""
        return self.data_dir / "audit"

    @property
    def evidence_dir(self) -> Path:
        """What was done for each request to erase a person."""
        return self.data_dir / "evidence"

    @property
    def run_dir(self) -> Path:
        """Lock, pids and the addresses of the running processes."""
        return self.data_dir / "run"

    @property
    def city_dir(self) -> Path:
        return self.data_dir / "city"

    @property
    def own_reference_path(self) -> Path:
        """Is there once reference data of a real city were loaded into the embedded store."""
        return self.data_dir / "own-reference"

    @property
    def keys_path(self) -> Path:
        return self.data_dir / "keys.json"

    @property
    def nonces_path(self) -> Path:
        """Nonces of signed requests."""
        return self.data_dir / "nonces.sqlite"

    @property
    def local_key_path(self) -> Path:
        return self.data_dir / "local.key"

    @property
    def pseudonym_key_path(self) -> Path:
        return self.data_dir / "secrets" / "pseudonym.v1"

    @property
    def catalogue_dir(self) -> Path:
        return self.schemas_dir / "catalogue"


def split_address(address: str) -> tuple[str, int]:
    """`host:port` -> (host, port). Raises ConfigurationError."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise ConfigurationError(f"address {address!r} must be host:port, for example 127.0.0.1:8080")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    return host in {"localhost", "::1"} or host.startswith("127.")


def load_settings(**overrides: Any) -> Settings:
    """Settings from the environment and `overrides` (None values are left out), checked together.

    Raises ConfigurationError with one line per problem.
    """
    problems: list[str] = []
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    problems += [
        f"{name}: unknown setting; `gridpipe config show` lists them"
        for name in sorted(os.environ)
        if name.startswith(ENV_PREFIX) and name not in known and not name.startswith(ENV_PREFIX + "INTERNAL_")
    ]
    try:
        settings = Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        for item in error.errors():
            name = ".".join(str(part) for part in item["loc"])
            problems.append(f"{ENV_PREFIX}{name.upper()}: {item['msg']}")
        raise ConfigurationError(problems) from None
    for name in ("http", "admin_http"):
        address = getattr(settings, name)
        if address is not None:
            try:
                split_address(address)
            except ConfigurationError as error:
                problems += error.problems
    if settings.max_decompressed_bytes < settings.max_body_bytes:
        problems.append("GRIDPIPE_MAX_DECOMPRESSED_BYTES must not be below GRIDPIPE_MAX_BODY_BYTES")
    if settings.in_flight_limit_bytes < (least := least_in_flight_bytes(settings)):
        problems.append(
            f"GRIDPIPE_IN_FLIGHT_LIMIT_BYTES must be at least {least}, or the largest bodies that "
            "GRIDPIPE_MAX_BODY_BYTES and GRIDPIPE_MAX_DECOMPRESSED_BYTES allow get 503 for ever"
        )
    if problems:
        raise ConfigurationError(problems)
    return settings


def least_in_flight_bytes(settings: Settings) -> int:
    """What one request may hold: its body and what that unpacks to; until a signature is verified a quarter
    of the budget (`ingest.budget`)."""
    body = settings.max_body_bytes
    return max(4 * body, body + settings.max_decompressed_bytes)
