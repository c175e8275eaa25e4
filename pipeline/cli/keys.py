"""`gridpipe keys`: the keys of feeding systems."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from pipeline.cli.common import out, print_json, print_table

if TYPE_CHECKING:
    from pipeline.settings import Settings

keys = typer.Typer(help="Keys of feeding systems and readers: make, list, revoke.", no_args_is_help=True)

_DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Directory that holds keys.json.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@keys.command("add")
def add(
    *,
    source: Annotated[
        list[str] | None,
        typer.Option("--source", help="Source that the key may send as; repeat for several."),
    ] = None,
    role: Annotated[
        list[str] | None,
        typer.Option("--role", help="ingest (default), read or admin; repeat for several."),
    ] = None,
    signed: Annotated[
        bool, typer.Option("--signed", help="A key that signs requests and never travels with them.")
    ] = False,
    expires: Annotated[
        str | None,
        typer.Option("--expires", help="Day it ends, YYYY-MM-DD (00:00 in the city), or RFC 3339."),
    ] = None,
    backfill: Annotated[
        bool, typer.Option("--backfill", help="Reports of any age are taken and never flagged late.")
    ] = False,
    data_dir: _DataDir = None,
    json: _Json = False,
) -> None:
    """Make a key and print it: it is shown this once."""
    from pipeline.ingest.keys import KeyStore
    from pipeline.settings import load_settings

    settings = load_settings(data_dir=data_dir)
    sources, until = source or [], _instant(expires)
    key = KeyStore(settings.keys_path).create(
        sources, backfill=backfill, roles=role or (), signed=signed, expires_at=until
    )
    number = key.split("_")[1]
    _audit(settings, "keys add", number, sources=sources, roles=role or ["ingest"], signed=signed)
    if json:
        print_json(
            {
                "key": key,
                "id": number,
                "sources": sources,
                "roles": role or ["ingest"],
                "signed": signed,
                "backfill": backfill,
                "expires_at": until,
            }
        )
    else:
        out.print(key, soft_wrap=True, markup=False)


@keys.command("list")
def list_keys(data_dir: _DataDir = None, json: _Json = False) -> None:
    """Show every key without its secret."""
    from pipeline.ingest.keys import KeyStore
    from pipeline.settings import load_settings

    stored = KeyStore(load_settings(data_dir=data_dir).keys_path).list()
    if json:
        print_json(
            [
                {
                    "id": key.id,
                    "sources": key.sources,
                    "roles": sorted(key.all_roles),
                    "signed": key.signed,
                    "backfill": key.backfill,
                    "created_at": key.created_at,
                    "expires_at": key.expires_at,
                    "revoked_at": key.revoked_at,
                }
                for key in stored
            ]
        )
        return
    table = Table("id", "sources", "roles", "signed", "backfill", "created", "expires", "revoked", box=None)
    for key in stored:
        table.add_row(
            key.id,
            ", ".join(key.sources),
            ", ".join(sorted(key.all_roles)),
            "yes" if key.signed else "",
            "yes" if key.backfill else "",
            f"{key.created_at:%Y-%m-%d %H:%M}",
            f"{key.expires_at:%Y-%m-%d %H:%M}" if key.expires_at else "",
            f"{key.revoked_at:%Y-%m-%d %H:%M}" if key.revoked_at else "",
        )
    print_table(table)


@keys.command("revoke")
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the key, as `keys list` shows it.")],
    data_dir: _DataDir = None,
    json: _Json = False,
) -> None:
    """Stop a key at once; a running gateway notices by itself."""
    from pipeline.ingest.keys import KeyStore
    from pipeline.settings import load_settings

    settings = load_settings(data_dir=data_dir)
    revoked = KeyStore(settings.keys_path).revoke(key_id)
    _audit(settings, "keys revoke", revoked.id)
    if json:
        print_json({"id": revoked.id, "revoked_at": revoked.revoked_at})
    else:
        out.print(f"revoked {revoked.id} ({', '.join(revoked.sources)})", markup=False)


def _instant(text: str | None) -> datetime | None:
    from pipeline.clock import LOCAL_ZONE
    from pipeline.errors import ConfigurationError

    if text is None:
        return None
    try:
        given = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(
            f"--expires {text!r} must be a day, YYYY-MM-DD, or an RFC 3339 time"
        ) from None
    return (given if given.tzinfo is not None else given.replace(tzinfo=LOCAL_ZONE)).astimezone(UTC)


def _audit(settings: Settings, call: str, subject: str, **more: Any) -> None:
    from pipeline.audit import AuditLog, operator

    log = AuditLog(settings.audit_dir, keep_days=settings.audit_keep_days)
    log.record(who=operator(), call=call, subject=subject, **more)
    log.close()


def register(app: typer.Typer) -> None:
    app.add_typer(keys, name="keys")
