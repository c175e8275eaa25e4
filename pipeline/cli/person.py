"""`gridpipe person`: what the law grants a person; `gridpipe pseudonym`: rotation of the pseudonym key."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.cli.common import EXIT_SOME_REFUSED, err, out, print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Callable

    from clickhouse_connect.driver.client import Client

    from pipeline.settings import Settings

person = typer.Typer(help="Find and erase what is stored about a person.", no_args_is_help=True)
pseudonym = typer.Typer(
    help="Versions of the pseudonym key: list, rotate, activate, retire.", no_args_is_help=True
)

_DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Directory of the service's data.")]
_ClickHouse = Annotated[
    str | None, typer.Option("--clickhouse", help="ClickHouse URL instead of the embedded engine.")
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_From = Annotated[
    Path | None,
    typer.Option(
        "--from", help="File (0600) of the person's numbers, one a line; unset: asked for, not shown."
    ),
]


@person.command("find")
def find(
    *, numbers: _From = None, data_dir: _DataDir = None, clickhouse: _ClickHouse = None, json: _Json = False
) -> None:
    """Count the rows that hold a pseudonym of a person, in every table and under every key version."""
    from pipeline.store.erase import scan

    asked = _asked(numbers, data_dir, clickhouse)
    settings, client = asked.settings, _open(asked.settings)
    keys = asked.keys(client)
    found = {table: rows for table, rows in scan(client, settings.database, list(keys)).items() if rows}
    client.close()
    _audit(settings, "person find", None, rows=sum(found.values()))
    if json:
        print_json({"keys": len(keys), "rows": found})
        return
    _print_rows(found, "nothing is stored about this person")


@person.command("erase")
def erase(
    *,
    request: Annotated[
        str | None,
        typer.Option(
            "--request", help="Id of the request, for the evidence, no number of a person; unset: made up."
        ),
    ] = None,
    numbers: _From = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    data_dir: _DataDir = None,
    clickhouse: _ClickHouse = None,
    json: _Json = False,
) -> None:
    """Erase a person: everything that holds its pseudonyms; no load and no replay brings it back.

    Official figures stay as they are. The evidence goes to <data-dir>/evidence. Exit 1 if rows are left.
    """
    import orjson

    from pipeline.clock import utc_now
    from pipeline.store.erase import erase as run

    _check_request(request)
    asked = _asked(numbers, data_dir, clickhouse)
    settings, masks = asked.settings, asked.masks
    if not yes:
        typer.confirm("Erase this person for good?", abort=True)
    name = request or f"E{utc_now():%Y%m%d}-{secrets.token_hex(4)}"
    client = _open(settings)
    keys = asked.keys(client)
    evidence = run(
        client,
        settings.database,
        keys,
        request_id=name,
        at=utc_now(),
        masks=masks,
        settle=_settle(settings),
    )
    client.close()
    written = orjson.dumps(evidence.as_dict(), option=orjson.OPT_INDENT_2) + b"\n"
    path = _keep_evidence(settings.evidence_dir, name, written)
    _audit(settings, "person erase", name, rows=sum(evidence.found.values()), complete=evidence.complete)
    if json:
        print_json(evidence.as_dict() | {"evidence": str(path)})
    else:
        _print_rows({t: rows for t, rows in evidence.found.items() if rows}, "nothing was stored")
        left = sum(evidence.left.values())
        out.print(f"{name}: {left} rows left in {len(evidence.tables_scanned)} tables; evidence: {path}")
        if evidence.doubtful:
            err.print(
                f"{sum(evidence.doubtful.values())} rows show the same masked phone and were reported under "
                "another key: erase by the identity number too, or they are somebody else's",
                highlight=False,
            )
    if not evidence.complete:
        raise typer.Exit(EXIT_SOME_REFUSED)


@person.command("export-erasures")
def export_erasures(
    file: Annotated[Path, typer.Argument(help="File to write or to add to; keep it apart from backups.")],
    *,
    data_dir: _DataDir = None,
    clickhouse: _ClickHouse = None,
    json: _Json = False,
) -> None:
    """Add the list of erased persons to a file: who restores an older backup erases them again by it.

    What the file holds already stays. It holds pseudonyms.
    """
    from pipeline.settings import load_settings
    from pipeline.store.erasure_list import read_list, stored_erasures, write_list

    settings = load_settings(data_dir=data_dir, clickhouse=clickhouse)
    kept = read_list(file) if file.exists() else set()
    client = _open(settings)
    found = stored_erasures(client)
    client.close()
    write_list(file, kept | found)
    _audit(settings, "person export-erasures", None, rows=len(kept | found))
    if json:
        print_json({"file": str(file), "pseudonyms": len(kept | found), "added": len(found - kept)})
    else:
        out.print(f"{file}: {len(kept | found):,} pseudonyms, {len(found - kept):,} of them new")


@person.command("reapply")
def reapply(
    file: Annotated[Path, typer.Argument(help="What `gridpipe person export-erasures` wrote.")],
    *,
    data_dir: _DataDir = None,
    clickhouse: _ClickHouse = None,
    json: _Json = False,
) -> None:
    """Erase again who was erased, after a restore and before the workers start. Exit 1 if rows are left."""
    import orjson

    from pipeline.settings import load_settings
    from pipeline.store.erase import reapply as run
    from pipeline.store.erasure_list import read_list

    settings = load_settings(data_dir=data_dir, clickhouse=clickhouse)
    erasures = read_list(file)
    client = _open(settings)
    evidence = run(client, settings.database, erasures, settle=_settle(settings))
    client.close()
    written = orjson.dumps(evidence.as_dict(), option=orjson.OPT_INDENT_2) + b"\n"
    path = _keep_evidence(settings.evidence_dir, evidence.request_id, written)
    rows = sum(evidence.found.values())
    _audit(settings, "person reapply", evidence.request_id, rows=rows, complete=evidence.complete)
    if json:
        print_json(evidence.as_dict() | {"evidence": str(path)})
    else:
        _print_rows({t: rows for t, rows in evidence.found.items() if rows}, "nobody had come back")
        left = sum(evidence.left.values())
        out.print(f"{evidence.keys} pseudonyms erased again, {left} rows left; evidence: {path}")
    if not evidence.complete:
        raise typer.Exit(EXIT_SOME_REFUSED)


def _check_request(given: str | None) -> None:
    """The id stays in clear in tables and names a file. Raises ConfigurationError without repeating it."""
    from pipeline.errors import ConfigurationError
    from pipeline.store.erasure_list import is_request_id

    if given is not None and not is_request_id(given):
        raise ConfigurationError(
            "--request must be 1–64 characters from A–Z a–z 0–9 . _ : - without an identity or mobile "
            "number, for it stays with the evidence; give the id under which the request was noted"
        )


def _settle(settings: Settings) -> Callable[[], None]:
    """Waits as long as workers with the same settings take to read the list, where any may run.

    Nobody is asked, for no worker tells where it runs: one with a longer interval, one that stands still or
    one in the middle of a long round may write once more of the person (docs/privacy.md).
    """
    from pipeline.store.client import BridgeAddress

    running = settings.clickhouse is not None or BridgeAddress.read(settings.run_dir) is not None

    def settle() -> None:
        if running:
            err.print("waiting until every worker knows …", highlight=False)
            time.sleep(2 * settings.reference_refresh_seconds)  # they look for new reference data this often

    return settle


def _keep_evidence(directory: Path, name: str, evidence: bytes) -> Path:
    """A file of its own: a request that is completed by another number must not lose its first evidence."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    number, path = 1, directory / f"{name}.json"
    while True:
        try:
            with path.open("xb") as file:
                path.chmod(0o600)
                file.write(evidence)
            return path
        except FileExistsError:
            number += 1
            path = directory / f"{name}.{number}.json"


@pseudonym.command("list")
def list_versions(data_dir: _DataDir = None, json: _Json = False) -> None:
    """Show the versions that exist and the one in force."""
    from pipeline.contract.privacy import active_version, secret_versions
    from pipeline.settings import load_settings

    path = load_settings(data_dir=data_dir).pseudonym_key_path
    versions, active = list(secret_versions(path)), active_version(path)
    if json:
        print_json({"versions": versions, "in_force": active})
    else:
        out.print(f"versions {', '.join(map(str, versions)) or 'none'}; in force {active}")


@pseudonym.command("rotate")
def rotate(data_dir: _DataDir = None, clickhouse: _ClickHouse = None, json: _Json = False) -> None:
    """Make the next version. Copy it to every host, load the reference data again, then activate it."""
    from pipeline.contract.privacy import active_version
    from pipeline.contract.rotation import rotate as run
    from pipeline.settings import load_settings
    from pipeline.store.key_ring import hold_ring

    settings = load_settings(data_dir=data_dir, clickhouse=clickhouse)
    path = settings.pseudonym_key_path
    client = _open(settings)
    hold_ring(client, path, create=False, complete=True)
    version = run(path)
    hold_ring(client, path, create=False)
    client.close()
    _audit(settings, "pseudonym rotate", str(version))
    if json:
        print_json({"version": version, "in_force": active_version(path)})
        return
    out.print(
        f"version {version} is made; next: copy {path.parent}/ to every gateway and worker, "
        f"gridpipe reference load DIR, gridpipe pseudonym activate {version} on each",
        soft_wrap=True,
    )


@pseudonym.command("activate")
def activate(
    version: int,
    *,
    force: Annotated[bool, typer.Option("--force", help="Although residents are missing under it.")] = False,
    data_dir: _DataDir = None,
    clickhouse: _ClickHouse = None,
    json: _Json = False,
) -> None:
    """Put a version in force: residents must be known under it, or their reports would be rejected."""
    from pipeline.clock import utc_now
    from pipeline.contract.privacy import active_version
    from pipeline.contract.rotation import activate as run
    from pipeline.errors import ConfigurationError
    from pipeline.settings import load_settings
    from pipeline.store.key_ring import hold_ring
    from pipeline.store.retention import long_withdrawn

    settings = load_settings(data_dir=data_dir, clickhouse=clickhouse)
    before = active_version(settings.pseudonym_key_path)
    client = _open(settings)
    hold_ring(client, settings.pseudonym_key_path, create=False, complete=True)
    # a load does not store again who was withdrawn long ago, and the night has yet to delete
    withdrawn = long_withdrawn(utc_now())
    now, then = (_residents(client, one, besides=withdrawn) for one in (version, before))
    client.close()
    if not force and now < then:
        raise ConfigurationError(
            f"{now:,} residents are known under version {version}, {then:,} under {before}: "
            "run `gridpipe reference load DIR` first, or give --force"
        )
    run(settings.pseudonym_key_path, version)
    _audit(settings, "pseudonym activate", str(version))
    if json:
        print_json({"version": version, "in_force": version, "residents": now})
        return
    out.print(f"version {version} is in force on this host; restart its gateway and workers")


@pseudonym.command("retire")
def retire(
    version: int,
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Although stored events are still linked to persons under it.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    data_dir: _DataDir = None,
    clickhouse: _ClickHouse = None,
    json: _Json = False,
) -> None:
    """Destroy a version for good: its residents go, and nobody can link its events to a person any more.

    Refuses while events within GRIDPIPE_PERSON_LINK_DAYS carry it. Run it on every host that has the key.
    """
    from pipeline.contract.privacy import secret_versions
    from pipeline.contract.rotation import check_retirable
    from pipeline.contract.rotation import retire as run
    from pipeline.errors import ConfigurationError
    from pipeline.settings import load_settings
    from pipeline.store.erase import forget_version, linked_rows
    from pipeline.store.key_ring import hold_ring, known_keys, retire_key

    settings = load_settings(data_dir=data_dir, clickhouse=clickhouse)
    path, days = settings.pseudonym_key_path, settings.person_link_days
    if here := version in secret_versions(path):
        check_retirable(path, version)
    client = _open(settings)
    hold_ring(client, path, create=False)
    known = known_keys(client)
    if not here and (known is None or version not in known.fingerprints) and not _residents(client, version):
        raise ConfigurationError(f"there is no version {version}; `gridpipe pseudonym list` shows them")
    linked = {table: rows for table, rows in linked_rows(client, version, days).items() if rows}
    if linked and here:
        lost = (
            f"{' and '.join(f'{rows:,} rows of {table}' for table, rows in linked.items())} of the last "
            f"{days} days are linked to persons under version {version}"
        )
        if not force:
            raise ConfigurationError(
                f"{lost}: without the key nobody could find or erase these persons in them; wait until the "
                "links have expired, or give --force"
            )
        err.print(f"{lost}; nobody will find or erase these persons in them any more", soft_wrap=True)
    if not yes:
        typer.confirm(f"Destroy version {version} for good?", abort=True)
    # The key last: whatever fails before it, the same command again completes.
    retire_key(client, version)
    forget_version(client, settings.database, version)
    client.close()
    if here:
        run(path, version)
    _audit(settings, "pseudonym retire", str(version), linked=sum(linked.values()))
    if json:
        print_json({"version": version, "destroyed": here, "linked": linked})
        return
    out.print(f"version {version} is destroyed on this host; its residents are gone", soft_wrap=True)


def _residents(client: Client, version: int, *, besides: str | None = None) -> int:
    """Residents stored under a version of the key; without those whom the query `besides` names."""
    counted = client.query(
        "SELECT uniqExact(person_key) FROM ref_persons WHERE key_version = {version:UInt16}"
        + (f" AND person_key NOT IN ({besides})" if besides else ""),
        {"version": version},
    )
    return int(counted.result_rows[0][0])


@dataclass(frozen=True)
class _Asked:
    """A person: numbers as they were given, and the masks of the phones among them."""

    settings: Settings
    id_numbers: list[str]
    phones: list[str]
    masks: list[str]

    def keys(self, client: Client) -> dict[str, int]:
        """Every pseudonym under every version in use. Raises ConfigurationError where one is not here."""
        from pipeline.store.key_ring import hold_ring

        privacy = hold_ring(client, self.settings.pseudonym_key_path, create=False, complete=True)
        return privacy.keys_of(id_numbers=self.id_numbers, phones=self.phones)


def _asked(numbers: Path | None, data_dir: Path | None, clickhouse: str | None) -> _Asked:
    """Read whom it is about. Raises ConfigurationError."""
    from pipeline.contract.privacy import is_mobile, mask_phone, normalise_phone
    from pipeline.errors import ConfigurationError
    from pipeline.settings import load_settings

    settings = load_settings(data_dir=data_dir, clickhouse=clickhouse)
    if numbers is not None:
        if not numbers.is_file():
            raise ConfigurationError(f"{numbers}: no such file")
        if numbers.stat().st_mode & 0o077:
            raise ConfigurationError(f"{numbers} can be read by others; run: chmod 600 {numbers}")
        given = numbers.read_text(encoding="utf-8").splitlines()
    else:
        text: str = typer.prompt("Identity and mobile numbers, separated by commas", hide_input=True)
        given = text.split(",")
    given = [line.strip() for line in given if line.strip()]
    if not given:
        raise ConfigurationError("no number given")
    phones = [number for number in given if is_mobile(normalise_phone(number))]
    ids = [number for number in given if number not in phones]
    return _Asked(settings, ids, phones, sorted({mask_phone(phone) for phone in phones}))


def _open(settings: Settings) -> Client:
    from pipeline.cli.reference import open_store

    return open_store(settings, None)


def _audit(settings: Settings, call: str, subject: str | None, **more: Any) -> None:
    from pipeline.audit import AuditLog, operator

    log = AuditLog(settings.audit_dir, keep_days=settings.audit_keep_days)
    log.record(who=operator(), call=call, subject=subject, **more)
    log.close()


def _print_rows(found: dict[str, int], nothing: str) -> None:
    from rich.table import Table

    if not found:
        out.print(nothing)
        return
    table = Table("table", box=None)
    table.add_column("rows", justify="right")
    for name, rows in found.items():
        table.add_row(name, f"{rows:,}")
    print_table(table)


def register(app: typer.Typer) -> None:
    app.add_typer(person, name="person")
    app.add_typer(pseudonym, name="pseudonym")
