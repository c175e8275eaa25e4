"""`gridpipe explain`, `case` and `kpi`: what the service knows, from the terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import quote, urlsplit

import typer

from pipeline.cli.common import (
    EXIT_SOME_REFUSED,
    EXIT_USAGE,
    KeyFile,
    key_of,
    out,
    print_error,
    print_json,
    print_table,
)
from pipeline.errors import ContractError, UnavailableError

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

    from pipeline.read.reader import Reader
    from pipeline.settings import Settings

DEFAULT_URL: Final = "http://127.0.0.1:8080"
#: An event is queryable a moment after it was accepted: a 404 within this time is asked again.
_NOT_WRITTEN_YET_SECONDS: Final = 5.0
_ASK_AGAIN_SECONDS: Final = 0.25
_ANSWER_SECONDS: Final = 30.0

_Url = Annotated[
    str | None,
    typer.Option("--url", help=f"Address of the service (default {DEFAULT_URL}, else the data directory)."),
]
_DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Data directory, read when no service runs.")
]
_Key = Annotated[
    str | None, typer.Option("--key", help="Key, where reads need one; default on this machine: its own.")
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
#: Answers a call from the data directory itself; None: nothing found.
_Offline = Callable[["Reader", "Client"], dict[str, Any] | None]


@dataclass(frozen=True)
class _Personal:
    """A read of personal data, as its line in the audit log names it."""

    call: str
    subject: str


def register(app: typer.Typer) -> None:
    app.command("explain")(explain)
    app.command("case")(case)
    app.command("kpi")(kpi)


def explain(
    source: Annotated[str, typer.Argument(help="Feeding system of the event.")],
    event_id: Annotated[str, typer.Argument(help="The event's id within its source.")],
    *,
    url: _Url = None,
    data_dir: _DataDir = None,
    key: _Key = None,
    key_file: KeyFile = None,
    json: _Json = False,
) -> None:
    """Where an event is and why: outcome, every rule with its result, enrichment, stored position."""

    def offline(reader: Reader, client: Client) -> dict[str, Any] | None:
        from pipeline.read.explain import explain as read

        retention = timedelta(days=reader.settings.event_retention_days)
        return read(
            client,
            source,
            event_id,
            catalogues=reader.catalogues,
            now=reader.clock(),
            retention=retention,
        )

    path = f"/v1/events/{quote(source, safe='')}/{quote(event_id, safe='')}"
    personal = _Personal("explain", f"{source}/{event_id}")
    found = _ask(
        path, {}, offline, personal, url=url, data_dir=data_dir, key=key, key_file=key_file, patient=True
    )
    if json:
        print_json(found)
        return
    from pipeline.cli.tables import print_explained

    print_explained(found)


def case(
    case_id: Annotated[str, typer.Argument(help="The case's id.")],
    *,
    url: _Url = None,
    data_dir: _DataDir = None,
    key: _Key = None,
    key_file: KeyFile = None,
    json: _Json = False,
) -> None:
    """One case (案件): its events in fold order, state, times, limits and links."""

    def offline(_: Reader, client: Client) -> dict[str, Any] | None:
        from pipeline.read.cases import case as read

        return read(client, case_id)

    path, personal = f"/v1/cases/{quote(case_id, safe='')}", _Personal("case", case_id)
    found = _ask(path, {}, offline, personal, url=url, data_dir=data_dir, key=key, key_file=key_file)
    if json:
        print_json(found)
        return
    from pipeline.cli.tables import print_case

    print_case(found)


def kpi(
    *,
    by: Annotated[
        str,
        typer.Option(help="city, district, town, village, grid, matter, category, department or channel."),
    ] = "city",
    from_: Annotated[
        str | None, typer.Option("--from", help="Start, RFC 3339; default: 30 days before --to.")
    ] = None,
    to: Annotated[str | None, typer.Option("--to", help="End, exclusive; default: --as-of.")] = None,
    as_of: Annotated[str | None, typer.Option("--as-of", help="Instant of the states; default: now.")] = None,
    view: Annotated[
        str, typer.Option(help="cohort (cases reported in the window) or flow (events in it).")
    ] = "cohort",
    url: _Url = None,
    data_dir: _DataDir = None,
    key: _Key = None,
    key_file: KeyFile = None,
    all_: Annotated[
        bool, typer.Option("--all", help="Every figure, also on a terminal; a pipe or file gets all anyhow.")
    ] = False,
    json: _Json = False,
) -> None:
    """Closure rate (办结率), response rate (响应率) and every other metric, by a dimension."""
    given = {"by": by, "from": from_, "to": to, "as_of": as_of, "view": view}
    parameters = {name: value for name, value in given.items() if value is not None}

    def offline(reader: Reader, client: Client) -> dict[str, Any] | None:
        from pipeline.read.kpi import kpi as read
        from pipeline.read.names import KpiNames
        from pipeline.read.routes import kpi_parameters

        asked = kpi_parameters(parameters, now=reader.clock())
        return read(client, names=KpiNames(reader.areas, reader.catalogues, client), **asked)

    found = _ask("/v1/kpi", parameters, offline, None, url=url, data_dir=data_dir, key=key, key_file=key_file)
    if json:
        print_json(found)
        return
    from pipeline.cli.tables import kpi_table

    whole = all_ or not out.is_terminal
    print_table(kpi_table(found, by, whole=whole), whole=whole)


def _ask(
    path: str,
    parameters: dict[str, str],
    offline: _Offline,
    personal: _Personal | None,
    *,
    url: str | None,
    data_dir: Path | None,
    key: str | None,
    key_file: Path | None,
    patient: bool = False,
) -> dict[str, Any]:
    """The answer of the running service, else, unless a service was named, of the data directory.

    personal : for the audit log, where the answer is about one report or case; a service audits by itself;
    patient : ask again while the answer is 404, for 5 s.
    Raises UnavailableError (exit 3) when nothing answers; ends with exit 1 when there is nothing, 2 on a bad
    parameter.
    """
    import httpx

    from pipeline.ingest.signing import auth_for
    from pipeline.settings import load_settings
    from pipeline.tls import verify_for

    address = url or DEFAULT_URL
    settings = load_settings(data_dir=data_dir, key_file=key_file)
    key = key or key_of(settings) or _own_key(address, settings)
    deadline = time.monotonic() + _NOT_WRITTEN_YET_SECONDS
    try:
        with httpx.Client(
            base_url=address,
            auth=auth_for(key) if key else None,
            timeout=_ANSWER_SECONDS,
            trust_env=False,
            verify=verify_for(settings, address),
        ) as http:
            answer = http.get(path, params=parameters)
            while patient and answer.status_code == httpx.codes.NOT_FOUND and time.monotonic() < deadline:
                time.sleep(_ASK_AGAIN_SECONDS)
                answer = http.get(path, params=parameters)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol):
        raise ContractError(f"--url {address!r} must be like {DEFAULT_URL}") from None
    except httpx.ConnectError:
        if url is not None:
            raise UnavailableError(f"no service at {url}; start one with `gridpipe up`") from None
        return _from_data_dir(offline, personal, data_dir)
    except httpx.HTTPError as error:
        raise UnavailableError(f"{address} does not answer as it should: {type(error).__name__}") from error
    return _body(answer.status_code, answer.content, address)


def _own_key(address: str, settings: Settings) -> str | None:
    """The key that `up` keeps in the data directory; only ever sent to this machine."""
    from pipeline.settings import is_loopback

    if not is_loopback(urlsplit(address).hostname or ""):
        return None
    try:
        return settings.local_key_path.read_text().strip() or None
    except OSError:
        return None


def _body(status: int, content: bytes, address: str) -> dict[str, Any]:
    import orjson

    try:
        body = orjson.loads(content)
    except orjson.JSONDecodeError:
        raise UnavailableError(f"{address} is not a gridpipe service (HTTP {status}, no JSON)") from None
    if status == 200:
        return dict(body)
    message = body.get("message", f"HTTP {status}") if isinstance(body, dict) else f"HTTP {status}"
    if status == 429 or status >= 500:
        raise UnavailableError(str(message))
    print_error(str(message))
    raise typer.Exit(EXIT_SOME_REFUSED if status in {404, 410} else EXIT_USAGE)


def _from_data_dir(offline: _Offline, personal: _Personal | None, data_dir: Path | None) -> dict[str, Any]:
    """Open the store that the settings name; a directory without data is not created."""
    from pipeline.read.explain import PastRetentionError
    from pipeline.read.reader import Reader
    from pipeline.rules.catalogue import load_catalogues
    from pipeline.settings import load_settings
    from pipeline.store.client import connect

    settings: Settings = load_settings(data_dir=data_dir)
    if settings.clickhouse is None and not settings.clickhouse_dir.is_dir():
        raise UnavailableError(
            f"no service at {DEFAULT_URL} and no data in {settings.data_dir}; start one with `gridpipe up`"
        )
    reader = Reader(
        lambda: connect(settings), catalogues=load_catalogues(settings.catalogue_dir), settings=settings
    )
    found, status, why = None, 404, "nothing is written under this id"
    try:
        found = reader.run_here(lambda client: offline(reader, client))
    except PastRetentionError:
        status, why = 410, f"this is past its {settings.event_retention_days} days of retention"
    finally:
        reader.close()
    if personal is not None:
        _audit(settings, personal, status if found is None else 200)
    if found is None:
        print_error(why)
        raise typer.Exit(EXIT_SOME_REFUSED)
    return found


def _audit(settings: Settings, personal: _Personal, status: int) -> None:
    """The line that the service writes for the same read. Raises UnavailableError where it cannot be written:
    nothing is shown then."""
    from pipeline.audit import AuditLog, operator

    audit = AuditLog(settings.audit_dir, keep_days=settings.audit_keep_days)
    try:
        audit.record(
            who=operator(),
            call=personal.call,
            subject=personal.subject,
            query=None,
            address=None,
            status=status,
        )
    except OSError as error:
        raise UnavailableError(
            f"reads cannot be recorded in {settings.audit_dir}: {error.strerror}; nothing is shown without"
        ) from error
    finally:
        audit.close()
