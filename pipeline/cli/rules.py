"""`gridpipe rules`: check the catalogue, list the matters in force."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.common import out as console
from pipeline.cli.common import print_json, print_table
from pipeline.errors import ConfigurationError

if TYPE_CHECKING:
    from pipeline.rules.catalogue import Catalogues
    from pipeline.rules.model import Matter

rules = typer.Typer(help="The approved matters (准入清单) and the admission rules.", no_args_is_help=True)

_Directory = Annotated[
    Path | None, typer.Argument(metavar="DIR", help="Catalogue directory (default: the installed one).")
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@rules.command("check")
def check(directory: _Directory = None, json: _Json = False) -> None:
    """Load the catalogue as the service would: every mistake is named with its file and line (exit 2)."""
    from rich.table import Table

    from pipeline.cli.common import EXIT_USAGE

    place = _directory(directory)
    try:
        catalogues = _load(place)
    except ConfigurationError as error:
        if json:
            print_json({"ok": False, "directory": str(place), "problems": list(error.problems)})
            raise typer.Exit(EXIT_USAGE) from None
        raise
    admission = catalogues.admission
    examples = sum(len(rule.source.examples) for rule in admission.rules)
    if json:
        print_json(
            {
                "ok": True,
                "directory": str(place),
                "digest": catalogues.digest,
                "versions": [
                    {
                        "version": version.version,
                        "effective_from": version.head.effective_from.isoformat(),
                        "status": version.head.status,
                        "matters": version.head.matter_count,
                        "temporary": len(version.matters) - version.head.matter_count,
                    }
                    for version in catalogues.versions
                ],
                "rules": len({rule.number for rule in admission.rules}),
                "reasons": len(admission.reason_codes()),
                "examples": examples,
            }
        )
        return
    table = Table("version", "in force from", "status", "matters", "temporary", title="准入清单 / matters")
    for version in catalogues.versions:
        count = version.head.matter_count
        temporary = len(version.matters) - count
        day = version.head.effective_from.isoformat()
        table.add_row(version.version, day, version.head.status, str(count), str(temporary))
    print_table(table)
    numbers = {rule.number for rule in admission.rules}
    console.print(
        f"OK: {len(numbers)} rules, {len(admission.reason_codes())} reasons, {examples} examples pass; "
        f"digest {catalogues.digest}"
    )


@rules.command("list")
def list_matters(
    at: Annotated[
        str | None,
        typer.Option(metavar="DATE", help="Day or RFC 3339 instant (default: now); days start in Shanghai."),
    ] = None,
    directory: Annotated[Path | None, typer.Option("--dir", help="Catalogue directory.")] = None,
    json: _Json = False,
) -> None:
    """The matters in force, with the limits they set."""
    from rich.table import Table

    instant = _instant(at)
    catalogues = _load(_directory(directory))
    version = catalogues.version_at(instant)
    matters = catalogues.matters(instant)
    if json:
        print_json(
            {
                "at": instant.isoformat(),
                "catalogue_version": version.version,
                "status": version.head.status,
                "matters": [_as_json(matter, catalogues) for matter in matters],
            }
        )
        return
    table = Table(
        "code", "事项", "类别", "牵头部门", "urgency", "response", "resolution", "渠道",
        title=f"{len(matters)} matters in force at {instant.isoformat()}, version {version.version}",
        caption=f"status: {version.head.status}",
    )  # fmt: skip
    for matter in matters:
        table.add_row(
            matter.code,
            matter.name_zh,
            catalogues.category_names_zh[matter.category],
            catalogues.department_names_zh[matter.lead_department],
            matter.urgency,
            f"{matter.response_minutes} min",
            f"{matter.resolution_hours} h",
            " ".join(matter.allowed_channels),
        )
    print_table(table)


@rules.command("columns")
def columns(json: _Json = False) -> None:
    """The columns that a rule's condition may use, with their types."""
    from rich.table import Table

    from pipeline.frames import DECODED, FEATURES
    from pipeline.rules.conditions import COLUMNS

    origin = {
        name: "event" if name in DECODED else "reference" if name in FEATURES else "computed"
        for name in COLUMNS
    }
    if json:
        rows = [{"column": name, "type": str(COLUMNS[name]), "from": origin[name]} for name in COLUMNS]
        print_json({"columns": rows})
        return
    table = Table("column", "type", "from")
    for name, dtype in COLUMNS.items():
        table.add_row(name, str(dtype), origin[name])
    print_table(table)


def _directory(directory: Path | None) -> Path:
    if directory is not None:
        return directory
    from pipeline.settings import load_settings

    return load_settings().catalogue_dir


def _load(directory: Path) -> Catalogues:
    from pipeline.rules.catalogue import load_catalogues

    return load_catalogues(directory)


def _instant(text: str | None) -> datetime:
    """A day means its local midnight; an instant must carry its zone."""
    from pipeline.clock import LOCAL_ZONE, utc_now

    if text is None:
        return utc_now()
    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(f"--at {text}: give a day (2026-05-01) or an instant with zone") from None
    if value.tzinfo is None:
        if "T" in text or " " in text:
            raise ConfigurationError(
                f"--at {text}: the zone is missing, for example 2026-05-01T08:00:00+08:00"
            )
        value = value.replace(tzinfo=LOCAL_ZONE)
    return value


def _as_json(matter: Matter, catalogues: Catalogues) -> dict[str, Any]:
    import msgspec

    return {
        **msgspec.to_builtins(matter),
        "category_name_zh": catalogues.category_names_zh[matter.category],
        "lead_department_name_zh": catalogues.department_names_zh[matter.lead_department],
        "temporary": matter.temporary,
    }


def register(app: typer.Typer) -> None:
    app.add_typer(rules, name="rules")
