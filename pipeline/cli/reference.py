"""`gridpipe reference load`: reference files into the store, with a report of what was refused and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from pipeline.cli.common import EXIT_DONE, EXIT_SOME_REFUSED, err, out, print_json, print_table

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

    from pipeline.errors import ConfigurationError
    from pipeline.reference.report import LoadReport
    from pipeline.settings import Settings

reference = typer.Typer(
    no_args_is_help=True, help="Grids, units, staff, persons, organisations and emergency modes."
)


def register(app: typer.Typer) -> None:
    app.add_typer(reference, name="reference")


@reference.callback()
def group() -> None:
    """Grids, units, staff, persons, organisations and emergency modes."""


@reference.command()
def load(
    directory: Annotated[
        Path | None,
        typer.Argument(
            help="Directory with grids, units, staff, … as .parquet, .csv or .ndjson.", metavar="DIR"
        ),
    ] = None,
    *,
    strict: Annotated[
        bool, typer.Option("--strict", help="Store nothing of a file with a refused row.")
    ] = False,
    template: Annotated[
        Path | None,
        typer.Option(
            help="Write empty CSV files with the right columns to this directory, and stop.", metavar="DIR"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    data_dir: Annotated[Path | None, typer.Option(help="Data directory (default var).")] = None,
    clickhouse: Annotated[
        str | None, typer.Option(help="ClickHouse URL; without it the running service or the data directory.")
    ] = None,
    url: Annotated[
        str | None, typer.Option("--url", help="Address of the running service; refuse unless it is there.")
    ] = None,
) -> None:
    """Load reference files: good rows are stored as versions, refused ones are listed with line and reason.

    Running it again adds nothing that is already stored. Exit 1 when rows were refused.
    """
    from pipeline.errors import ConfigurationError
    from pipeline.reference.load import load_directory, write_templates
    from pipeline.settings import load_settings
    from pipeline.store.key_ring import hold_ring

    if template is not None:
        written = write_templates(template)
        if as_json:
            print_json({"written": [str(path) for path in written]})
        else:
            out.print(f"wrote {', '.join(path.name for path in written) or 'nothing: the files exist'}")
        raise typer.Exit(EXIT_DONE)
    if directory is None:
        raise ConfigurationError("name the directory of the reference files, or --template DIR")
    settings = load_settings(data_dir=data_dir, clickhouse=clickhouse)
    client = open_store(settings, url, make=True)
    try:
        # a second key would give the same person a second pseudonym: only the first load of a site makes one
        privacy = hold_ring(client, settings.pseudonym_key_path, create=True, complete=True)
        with _Bars(quiet=as_json) as bars:
            rings = [privacy.under(version) for version in privacy.versions]
            others = [ring for ring in rings if ring.key_version != privacy.key_version]
            report = load_directory(
                client, directory, privacy, strict=strict, progress=bars.progress, others=others
            )
            # While keys are rotated, residents are known under every version that events may carry.
            for ring in others:
                again = load_directory(
                    client,
                    directory,
                    ring,
                    strict=strict,
                    kinds={"persons"},
                    needed=False,
                    others=[other for other in rings if other is not ring],
                )
                report.files += again.files
        if settings.clickhouse is None:
            _note_real_reference(settings, client)
    finally:
        client.close()
    if as_json:
        print_json(report.as_dict())
    else:
        _print(report)
    raise typer.Exit(EXIT_DONE if report.fine else EXIT_SOME_REFUSED)


def _note_real_reference(settings: Settings, client: Client) -> None:
    """From the next start on `up` mixes no simulated city into the embedded store unasked."""
    import json

    from pipeline.reference.query import holds_real_reference

    if settings.own_reference_path.exists() or not holds_real_reference(client):
        return
    settings.own_reference_path.touch(mode=0o600)
    try:
        simulated = "city" in json.loads((settings.run_dir / "pids.json").read_text())
    except (OSError, ValueError):
        simulated = False
    if simulated:
        err.print(
            "the running service still feeds the simulated city: start it again and it stops; what was "
            "simulated stays in the store, another --data-dir begins with an empty one",
            soft_wrap=True,
        )


def open_store(settings: Settings, url: str | None, *, make: bool = False) -> Client:
    """The store of the running service, of the settings, or the data directory itself, migrated.

    make : whether a store may be made where there is none, in a data directory that was named.
    Raises ConfigurationError, UnavailableError.
    """
    import httpx

    from pipeline.errors import ConfigurationError, UnavailableError
    from pipeline.store.client import BridgeAddress, connect
    from pipeline.store.migrate import current_revision, migrate, schema_problem
    from pipeline.tls import verify_for

    running = BridgeAddress.read(settings.run_dir) is not None
    if url is not None:
        try:
            httpx.get(f"{url}/health/live", timeout=5.0, trust_env=False, verify=verify_for(settings, url))
        except httpx.HTTPError as error:
            raise UnavailableError(f"no service answers at {url}; start one with `gridpipe up`") from error
        if settings.clickhouse is None and not running:
            raise not_its_directory(settings, url)
    if settings.clickhouse is None and not running:
        refuse_unnamed(settings)
        made = make and "data_dir" in settings.model_fields_set
        if not settings.clickhouse_dir.is_dir() and not made:
            raise UnavailableError(
                f"no service runs on {settings.data_dir}, and {settings.data_dir} holds no store: "
                "name the right one with --data-dir, or its ClickHouse with --clickhouse; "
                f"`gridpipe migrate{settings.place}` makes an empty one"
            )
        if not settings.clickhouse_dir.is_dir():
            err.print(f"{settings.data_dir} holds no store yet: making one", soft_wrap=True, markup=False)
        client = connect(settings, database="")
        migrate(client, settings.database)
        return client
    client = connect(settings)
    if (problem := schema_problem(settings.database, current_revision(client))) is not None:
        raise ConfigurationError(problem)
    return client


def refuse_unnamed(settings: Settings) -> None:
    """Somebody who names no store means that of the running service, wherever his shell stands.

    Raises ConfigurationError if a service answers where one would by default. A named directory is taken at
    its word.
    """
    import httpx

    from pipeline.tls import health_url, verify_for

    if "data_dir" in settings.model_fields_set:
        return
    url = health_url(settings)
    try:
        answer = httpx.get(
            f"{url}/health/live", timeout=5.0, trust_env=False, verify=verify_for(settings, url)
        )
        found = answer.json()
    except (httpx.HTTPError, ValueError):
        return
    # With `--admin-http` the answer is that there is no such page, in our words.
    if isinstance(found, dict) and (found.get("status") == "live" or "request_id" in found):
        raise not_its_directory(settings, url)


def not_its_directory(settings: Settings, url: str) -> ConfigurationError:
    from pipeline.errors import ConfigurationError

    return ConfigurationError(
        f"{settings.data_dir} is not the data directory of the service at {url}; "
        "name it with --data-dir, or its ClickHouse with --clickhouse"
    )


class _Bars:
    """A progress bar per file on stderr; none when quiet or when stderr is no terminal."""

    def __init__(self, *, quiet: bool) -> None:
        columns = (
            TextColumn("{task.description:>14}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, console=err, disable=quiet or not err.is_terminal)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def progress(self, kind: str, done: int, total: int) -> None:
        if kind not in self._tasks:
            self._tasks[kind] = self._progress.add_task(kind, total=total)
        self._progress.update(self._tasks[kind], completed=done, total=total)


def _print(report: LoadReport) -> None:
    table = Table(box=None)
    table.add_column("file")
    for name in ("rows", "stored", "unchanged", "older", "refused"):
        table.add_column(name, justify="right")
    for file in report.files:
        numbers = (file.rows, file.stored, file.unchanged, file.older, file.refused)
        table.add_row(file.file, *(f"{number:,}" for number in numbers))
    print_table(table)
    for file in report.files:
        for line in file.lines():
            err.print(line, markup=False, soft_wrap=True)
        if file.held_back:
            err.print(f"{file.file}: nothing stored (--strict)", markup=False, soft_wrap=True)
    out.print(f"load {report.load_id} took {report.seconds:.1f} s; workers use it within seconds")
