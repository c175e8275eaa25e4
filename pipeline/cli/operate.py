"""`gridpipe config show`, `doctor` and `refold`: what is set, whether all is well, cases folded again."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit, urlunsplit

import typer
from pydantic_core import PydanticUndefined
from rich.markup import escape
from rich.table import Table

from pipeline.cli.common import err, out, print_json, print_table
from pipeline.errors import UnavailableError
from pipeline.settings import ENV_PREFIX, Settings, load_settings

config = typer.Typer(help="Settings.", no_args_is_help=True)

DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Directory of the installation.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_SIGN = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "failed": "[red]failed[/]"}


def setting_rows(settings: Settings) -> list[dict[str, Any]]:
    """One row per setting: name, value, default, env, meaning. Passwords are masked."""
    rows = []
    for name, declared in Settings.model_fields.items():
        default = declared.get_default(call_default_factory=True, validated_data={})
        rows.append(
            {
                "name": name,
                "value": _shown(getattr(settings, name)),
                "default": None if default is PydanticUndefined else _shown(default),
                "env": ENV_PREFIX + name.upper(),
                "meaning": declared.description,
            }
        )
    return rows


def _shown(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, str) and "://" in value:
        return mask_password(value)
    return value


def mask_password(url: str) -> str:
    """The address with its password replaced.

    >>> mask_password("https://grid:secret@ch.example:8443/?compress=1")
    'https://grid:***@ch.example:8443/?compress=1'
    """
    parts = urlsplit(url)
    if parts.password is None:
        return url
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:***@{host}"))


@config.command("show")
def show(data_dir: DataDir = None, json: Json = False) -> None:
    """Every setting with its value, default, environment name and meaning."""
    rows = setting_rows(load_settings(data_dir=data_dir))
    if json:
        print_json(rows)
        return
    table = Table("setting", "value", "environment", "meaning", title="settings (changed ones in bold)")
    for row in rows:
        style = "" if row["value"] == row["default"] else "bold"
        table.add_row(row["name"], _text(row["value"]), row["env"], row["meaning"], style=style)
    print_table(table)


def _text(value: Any) -> str:
    if value is None:
        return "–"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def doctor(
    *,
    data_dir: DataDir = None,
    http: Annotated[str | None, typer.Option("--http", help="Where the service listens.")] = None,
    admin_http: Annotated[
        str | None, typer.Option("--admin-http", help="Where it tells its health, if not there.")
    ] = None,
    kafka: Annotated[str | None, typer.Option("--kafka", help="Kafka bootstrap servers.")] = None,
    clickhouse: Annotated[str | None, typer.Option("--clickhouse", help="ClickHouse URL.")] = None,
    json: Json = False,
) -> None:
    """Check this installation and say what to do. Exit 0 well, 1 faulty, 2 configuration, 3 unreachable."""
    from pipeline.runtime.doctor import examine, exit_code

    settings = load_settings(
        data_dir=data_dir, http=http, admin_http=admin_http, kafka=kafka, clickhouse=clickhouse
    )
    findings = examine(settings)
    if json:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            advice = f" → {finding.do}" if finding.do else ""
            said = escape(f"{finding.check}: {finding.what}{advice}")
            out.print(f"{_SIGN[finding.level]:<18} {said}", soft_wrap=True)
    raise typer.Exit(exit_code(findings))


def refold(
    data_dir: DataDir = None,
    clickhouse: Annotated[str | None, typer.Option("--clickhouse", help="ClickHouse URL.")] = None,
    json: Json = False,
) -> None:
    """Fold every case again from its stored events, as after a version that folds otherwise.

    May run beside workers, and again: what they store meanwhile wins. Killed, it is begun anew.
    """
    import time

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from pipeline.cli.reference import open_store
    from pipeline.store.cases import refold as fold_again
    from pipeline.store.client import BridgeAddress

    settings = load_settings(data_dir=data_dir, clickhouse=clickhouse)
    running = settings.clickhouse is not None or BridgeAddress.read(settings.run_dir) is not None
    if not running and not settings.clickhouse_dir.is_dir():
        raise UnavailableError(f"no data in {settings.data_dir}; name the directory with --data-dir")
    client = open_store(settings, None)
    started, cases = time.monotonic(), 0
    columns = (TextColumn("cases"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        known = client.query("SELECT uniq(case_id) FROM case_events").result_rows[0][0]
        with Progress(*columns, console=err, transient=True, disable=json or not err.is_terminal) as bar:
            task = bar.add_task("cases", total=known)
            for cases in fold_again(client):
                bar.update(task, completed=cases)
    finally:
        client.close()
    seconds = round(time.monotonic() - started, 1)
    if json:
        print_json({"cases": cases, "seconds": seconds})
    else:
        out.print(f"{cases:,} cases folded again from their events in {seconds} s")


def register(app: typer.Typer) -> None:
    app.add_typer(config, name="config")
    app.command()(doctor)
    app.command()(refold)
