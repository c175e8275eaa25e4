"""A ClickHouse client wherever the data are: a server, the running service, or the data directory itself."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import clickhouse_connect
import pyarrow as pa
from clickhouse_connect.driver import httputil
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, OperationalError
from clickhouse_connect.driver.httpclient import HttpClient
from urllib3.exceptions import HTTPError as TransportError

from pipeline.contract.privacy import first_line
from pipeline.contract.secret import load_secret
from pipeline.errors import ConfigurationError, GridpipeError, UnavailableError
from pipeline.settings import Settings
from pipeline.store.engine import CLIENT_SETTINGS, EmbeddedEngine
from pipeline.tls import client_context

Result = TypeVar("Result")

CONNECT_TIMEOUT_SECONDS = 5
#: ClickHouse's codes: a profile that only reads; a bound of the profile; no grant.
NOT_ALLOWED: Final = frozenset({164, 452, 497})
#: Kept open: ten threads read, some of which ask several things beside each other. The driver's own pool
#: keeps 8 and warns of each further one, and follows an `http_proxy` of the environment, which would see
#: password and data.
_CONNECTIONS: Final = 32
_plain: Final = httputil.get_pool_manager(maxsize=_CONNECTIONS)
#: Above the server's own limit, so that the server's answer is seen rather than our timeout (reliability C5).
_GRACE_SECONDS = 30


@dataclass(frozen=True)
class BridgeAddress:
    """Where a running store process answers, as it says in `<data-dir>/run/bridge.json` (0600)."""

    url: str
    token: str
    pid: int

    @staticmethod
    def path(run_dir: Path) -> Path:
        return run_dir / "bridge.json"

    def write(self, run_dir: Path) -> None:
        """Replace the file at once, readable by this user only."""
        target = self.path(run_dir)
        fresh = target.with_suffix(".new")
        fresh.touch(mode=0o600)
        fresh.chmod(0o600)
        fresh.write_text(json.dumps({"url": self.url, "token": self.token, "pid": self.pid}))
        fresh.replace(target)

    @classmethod
    def read(cls, run_dir: Path) -> BridgeAddress | None:
        """None when no store process runs (no file, or its process is gone)."""
        try:
            found = cls(**json.loads(cls.path(run_dir).read_text()))
            os.kill(found.pid, 0)
        except (FileNotFoundError, ProcessLookupError):
            return None
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"{cls.path(run_dir)} is damaged; delete it and start again") from error
        except PermissionError as error:
            raise ConfigurationError(f"{cls.path(run_dir)} belongs to another user") from error
        return found


def connect(settings: Settings, *, database: str | None = None) -> Client:
    """A client for the store that the settings name.

    A server if `clickhouse` is set; else the running service; else the embedded engine on the data
    directory, which this process then owns until it ends.

    database : default database; unset: `settings.database`. It must exist, except "" for none.
    Raises UnavailableError (server or service unreachable), ConfigurationError (directory in use, bad URL).
    """
    name = settings.database if database is None else database or None
    if settings.clickhouse is not None:
        return connect_server(settings, name)
    bridge = BridgeAddress.read(settings.run_dir)
    if bridge is not None:
        return connect_bridge(bridge, name, timeout=settings.insert_timeout_seconds + _GRACE_SECONDS)
    return EmbeddedEngine(settings.clickhouse_dir, settings.engine_tmp_dir).new_client(name)


def connect_server(settings: Settings, database: str | None) -> Client:
    """A client for the ClickHouse server of `settings.clickhouse`. Raises as `connect`."""
    url = settings.clickhouse or ""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConfigurationError(
            "GRIDPIPE_CLICKHOUSE must be an http or https address with host, port, user and password"
        )
    options: dict[str, Any] = {}
    if settings.clickhouse_password_file is not None:
        secret = load_secret(settings.clickhouse_password_file, create=False, least=16)
        options["password"] = secret.decode()
    if parts.scheme == "http":
        options["pool_mgr"] = _plain
    else:
        client_context(
            settings.clickhouse_ca,
            settings.clickhouse_cert,
            settings.clickhouse_key,
            what="GRIDPIPE_CLICKHOUSE_CA, GRIDPIPE_CLICKHOUSE_CERT, GRIDPIPE_CLICKHOUSE_KEY",
        )
        for name, path in (
            ("ca_cert", settings.clickhouse_ca),
            ("client_cert", settings.clickhouse_cert),
            ("client_cert_key", settings.clickhouse_key),
        ):
            if path is not None:
                options[name] = str(path)
        if settings.clickhouse_cert is not None:
            options["tls_mode"] = "strict"  # the certificate secures the connection; the password logs in
    server_settings = CLIENT_SETTINGS | {"max_execution_time": str(int(settings.insert_timeout_seconds))}
    try:
        return clickhouse_connect.get_client(
            dsn=url,
            database=database,
            settings=server_settings,
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            send_receive_timeout=int(settings.insert_timeout_seconds + _GRACE_SECONDS),
            autogenerate_session_id=False,
            **options,
        )
    except ClickHouseError as error:
        address = f"{parts.scheme}://{parts.hostname}:{parts.port or 8123}"  # without the password
        raise UnavailableError(f"ClickHouse at {address} cannot be used: {_first_line(error)}") from error


def connect_bridge(bridge: BridgeAddress, database: str | None, *, timeout: float) -> Client:
    """A client for the store process. Uncompressed: both ends share a machine. Raises UnavailableError.

    timeout : seconds for which it waits for an answer, and which a query may last: the bridge does not end
    what nobody waits for any more.
    """
    parts = urlsplit(bridge.url)
    try:
        return clickhouse_connect.get_client(
            interface="http",
            host=parts.hostname,
            port=parts.port,
            username="default",
            password=bridge.token,
            database=database,
            settings=CLIENT_SETTINGS | {"max_execution_time": str(int(timeout))},
            compress=False,
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            send_receive_timeout=int(timeout),
            autogenerate_session_id=False,
            pool_mgr=_plain,
        )
    except ClickHouseError as error:
        raise UnavailableError(
            f"the store process at {bridge.url} cannot be used: {_first_line(error)}"
        ) from error


def at_once(client: Client, *calls: Callable[[], Result]) -> list[Result]:
    """Results of calls that query `client`, in their order; raises what the first failing one raised.

    Together, in threads, where these may share the client: HTTP without a session. An embedded engine's
    handle runs one statement at a time: there one call follows the other.
    """
    if not isinstance(client, HttpClient) or len(calls) < 2:
        return [call() for call in calls]
    with ThreadPoolExecutor(len(calls) - 1, thread_name_prefix="beside") as threads:
        others = [threads.submit(call) for call in calls[1:]]
        return [calls[0](), *(other.result() for other in others)]


def insert_table(client: Client, table: str, rows: pa.Table, *, settings: Mapping[str, Any]) -> None:
    """`client.insert_arrow`, without a copy of the whole while other threads wait: the embedded engine's
    driver makes `bytes` of what it could write to its file as it is."""
    if isinstance(client, HttpClient):
        client.insert_arrow(table, rows, settings=dict(settings))
        return
    data: Any = _file_of(rows)
    client.raw_insert(table, rows.schema.names, data, dict(settings), "Arrow")


class _Room(threading.local):
    """Memory of a thread that the next insert uses again: fresh pages cost more than what is written."""

    memory = bytearray()


_room = _Room()
#: What a larger insert took is given back.
_MOST_ROOM: Final = 64 << 20


def _file_of(rows: pa.Table) -> memoryview:
    """An Arrow file of these rows, until the thread's next one."""
    size = pa.MockOutputStream()
    with pa.ipc.new_file(size, rows.schema) as file:
        file.write_table(rows)
    length = size.size()
    room = _room.memory
    if len(room) < length:
        room = bytearray(length)
        if length <= _MOST_ROOM:
            _room.memory = room
    with pa.ipc.new_file(pa.FixedSizeBufferWriter(pa.py_buffer(room)), rows.schema) as file:
        file.write_table(rows)
    return memoryview(room)[:length]


def as_told(error: ClickHouseError) -> GridpipeError | None:
    """What a command says of an error that no call of ours expected: a user who may not do what was asked, a
    store that went away meanwhile. None: a fault of ours, which needs its trace."""
    code = getattr(error, "code", None)
    if code in NOT_ALLOWED:
        return ConfigurationError(
            f"this ClickHouse user may not do that: {_first_line(error)} (who may do what: "
            "docs/security.md, infra/security/clickhouse/access.sql)"
        )
    if code is None and isinstance(error, OperationalError):
        return UnavailableError(f"ClickHouse did not answer to the end: {_first_line(error)}")
    return None


def _first_line(error: BaseException) -> str:
    if isinstance(error.__cause__, TransportError):
        return "it does not answer"
    return first_line(error)
