"""TLS of our own listeners and of our clients: which files, which versions. TLS 1.2 or newer everywhere."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigurationError
from pipeline.settings import Settings, is_loopback, split_address


def client_context(
    ca: Path | None, cert: Path | None = None, key: Path | None = None, *, what: str = "TLS"
) -> ssl.SSLContext:
    """Verifies servers against `ca` (unset: the system's authorities); shows `cert`, where given.

    what : whose files these are, for the message. Raises ConfigurationError.
    """
    try:
        context = ssl.create_default_context(cafile=None if ca is None else str(ca))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if cert is not None:
            context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"{what}: {_why(error)}") from error
    return context


def http_client_context(settings: Settings) -> ssl.SSLContext:
    """For commands that call a running service over https. Raises ConfigurationError."""
    return client_context(
        settings.tls_ca, settings.tls_client_cert, settings.tls_client_key, what="GRIDPIPE_TLS_CA"
    )


def verify_for(settings: Settings, url: str) -> ssl.SSLContext | bool:
    """httpx's `verify` for a service at `url`. Raises ConfigurationError."""
    return http_client_context(settings) if url.startswith("https:") else True


def server_context(settings: Settings, *, ask_clients: bool) -> ssl.SSLContext | None:
    """Of an HTTP listener; None without `tls_cert`.

    ask_clients : demand a certificate of `tls_client_ca`, where that is set. Raises ConfigurationError.
    """
    if settings.tls_cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
        if settings.tls_client_ca is not None and ask_clients:
            context.load_verify_locations(settings.tls_client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"GRIDPIPE_TLS_CERT, GRIDPIPE_TLS_KEY, GRIDPIPE_TLS_CLIENT_CA: {_why(error)}"
        ) from error
    return context


def server_options(settings: Settings, *, ask_clients: bool) -> dict[str, Any]:
    """What uvicorn needs to answer with `server_context`."""
    if server_context(settings, ask_clients=ask_clients) is None:
        return {}
    return {"ssl_context_factory": lambda *_: server_context(settings, ask_clients=ask_clients)}


def admin_is_secure(settings: Settings) -> bool:
    """Whether the listener of /metrics and /health speaks TLS: beside a TLS one, unless it is on loopback."""
    if settings.tls_cert is None:
        return False
    return settings.admin_http is None or not is_loopback(split_address(settings.admin_http)[0])


def health_url(settings: Settings) -> str:
    """Where a service with these settings answers for its health: `admin_http`, where that is set."""
    scheme = "https" if admin_is_secure(settings) else "http"
    return f"{scheme}://{settings.admin_http or settings.http}"


def failed_in_tls(error: BaseException | None) -> bool:
    """Whether a client's request failed in TLS: something listens, which is not trusted or speaks none."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error is not None


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return f"these files hold no certificate and key that fit together ({error.reason or 'not readable'})"
    return f"{error.filename or 'a file'}: {error.strerror}"
