"""`gridpipe up`, and its roles alone: `gateway`, `worker`, `api`; `migrate`."""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from pipeline.cli.common import err, out, print_error, print_json
from pipeline.errors import ConfigurationError
from pipeline.settings import ENV_PREFIX, Settings, load_settings

if TYPE_CHECKING:
    from pipeline.runtime.supervisor import Supervisor

DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Directory for everything that is written.")]
Http = Annotated[str | None, typer.Option("--http", help="Address of the HTTP listener, host:port.")]
AdminHttp = Annotated[
    str | None, typer.Option("--admin-http", help="Address for /metrics and /health instead of --http.")
]
Kafka = Annotated[
    str | None, typer.Option("--kafka", help="Kafka bootstrap servers instead of the embedded one.")
]
ClickHouse = Annotated[
    str | None, typer.Option("--clickhouse", help="ClickHouse URL instead of the embedded engine.")
]
#: How often `up` refreshes: the table on a terminal, a plain line elsewhere.
_TABLE_SECONDS = 2.0
_LINE_SECONDS = 10.0
#: How long it waits for the store to say whether grids are loaded.
_ADVICE_SECONDS = 3.0
_SEND_AGAIN = "what was not answered may not be stored, send it again"
_LAST_WORDS = f"ended at once; {_SEND_AGAIN}"


def up(
    *,
    data_dir: DataDir = None,
    http: Http = None,
    admin_http: AdminHttp = None,
    simulate: Annotated[
        bool | None,
        typer.Option(
            "--simulate/--no-simulate",
            help="Load and feed the simulated city, or only take what is sent. Unset: simulated on embedded "
            "stores, never with --kafka or --clickhouse, nor once you loaded reference data of your own.",
            show_default=False,
        ),
    ] = None,
    kafka: Kafka = None,
    clickhouse: ClickHouse = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON once it is ready, and nothing else.")
    ] = False,
) -> None:
    """Run everything on this machine; Ctrl-C stops it, a second one at once (exit 1)."""
    from pipeline import logs
    from pipeline.runtime.process import harden, obey_signals
    from pipeline.runtime.supervisor import Supervisor

    harden()
    settings = load_settings(
        data_dir=data_dir, http=http, admin_http=admin_http, kafka=kafka, clickhouse=clickhouse
    )
    logs.configure(level=settings.log_level, role="up", log_dir=settings.log_dir, console=False)
    stop = threading.Event()
    made = Supervisor(settings, simulate=simulate)
    obey_signals(stop.set, kill=made.kill, last_words=_LAST_WORDS)
    with made as supervisor:
        if not _until_ready(supervisor, stop):
            return
        if json:
            _announce_json(supervisor, stop)
            while not stop.wait(0.2) and not supervisor.wait(0):
                pass
        else:
            _announce(supervisor, stop, asked=simulate is not None)
            _watch(supervisor, stop)
            if sys.stdout.isatty():
                out.print("stopping …")
    if made.unfinished:
        print_error(f"{' and '.join(made.unfinished)} ended before all was done; {_SEND_AGAIN}")
        raise typer.Exit(1)


def _until_ready(supervisor: Supervisor, stop: threading.Event) -> bool:
    """False when asked to stop before."""
    from pipeline.errors import UnavailableError
    from pipeline.runtime.supervisor import READY_SECONDS

    for _ in range(int(READY_SECONDS / 0.25)):
        if stop.is_set():
            return False
        if supervisor.ready_within(0.25):
            return True
    raise UnavailableError(
        f"the service was not ready within {READY_SECONDS:g} s; see {supervisor.settings.log_dir}"
    )


def _announce_json(supervisor: Supervisor, stop: threading.Event) -> None:
    settings = supervisor.settings
    print_json(
        {
            "url": supervisor.url,
            "admin_url": supervisor.admin_url,
            "key_file": str(settings.local_key_path),
            "new_key": supervisor.new_key,
            "simulated_city": supervisor.simulates,
            "lacks_reference": not supervisor.simulates and _lacks_reference(settings, stop),
            "durability": "stored" if settings.kafka is None else "replicated",
        },
        one_line=True,
    )
    _warn_of_open_directory(settings)


def _announce(supervisor: Supervisor, stop: threading.Event, *, asked: bool) -> None:
    settings = supervisor.settings
    out.print(f"gridpipe is ready: {supervisor.url} (API: {supervisor.url}/docs)", soft_wrap=True)
    if supervisor.new_key:
        out.print(f"key for source `local`: {supervisor.local_key}", soft_wrap=True)
    out.print(f"key of source `local` is kept in {settings.local_key_path}", soft_wrap=True)
    if supervisor.simulates:
        out.print("feeding the simulated city; figures are of simulated events")
    else:
        why = "" if asked else f" ({_why_not_simulated(settings)}; --simulate turns it on)"
        out.print(f"no simulated city{why}: figures are of the events that are sent", soft_wrap=True)
        if _lacks_reference(settings, stop):
            out.print(
                "no grids and staff are loaded, every report will be rejected: "
                f"run `gridpipe reference load DIR{settings.place}`",
                soft_wrap=True,
                markup=False,
            )
    _warn_of_open_directory(settings)
    if settings.kafka is None:
        out.print("embedded broker: for evaluation and small sites; answers mean stored")


def _warn_of_open_directory(settings: Settings) -> None:
    from pipeline.runtime.guard import open_to_others

    if (what := open_to_others(settings.data_dir)) is not None:
        err.print(f"[yellow]warning:[/] {escape(what)}", soft_wrap=True)


def _why_not_simulated(settings: Settings) -> str:
    if settings.kafka is not None or settings.clickhouse is not None:
        return "Kafka or ClickHouse of your own"
    return "reference data of your own are loaded"


def _lacks_reference(settings: Settings, stop: threading.Event) -> bool:
    """False too where the store does not say so in time, or somebody wants us to end meanwhile: only advice
    depends on it."""
    from pipeline.errors import UnavailableError
    from pipeline.reference.query import holds_grids_and_staff
    from pipeline.store.client import connect

    answers: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def ask() -> None:
        with contextlib.suppress(UnavailableError), contextlib.closing(connect(settings)) as client:
            answers.put(not holds_grids_and_staff(client))

    asking = threading.Thread(target=ask, name="advice", daemon=True)
    asking.start()
    for _ in range(int(_ADVICE_SECONDS / 0.05)):
        if stop.wait(0.05) or not asking.is_alive():
            break
    return not answers.empty() and answers.get()


def _watch(supervisor: Supervisor, stop: threading.Event) -> None:
    """Show closure rates until asked to stop or the service ends. Raises what ended the service."""
    from rich.live import Live

    from pipeline.cli.board import Board

    board = Board(supervisor.url, supervisor.read_headers)
    if not sys.stdout.isatty():
        while not stop.wait(0.2):
            if supervisor.wait(0):
                return
            board.print_line_every(_LINE_SECONDS)
        return
    with Live(board.table(), console=out, refresh_per_second=4, transient=True) as live:
        while not stop.wait(_TABLE_SECONDS):
            if supervisor.wait(0):
                return
            live.update(board.table())


def gateway(
    kafka: Kafka = None,
    clickhouse: ClickHouse = None,
    http: Http = None,
    admin_http: AdminHttp = None,
    data_dir: DataDir = None,
) -> None:
    """Take events over HTTP and write them to Kafka."""
    settings = _role_settings(
        data_dir=data_dir, http=http, admin_http=admin_http, kafka=kafka, clickhouse=clickhouse
    )
    _serve_http(settings, "gateway")


def api(
    kafka: Kafka = None,
    clickhouse: ClickHouse = None,
    http: Http = None,
    admin_http: AdminHttp = None,
    data_dir: DataDir = None,
) -> None:
    """Answer reads and show metrics."""
    settings = _role_settings(
        data_dir=data_dir,
        http=http,
        admin_http=admin_http,
        kafka=kafka,
        clickhouse=clickhouse,
        needs_kafka=False,
    )
    _serve_http(settings, "api")


def worker(
    kafka: Kafka = None, clickhouse: ClickHouse = None, admin_http: AdminHttp = None, data_dir: DataDir = None
) -> None:
    """Process events from Kafka into ClickHouse; run one per share of the partitions."""
    from pipeline import logs
    from pipeline.runtime.guard import check_start, warn_unprotected
    from pipeline.runtime.process import harden
    from pipeline.runtime.store import run_alone
    from pipeline.runtime.supervisor import bind

    harden()
    settings = _role_settings(data_dir=data_dir, admin_http=admin_http, kafka=kafka, clickhouse=clickhouse)
    check_start(settings)
    assert settings.kafka is not None
    logs.configure(level=settings.log_level, role="worker", log_dir=settings.log_dir, console=True)
    warn_unprotected(settings)
    listener = bind(settings.admin_http, "--admin-http") if settings.admin_http else None
    run_alone(settings, bootstrap=settings.kafka, listener=listener)


def migrate(
    kafka: Kafka = None,
    clickhouse: ClickHouse = None,
    data_dir: DataDir = None,
    json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Bring the database to the newest schema, publish the catalogue, create the topic (with --kafka).

    Also sets what retention needs, and begins to delete what emergency modes left and residents who were
    withdrawn: run it every night.
    """
    from pipeline.cli.reference import refuse_unnamed
    from pipeline.clock import utc_now
    from pipeline.kafka_access import librdkafka_options
    from pipeline.rules.catalogue import load_catalogues
    from pipeline.rules.publish import publish
    from pipeline.runtime import broker, topic_settings
    from pipeline.store.client import BridgeAddress, connect
    from pipeline.store.key_ring import hold_ring
    from pipeline.store.migrate import migrate as run_migrations
    from pipeline.store.retention import apply_retention, forget_ended

    settings = load_settings(data_dir=data_dir, kafka=kafka, clickhouse=clickhouse)
    embedded = settings.clickhouse is None
    alone = embedded and BridgeAddress.read(settings.run_dir) is None
    if alone:
        refuse_unnamed(settings)
    catalogues = load_catalogues(settings.catalogue_dir)
    client = connect(settings, database="")
    before, after = run_migrations(client, settings.database)
    retention = apply_retention(client, settings)
    forget_ended(client, utc_now())
    publish(client, catalogues)
    if alone:
        # `up` makes none for a store that is there
        hold_ring(client, settings.pseudonym_key_path, create=True)
    client.close()
    found, notes = None, list[str]()
    done: dict[str, object] = {
        "database": settings.database,
        "before": before,
        "after": after,
        "retention_set": list(retention.changed),
        "retention_kept": retention.kept,
    }
    if settings.kafka is not None:
        admin = broker.wait_until_up(settings.kafka, seconds=10, access=librdkafka_options(settings))
        topic_settings.ensure_topic(admin, settings)
        found = topic_settings.read_topic(admin, settings.topic)
        promise = topic_settings.promised(settings, admin)
        flaws = [*topic_settings.faults(promise, found), *topic_settings.doubts(promise, found)]
        notes = [str(flaw) for flaw in flaws]
        done |= {
            "topic": settings.topic,
            "partitions": found.partitions,
            "replication": found.replication,
            "min_insync_replicas": found.min_insync,
            "retention_ms": found.retention_ms,
            "notes": notes,
        }
    if json:
        print_json(done)
        return
    change = f"schema {after}" if before == after else f"schema {before or 'none'} → {after}"
    place = f" in {settings.data_dir}" if embedded else ""
    out.print(f"database {settings.database}{place}: {change}; catalogue published", soft_wrap=True)
    if retention.changed:
        out.print(f"retention set: {', '.join(retention.changed)}")
    for name, days in retention.kept.items():
        setting = f"{ENV_PREFIX}{name.upper()}"
        err.print(
            f"[yellow]note:[/] {setting} is not set here; the tables keep {days} days as before, not the "
            f"default of {getattr(settings, name)}. Set it to change that.",
            soft_wrap=True,
        )
    if found is not None:
        out.print(f"topic {done['topic']}: {found}")
        for note in notes:
            err.print(f"[yellow]warning:[/] {escape(note)}", soft_wrap=True)


def _role_settings(
    *,
    needs_kafka: bool = True,
    data_dir: Path | None,
    kafka: str | None,
    clickhouse: str | None,
    http: str | None = None,
    admin_http: str | None = None,
) -> Settings:
    """Settings of a role alone, which needs the servers that `up` would embed. Raises ConfigurationError."""
    settings = load_settings(
        data_dir=data_dir, http=http, admin_http=admin_http, kafka=kafka, clickhouse=clickhouse
    )
    problems = []
    if needs_kafka and settings.kafka is None:
        problems.append(
            "this role needs --kafka BOOTSTRAP (or GRIDPIPE_KAFKA); `gridpipe up` embeds a broker"
        )
    if settings.clickhouse is None:
        problems.append(
            "this role needs --clickhouse URL (or GRIDPIPE_CLICKHOUSE); `gridpipe up` embeds the engine"
        )
    if problems:
        raise ConfigurationError(problems)
    return settings


def _serve_http(settings: Settings, role: str) -> None:
    from pipeline import logs
    from pipeline.ingest.durability import Replicated
    from pipeline.kafka_access import librdkafka_options
    from pipeline.runtime import broker, topic_settings
    from pipeline.runtime.guard import check_start, warn_unprotected
    from pipeline.runtime.http import assemble, serve
    from pipeline.runtime.process import harden
    from pipeline.runtime.supervisor import bind
    from pipeline.store.client import connect_server
    from pipeline.store.key_ring import hold_ring, known_keys
    from pipeline.store.migrate import check_schema

    harden()
    check_start(settings)
    logs.configure(level=settings.log_level, role=role, log_dir=settings.log_dir, console=True)
    warn_unprotected(settings)
    client = connect_server(settings, None)
    if role == "api":
        check_schema(client, settings.database)
    bootstrap = None
    if role == "gateway":
        assert settings.kafka is not None
        reached = broker.wait_until_up(settings.kafka, seconds=10, access=librdkafka_options(settings))
        topic_settings.check_topic(reached, settings)
        bootstrap = settings.kafka
        client.database = settings.database
        if known_keys(client) is None:
            raise ConfigurationError(
                f"database {settings.database} is not up to date: run `gridpipe migrate`"
            )
        hold_ring(client, settings.pseudonym_key_path, create=True)
    client.close()
    parts = assemble(
        settings,
        bootstrap=bootstrap,
        client_factory=lambda: connect_server(settings, settings.database),
        control=None,
        durable=Replicated if bootstrap else None,
        read=role == "api",
    )
    admin = bind(settings.admin_http, "--admin-http") if settings.admin_http else None
    err.print(f"{role} listens on http://{settings.http}")
    serve(parts, bind(settings.http, "--http"), admin, alone=True)


def register(app: typer.Typer) -> None:
    for command in (up, gateway, worker, api, migrate):
        app.command()(command)
