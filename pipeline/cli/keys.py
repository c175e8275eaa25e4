"""`gridpipe keys`: the keys of feeding systems."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from pipeline.cli.common import out, print_json, print_table

keys = typer.Typer(help="Keys of feeding systems: make, list, revoke.", no_args_is_help=True)

_DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Directory that holds keys.json.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@keys.command("add")
def add(
    source: Annotated[
        list[str], typer.Option("--source", help="Source that the key may send as; repeat for several.")
    ],
    backfill: Annotated[
        bool, typer.Option("--backfill", help="Reports of any age are taken and never flagged late.")
    ] = False,
    data_dir: _DataDir = None,
    json: _Json = False,
) -> None:
    """Make a key and print it: it is shown this once."""
    from pipeline.ingest.keys import KeyStore
    from pipeline.settings import load_settings

    key = KeyStore(load_settings(data_dir=data_dir).keys_path).create(source, backfill=backfill)
    if json:
        print_json({"key": key, "id": key.split("_")[1], "sources": source, "backfill": backfill})
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
                    "backfill": key.backfill,
                    "created_at": key.created_at,
                    "revoked_at": key.revoked_at,
                }
                for key in stored
            ]
        )
        return
    table = Table("id", "sources", "backfill", "created", "revoked", box=None)
    for key in stored:
        table.add_row(
            key.id,
            ", ".join(key.sources),
            "yes" if key.backfill else "",
            f"{key.created_at:%Y-%m-%d %H:%M}",
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

    revoked = KeyStore(load_settings(data_dir=data_dir).keys_path).revoke(key_id)
    if json:
        print_json({"id": revoked.id, "revoked_at": revoked.revoked_at})
    else:
        out.print(f"revoked {revoked.id} ({', '.join(revoked.sources)})", markup=False)


def register(app: typer.Typer) -> None:
    app.add_typer(keys, name="keys")
