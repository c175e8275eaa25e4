"""What must hold before a process starts: one line for everything that does not, exit 2.

Looks at settings and files only; what needs a connection is looked at once there is one
(`check_broker`, `pipeline.store.windows.check_windows`).
"""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import psutil

from pipeline import logs
from pipeline.contract.secret import is_placeholder, load_secret
from pipeline.errors import ConfigurationError
from pipeline.ingest.keys import KeyStore
from pipeline.kafka_access import MIN_PASSWORD_BYTES, librdkafka_options
from pipeline.page.watch import watched_urls
from pipeline.runtime.access import check_listeners
from pipeline.settings import Settings, is_loopback, split_address
from pipeline.tls import client_context, http_client_context, server_context

_LOCAL_KEY_BYTES: Final = 43

log = logs.get_logger(__name__)


def check_start(settings: Settings, *, simulate: bool = False) -> None:
    """Raises ConfigurationError with every problem of the settings and secret files.

    simulate : whether the simulated city is to be fed.
    """
    problems: list[str] = []
    checks: tuple[Callable[[], Iterator[str]], ...] = (
        lambda: _listeners(settings),
        lambda: _pairs(settings, simulate=simulate),
        lambda: _private_files(settings),
        lambda: _secrets(settings),
        lambda: _clickhouse(settings),
        lambda: _limits(settings),
        lambda: _contexts(settings),
    )
    for check in checks:
        try:
            problems += check()
        except ConfigurationError as error:
            problems += error.problems
    if problems:
        raise ConfigurationError(list(dict.fromkeys(problems)))


def check_broker(pid: int) -> None:
    """Refuse an embedded broker that other machines can reach: it knows no passwords.

    pid : of the running broker. Raises ConfigurationError.
    """
    try:
        sockets = psutil.Process(pid).net_connections(kind="inet")
    except psutil.Error:
        return  # it ended; whoever waits for it will tell
    open_to_others = sorted(
        {
            f"{one.laddr.ip}:{one.laddr.port}"
            for one in sockets
            if one.status == psutil.CONN_LISTEN and not is_loopback(one.laddr.ip)
        }
    )
    if open_to_others:
        raise ConfigurationError(
            f"the embedded broker listens on {', '.join(open_to_others)}: it has no passwords and must stay "
            "on 127.0.0.1; use Kafka with --kafka"
        )


def _limits(settings: Settings) -> Iterator[str]:
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if settings.clickhouse is None and limit != resource.RLIM_INFINITY:
        yield (
            f"the size of files is limited to {limit} bytes (ulimit -f): the embedded ClickHouse takes "
            "a part that is cut off there for stored; lift the limit"
        )


def _listeners(settings: Settings) -> Iterator[str]:
    check_listeners(settings)
    yield from ()


def _pairs(settings: Settings, *, simulate: bool) -> Iterator[str]:
    for cert, key in (
        ("tls_cert", "tls_key"),
        ("tls_client_cert", "tls_client_key"),
        ("kafka_cert", "kafka_key"),
        ("clickhouse_cert", "clickhouse_key"),
    ):
        if (getattr(settings, cert) is None) != (getattr(settings, key) is None):
            yield f"GRIDPIPE_{cert.upper()} and GRIDPIPE_{key.upper()} belong together; give both or neither"
    if settings.tls_client_ca is not None and settings.tls_cert is None:
        yield "GRIDPIPE_TLS_CLIENT_CA needs GRIDPIPE_TLS_CERT and GRIDPIPE_TLS_KEY"
    if settings.tls_cert is not None and settings.admin_http is None:
        yield "GRIDPIPE_TLS_CERT needs --admin-http HOST:PORT for /metrics and /health, e.g. 127.0.0.1:9090"
    if settings.tls_cert is not None and simulate:
        yield "the simulated city is fed over plain HTTP; with GRIDPIPE_TLS_CERT start with --no-simulate"
    if settings.kafka is None and settings.kafka_security != "plaintext":
        yield "GRIDPIPE_KAFKA_SECURITY needs --kafka: the embedded broker is plain and on loopback only"


def _private_files(settings: Settings) -> Iterator[str]:
    given = (
        settings.tls_key,
        settings.tls_client_key,
        settings.kafka_key,
        settings.kafka_password_file,
        settings.clickhouse_key,
        settings.clickhouse_password_file,
        settings.watch_key_file,
    )
    found = [settings.local_key_path, settings.keys_path, settings.nonces_path]
    if settings.pseudonym_key_path.parent.is_dir():
        found += sorted(settings.pseudonym_key_path.parent.iterdir())
    for path in [*(path for path in given if path is not None), *(path for path in found if path.exists())]:
        yield from _public(path)


def _public(path: Path) -> Iterator[str]:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        yield f"{path}: {error.strerror}"
        return
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        yield f"secret file {path} can be read by others; run: chmod 600 {path}"


def _kept(path: Path | None) -> bool:
    """Whether there is nothing to say of the file as a file; of no file neither."""
    return path is None or not list(_public(path))


def _secrets(settings: Settings) -> Iterator[str]:
    folder = settings.pseudonym_key_path.parent
    names = [path for path in (folder.iterdir() if folder.is_dir() else ()) if ".v" in path.name]
    for path in sorted(path for path in names if not path.name.endswith(".tmp")):
        if not list(_public(path)):
            load_secret(path, create=False)
    if settings.local_key_path.exists():
        local = settings.local_key_path.read_text().strip()
        if len(local) < _LOCAL_KEY_BYTES or is_placeholder(local.encode()):
            yield f"{settings.local_key_path} holds no key that gridpipe made; delete it and start again"
    signed = [key for key in KeyStore(settings.keys_path).list() if key.signed and key.revoked_at is None]
    if signed and not (folder / "signing.v1").exists():
        yield (
            f"{folder / 'signing.v1'} is missing, and {len(signed)} signing keys need it; "
            "restore it, or revoke them"
        )
    # what is missing or open to others is told of already
    if settings.kafka_security != "plaintext" and _kept(settings.kafka_password_file):
        librdkafka_options(settings)
    if settings.clickhouse_password_file is not None and _kept(settings.clickhouse_password_file):
        load_secret(settings.clickhouse_password_file, create=False, least=MIN_PASSWORD_BYTES)


def _clickhouse(settings: Settings) -> Iterator[str]:
    """A server that others can reach must not be open to whoever guesses."""
    if settings.clickhouse is None:
        return
    parts = urlsplit(settings.clickhouse)
    if is_loopback(parts.hostname or "") or settings.clickhouse_password_file is not None:
        return
    password = unquote(parts.password or "")
    where = f"ClickHouse at {parts.hostname}"  # never the URL: it holds the password
    if not password:
        yield f"{where} needs a password: GRIDPIPE_CLICKHOUSE_PASSWORD_FILE, or one in --clickhouse"
    elif len(password.encode()) < MIN_PASSWORD_BYTES or is_placeholder(password.encode()):
        yield f"{where}: the password is short or a default one; use {MIN_PASSWORD_BYTES} random characters"


def _contexts(settings: Settings) -> Iterator[str]:
    server_context(settings, ask_clients=True)
    watched_urls(settings)
    if settings.tls_ca is not None or settings.tls_client_cert is not None:
        http_client_context(settings)
    if any((settings.clickhouse_ca, settings.clickhouse_cert)):
        client_context(
            settings.clickhouse_ca,
            settings.clickhouse_cert,
            settings.clickhouse_key,
            what="GRIDPIPE_CLICKHOUSE_CA",
        )
    yield from ()


def warn_unprotected(settings: Settings) -> None:
    """Once at start, a line of the log for each."""
    for what in unprotected(settings):
        log.warning("unprotected", what=what)


def open_to_others(directory: Path) -> str | None:
    """What is wrong, and what to do, where other users may read the data directory."""
    if directory.stat().st_mode & 0o077:
        return f"{directory} can be read by others: chmod 700 {directory}"
    return None


def unprotected(settings: Settings) -> list[str]:
    """What travels in plain text to or from other machines, and a process that may do everything: for the log
    and `doctor`; no reason to refuse, for a proxy, a private network or a container may protect it."""
    found = []
    if os.geteuid() == 0:
        found.append("gridpipe runs as root: start it as a user of its own, who owns the data directory")
    if not is_loopback(split_address(settings.http)[0]) and settings.tls_cert is None:
        found.append(f"HTTP on {settings.http} is plain: set GRIDPIPE_TLS_CERT or put a TLS proxy before it")
    admin = settings.admin_http
    if admin is not None and not is_loopback(split_address(admin)[0]) and settings.tls_cert is None:
        found.append(
            f"admin HTTP on {admin} is plain, keys too: set GRIDPIPE_TLS_CERT or put a TLS proxy before it"
        )
    if settings.watch_key_file is not None:
        watched = (urlsplit(url) for url in watched_urls(settings))
        if any(url.scheme != "https" and not is_loopback(url.hostname or "") for url in watched):
            found.append("GRIDPIPE_WATCH is asked in plain text, with a key: use https addresses")
    if settings.kafka is not None and not settings.kafka_security.endswith("ssl"):
        hosts = {part.strip().rpartition(":")[0].strip("[]") for part in settings.kafka.split(",")}
        if not all(is_loopback(host) for host in hosts):
            found.append("Kafka is reached in plain text: set GRIDPIPE_KAFKA_SECURITY=sasl_ssl")
    if settings.clickhouse is not None:
        parts = urlsplit(settings.clickhouse)
        if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
            found.append("ClickHouse is reached in plain text: use an https address")
    return found
