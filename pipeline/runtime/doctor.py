"""Looks at an installation and says what is wrong and what to do about it. Reads only."""

from __future__ import annotations

import json
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final, Literal

import httpx
import psutil
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from pipeline.clock import utc_now
from pipeline.contract.privacy import Privacy, secret_versions
from pipeline.errors import ConfigurationError, GridpipeError, UnavailableError
from pipeline.ingest.keys import KeyStore
from pipeline.kafka_access import librdkafka_options
from pipeline.rules.catalogue import load_catalogues
from pipeline.runtime import broker, topic_settings
from pipeline.runtime.guard import check_start, open_to_others, unprotected
from pipeline.runtime.roll import LogState
from pipeline.runtime.supervisor import bind
from pipeline.settings import Settings
from pipeline.store.client import BridgeAddress, connect
from pipeline.store.key_ring import known_keys, problems_of
from pipeline.store.migrate import MIGRATE, current_revision, schema_problem
from pipeline.store.windows import short_windows
from pipeline.tls import failed_in_tls, health_url, verify_for

Level = Literal["ok", "warning", "failed"]

_LITTLE_DISK_BYTES: Final = 2_000_000_000
_NO_DISK_BYTES: Final = 200_000_000
_REFERENCE_TABLES: Final = (
    "ref_grids",
    "ref_units",
    "ref_staff",
    "ref_persons",
    "ref_organisations",
    "ref_modes",
)

EXIT_FAILED, EXIT_CONFIGURATION, EXIT_UNREACHABLE = 1, 2, 3


@dataclass(frozen=True)
class Finding:
    """what : found; do : what to do about it, empty when all is well; exit_code : of a failure."""

    check: str
    level: Level
    what: str
    do: str = ""
    exit_code: int = 0


def examine(settings: Settings) -> list[Finding]:
    """Every check, in the order of the list below; a check that fails does not stop the others."""
    findings: list[Finding] = []
    running, service = _service(settings)
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("python", _python),
        ("data directory", lambda: _data_dir(settings)),
        ("service", lambda: iter([service])),
        ("listeners", lambda: _listeners(settings, running=running)),
        ("broker", lambda: _broker(settings)),
        ("catalogue", lambda: _catalogue(settings)),
        ("keys", lambda: _keys(settings)),
        ("ClickHouse", lambda: _store(settings, running=running)),
    ]
    for name, check in checks:
        try:
            findings += check()
        except ConfigurationError as error:
            findings += [
                Finding(name, "failed", line, exit_code=EXIT_CONFIGURATION) for line in error.problems
            ]
        except UnavailableError as error:
            findings.append(Finding(name, "failed", str(error), exit_code=EXIT_UNREACHABLE))
        except (GridpipeError, OSError, ClickHouseError) as error:
            first_line = (str(error).splitlines() or [type(error).__name__])[0]
            findings.append(Finding(name, "failed", first_line, exit_code=EXIT_FAILED))
    return findings


def exit_code(findings: list[Finding]) -> int:
    """0 without a failure, else the highest code of the failures."""
    return max((finding.exit_code for finding in findings if finding.level == "failed"), default=0)


def _python() -> Iterator[Finding]:
    packages = ("chdb", "clickhouse-connect", "polars", "faust-streaming", "confluent-kafka")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    yield Finding("python", "ok", f"{'.'.join(str(part) for part in sys.version_info[:3])}; {versions}")


def _data_dir(settings: Settings) -> Iterator[Finding]:
    directory = settings.data_dir
    if not directory.exists():
        yield Finding(
            "data directory", "warning", f"{directory} does not exist yet", "the first start makes it"
        )
        return
    if (problem := open_to_others(directory)) is not None:
        what, _, do = problem.rpartition(": ")
        yield Finding("data directory", "failed", what, do, EXIT_CONFIGURATION)
    else:
        mode = stat.S_IMODE(directory.stat().st_mode)
        yield Finding("data directory", "ok", f"{directory}, mode {mode:o}")
    free = shutil.disk_usage(directory).free
    gigabytes = f"{free / 1e9:.1f} GB free"
    if free < _NO_DISK_BYTES:
        yield Finding("disk", "failed", gigabytes, "free some space: inserts will fail", EXIT_FAILED)
    elif free < _LITTLE_DISK_BYTES:
        yield Finding("disk", "warning", gigabytes, "free some space soon")
    else:
        yield Finding("disk", "ok", gigabytes)


def _service(settings: Settings) -> tuple[bool, Finding]:
    """Whether a service of ours listens where the settings say, and how it is."""
    url = health_url(settings)
    found: Any = None
    try:
        verify = verify_for(settings, url)
        found = httpx.get(f"{url}/health/ready", timeout=5, trust_env=False, verify=verify).json()
    except ConfigurationError as error:
        return False, Finding("service", "failed", str(error), exit_code=EXIT_CONFIGURATION)
    except httpx.HTTPError as error:
        if failed_in_tls(error):
            what, do = f"{url}: {error}", "name its authority in GRIDPIPE_TLS_CA, or its address in --http"
            return True, Finding("service", "failed", what, do, EXIT_CONFIGURATION)
    except ValueError:
        pass  # no JSON: somebody else's
    if not isinstance(found, dict):
        return False, Finding(
            "service", "warning", f"nothing answers on {url}", "start it with `gridpipe up`"
        )
    if "checks" not in found:
        if "request_id" not in found:
            return False, Finding(
                "service", "warning", f"{url} is not gridpipe", "name its address in --http"
            )
        what, do = f"{url} does not tell its health here", "name its --admin-http too"
        return True, Finding("service", "warning", what, do)
    failed = [f"{name}: {check['detail']}" for name, check in found["checks"].items() if not check["ok"]]
    if failed:
        return True, Finding(
            "service",
            "failed",
            f"{url} is not ready: {'; '.join(failed)}",
            f"see the logs in {settings.log_dir}",
            EXIT_UNREACHABLE,
        )
    return True, Finding("service", "ok", f"{url} is ready")


def _listeners(settings: Settings, *, running: bool) -> Iterator[Finding]:
    check_start(settings)
    for what in unprotected(settings):
        yield Finding("protection", "warning", what, "see docs/security.md")
    if not running:
        bind(settings.http, "--http").close()
    yield Finding("listeners", "ok", settings.http + (" in use by the service" if running else " is free"))


def _broker(settings: Settings) -> Iterator[Finding]:
    if settings.kafka is not None:
        admin = broker.wait_until_up(settings.kafka, seconds=5, access=librdkafka_options(settings))
        if settings.topic not in admin.list_topics(timeout=3).topics:
            what = f"{settings.kafka} has no topic {settings.topic}"
            yield Finding("broker", "failed", what, "run `gridpipe migrate --kafka …`", EXIT_FAILED)
            return
        found = topic_settings.read_topic(admin, settings.topic)
        yield Finding("broker", "ok", f"{settings.kafka}, {settings.topic}: {found}")
        settings = topic_settings.promised(settings, admin)
        for flaw in topic_settings.faults(settings, found):
            yield Finding("topic", "failed", flaw.what, flaw.do, EXIT_CONFIGURATION)
        for flaw in topic_settings.doubts(settings, found):
            yield Finding("topic", "warning", flaw.what, flaw.do)
        return
    try:
        pid = json.loads((settings.run_dir / "pids.json").read_text()).get("broker", 0)
        used = psutil.Process(pid).memory_info().rss if pid else 0
    except (OSError, ValueError, psutil.NoSuchProcess):
        used = 0
    state = LogState.read(settings.run_dir) or LogState()
    if used and (why := state.outgrown()):
        yield Finding(
            "broker",
            "warning",
            f"the embedded broker {why}",
            "this site has outgrown it: use Kafka (`gridpipe up --kafka …`)",
        )
    elif used:
        yield Finding("broker", "ok", f"embedded, {used / 1e6:.0f} MB, log rolled {state.rolls} times")
    else:
        yield Finding("broker", "ok", f"embedded, not running; executable {broker.binary().name} is there")


def _catalogue(settings: Settings) -> Iterator[Finding]:
    catalogues = load_catalogues(settings.catalogue_dir)
    versions = ", ".join(version.version for version in catalogues.versions)
    yield Finding("catalogue", "ok", f"versions {versions}; rules {catalogues.digest[:12]}")


def _keys(settings: Settings) -> Iterator[Finding]:
    active = [key for key in KeyStore(settings.keys_path).list() if key.in_force(utc_now())]
    if active:
        sources = sorted({source for key in active for source in key.sources})
        yield Finding("keys", "ok", f"{len(active)} in force, for {', '.join(sources)}")
    else:
        yield Finding("keys", "warning", "no key in force", "run `gridpipe keys add --source S`")
    if secret_versions(settings.pseudonym_key_path):
        privacy = Privacy.load(settings.pseudonym_key_path, create=False)
        what = f"version {privacy.key_version}, readable by this user only"
        yield Finding("pseudonym key", "ok", what)
    elif settings.clickhouse_dir.exists():
        Privacy.load(settings.pseudonym_key_path, create=False)  # says what to do
    else:
        yield Finding("pseudonym key", "warning", "none yet", "the first start makes it")


def _store(settings: Settings, *, running: bool = False) -> Iterator[Finding]:
    if settings.clickhouse is None and BridgeAddress.read(settings.run_dir) is None:
        if not settings.clickhouse_dir.exists():
            yield Finding("ClickHouse", "warning", "embedded, no data yet", "the first start makes them")
            return
        if running:
            yield Finding(
                "ClickHouse", "warning", "the service uses another data directory", "pass --data-dir"
            )
            return
    with closing(connect(settings, database="")) as client:
        yield Finding("ClickHouse", "ok", f"version {client.server_version}")
        databases = client.query(
            "SELECT name FROM system.databases WHERE name = {name:String}", {"name": settings.database}
        ).result_rows
        if not databases:
            what = f"database {settings.database} does not exist"
            yield Finding("schema", "failed", what, MIGRATE, EXIT_FAILED)
            return
        client.database = settings.database
        yield from _schema(client, settings)
        yield from _ring(client, settings)


def _ring(client: Client, settings: Settings) -> Iterator[Finding]:
    """Whether the pseudonym key of this machine is the store's."""
    known, path = known_keys(client), settings.pseudonym_key_path
    if known is None:
        return  # an old schema, which is said already
    if not secret_versions(path):
        if known.fingerprints:
            what = f"the store was filled with one, and {path.parent}/ holds none"
            do = f"copy {path.parent}/ of the first host before a gateway or worker starts here"
            yield Finding("key ring", "warning", what, do)
        return
    privacy = Privacy.load(path, create=False)
    problems = problems_of(privacy, known, path)
    for problem in problems:
        yield Finding("key ring", "failed", problem, exit_code=EXIT_CONFIGURATION)
    if problems:
        return
    for number in sorted(set(privacy.versions) & known.retired):
        what = f"version {number} of the pseudonym key was retired and is still here"
        yield Finding("key ring", "warning", what, f"run `gridpipe pseudonym retire {number}`")
    for problem in problems_of(privacy, known, path, complete=True):
        yield Finding("key ring", "warning", problem)
    if unknown := sorted(set(privacy.versions) - known.fingerprints.keys()):
        what = f"the store does not know version {', '.join(map(str, unknown))} yet"
        yield Finding("key ring", "warning", what, "the next start of `up` or a worker notes it")
    else:
        yield Finding("key ring", "ok", "the pseudonym key is the one that the store was filled with")


def _schema(client: Client, settings: Settings) -> Iterator[Finding]:
    database = settings.database
    revision = current_revision(client)
    problem = schema_problem(database, revision)
    if problem is None:
        yield Finding("schema", "ok", f"revision {revision}")
    else:
        what, _, do = problem.rpartition(": ")
        yield Finding("schema", "failed", what, do, EXIT_FAILED)
    short, tables = short_windows(client, database)
    if short:
        yield Finding(
            "deduplication windows",
            "failed",
            f"none, or too short, on {', '.join(short)}: a repeated insert would count twice",
            "; ".join(f"ALTER TABLE {name} MODIFY SETTING {wanted}" for name, wanted in short.items()),
            EXIT_FAILED,
        )
    else:
        yield Finding("deduplication windows", "ok", f"long enough on all {tables} tables")
    zone = str(client.command("SELECT timezone()"))
    if zone != "UTC":
        what = f"the server's time zone is {zone}"
        yield Finding("time zone", "failed", what, "set it to UTC in the server's configuration", EXIT_FAILED)
    found = client.query(
        "SELECT name, total_rows FROM system.tables "
        "WHERE database = {database:String} AND name IN {names:Array(String)}",
        {"database": database, "names": list(_REFERENCE_TABLES)},
    ).result_rows
    counts = {str(name): int(rows or 0) for name, rows in found}
    missing = [name.removeprefix("ref_") for name in ("ref_grids", "ref_staff") if not counts.get(name)]
    if missing:
        what = f"no {' and no '.join(missing)}: reports will be rejected"
        yield Finding("reference data", "warning", what, f"run `gridpipe reference load DIR{settings.place}`")
    else:
        rows = ", ".join(f"{name.removeprefix('ref_')} {count:,}" for name, count in sorted(counts.items()))
        yield Finding("reference data", "ok", rows)
