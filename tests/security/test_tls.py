"""TLS and client certificates over real sockets: the HTTP process as it serves, commands that call it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette

from pipeline.errors import ConfigurationError
from pipeline.ingest.keys import KeyStore
from pipeline.kafka_access import faust_credentials, librdkafka_options
from pipeline.runtime import protocol
from pipeline.runtime.control import Status, StatusBoard, control_routes
from pipeline.runtime.standin import StandIn
from pipeline.runtime.store import admin_listener
from pipeline.settings import Settings
from pipeline.tls import verify_for
from tests.e2e.service import gridpipe
from tests.security.certificates import Certificates, make

_SERVE = """
import json, socket, sys
from pathlib import Path
from pipeline.ingest.keys import KeyStore
from pipeline.rules.catalogue import load_catalogues
from pipeline.runtime.http import Parts, serve
from pipeline.settings import Settings
given = json.loads(sys.argv[1])
settings = Settings(**given["settings"])
catalogues = load_catalogues(settings.catalogue_dir)
parts = Parts(settings, catalogues, KeyStore(settings.keys_path), None, None, None, {})
serve(parts, socket.socket(fileno=given["fd"]), None)
"""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make(tmp_path_factory.mktemp("tls"))


def listen() -> socket.socket:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    return listener


class Served:
    def __init__(self, data_dir: Path, **settings: Any) -> None:
        listener = listen()
        self.address = f"127.0.0.1:{listener.getsockname()[1]}"
        values = {"data_dir": str(data_dir), **{k: str(v) for k, v in settings.items()}}
        order = json.dumps({"settings": values, "fd": listener.fileno()})
        self.process = subprocess.Popen([sys.executable, "-c", _SERVE, order], pass_fds=[listener.fileno()])
        listener.close()
        deadline = time.monotonic() + 60
        context = ssl.create_default_context(cafile=settings["tls_cert"].parent / "ca.pem")
        if "tls_client_ca" in settings:
            folder = settings["tls_cert"].parent
            context.load_cert_chain(folder / "client.pem", folder / "client.key")
        while True:
            try:
                httpx.get(f"https://{self.address}/health/live", verify=context, trust_env=False)
                return
            except httpx.TransportError:
                assert time.monotonic() < deadline
                assert self.process.poll() is None
                time.sleep(0.1)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)


@pytest.fixture(scope="module")
def mutual(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(
        tmp_path_factory.mktemp("data"),
        tls_cert=certificates.cert,
        tls_key=certificates.key,
        tls_client_ca=certificates.ca,
    )
    yield served
    served.stop()


def test_the_admin_listener_of_a_worker_alone_speaks_tls(certificates: Certificates, tmp_path: Path) -> None:
    """Off loopback: a key that opens it would travel in clear."""
    files = {"tls_cert": certificates.cert, "tls_key": certificates.key}
    board = StatusBoard(Status(catalogue="", revision=""))
    for address, secure in (("0.0.0.0:9090", True), ("127.0.0.1:9090", False)):
        settings = Settings(data_dir=tmp_path, admin_http=address, **files)
        served = admin_listener(settings, control_routes(board), listen()).start()
        try:
            verify = ssl.create_default_context(cafile=certificates.ca)
            at = f"127.0.0.1:{served.port}/health/live"
            if secure:
                assert httpx.get(f"https://{at}", verify=verify, trust_env=False).status_code == 200
                with pytest.raises(httpx.TransportError):
                    httpx.get(f"http://{at}", trust_env=False)
            else:
                assert httpx.get(f"http://{at}", trust_env=False).status_code == 200
        finally:
            served.close()


def test_who_stands_in_for_the_http_process_speaks_tls_as_it_does(
    certificates: Certificates, tmp_path: Path
) -> None:
    """Callers that verify it are told to come again, not that there is nobody whom they trust; where client
    certificates are asked for, nobody is told anything without one. The admin listener asks for none."""
    settings = Settings(
        data_dir=tmp_path,
        tls_cert=certificates.cert,
        tls_key=certificates.key,
        tls_client_ca=certificates.ca,
        admin_http="0.0.0.0:9090",
    )
    public, admin = listen(), listen()
    stand_in = StandIn(settings, public, admin, code="restarting", message="come again").start()
    stranger = ssl.create_default_context(cafile=certificates.ca)
    known = ssl.create_default_context(cafile=certificates.ca)
    known.load_cert_chain(certificates.ca.parent / "client.pem", certificates.ca.parent / "client.key")
    at, admin_at = (f"127.0.0.1:{listener.getsockname()[1]}" for listener in (public, admin))
    try:
        with httpx.Client(verify=known, trust_env=False) as caller:
            answer = caller.post(f"https://{at}/v1/events", json=[{}] * 500)
            assert (answer.status_code, answer.json()["code"]) == (503, "restarting")
            assert int(answer.headers["Retry-After"]) >= 1
            assert caller.get(f"https://{at}/health/live").status_code == 200
        with httpx.Client(verify=stranger, trust_env=False) as caller:
            with pytest.raises(httpx.TransportError):
                caller.post(f"https://{at}/v1/events", json=[])
            assert caller.get(f"https://{admin_at}/health/ready").status_code == 503
        for address in (at, admin_at):
            with pytest.raises(httpx.TransportError):
                httpx.get(f"http://{address}/health/live", trust_env=False)
    finally:
        stand_in.close()
        public.close()
        admin.close()


def ask(served: Served, **context: Any) -> int:
    found = Settings(**context)
    verify = verify_for(found, "https://")
    return httpx.get(f"https://{served.address}/health/live", verify=verify, trust_env=False).status_code


def test_client_certificate_opens(mutual: Served, certificates: Certificates) -> None:
    mine = {"tls_client_cert": certificates.client_cert, "tls_client_key": certificates.client_key}
    assert ask(mutual, tls_ca=certificates.ca, **mine) == 200


def test_no_certificate_and_no_authority_do_not(mutual: Served, certificates: Certificates) -> None:
    with pytest.raises(httpx.TransportError):
        ask(mutual, tls_ca=certificates.ca)
    mine = {"tls_client_cert": certificates.client_cert, "tls_client_key": certificates.client_key}
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        ask(mutual, **mine)
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://{mutual.address}/health/live", trust_env=False)


def test_certificate_of_another_authority_does_not(
    mutual: Served, certificates: Certificates, tmp_path: Path
) -> None:
    other = make(tmp_path / "other")
    with pytest.raises(httpx.TransportError):
        ask(
            mutual,
            tls_ca=certificates.ca,
            tls_client_cert=other.client_cert,
            tls_client_key=other.client_key,
        )


@pytest.mark.parametrize(("version", "taken"), [("TLSv1_1", False), ("TLSv1_2", True), ("TLSv1_3", True)])
def test_tls_floor(mutual: Served, certificates: Certificates, version: str, taken: bool) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(certificates.ca)
    context.load_cert_chain(certificates.client_cert, certificates.client_key)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")  # else our own library refuses the old version
    with pytest.warns(DeprecationWarning) if version == "TLSv1_1" else _nothing():
        context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    host, port = mutual.address.split(":")
    with socket.create_connection((host, int(port)), timeout=5) as plain:
        if not taken:
            with pytest.raises(ssl.SSLError), context.wrap_socket(plain, server_hostname=host):
                pass
            return
        with context.wrap_socket(plain, server_hostname=host) as secure:
            assert secure.version() == version.replace("_", ".")


def _nothing() -> Any:
    import contextlib

    return contextlib.nullcontext()


def test_commands_speak_tls(
    mutual: Served, certificates: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "events.ndjson").write_text("{}\n")
    key = KeyStore(tmp_path / "keys.json").create("12345", signed=True)
    command = ("send", str(tmp_path / "events.ndjson"), "--url", f"https://{mutual.address}", "--key", key)
    monkeypatch.setenv("GRIDPIPE_TLS_CA", str(certificates.ca))
    monkeypatch.setenv("GRIDPIPE_TLS_CLIENT_CERT", str(certificates.client_cert))
    monkeypatch.setenv("GRIDPIPE_TLS_CLIENT_KEY", str(certificates.client_key))
    result = gridpipe(*command, "--data-dir", str(tmp_path))
    assert result.returncode == 2, result.stderr  # reached: this process has no gateway, hence 404 or 405
    assert "answers 40" in result.stderr
    monkeypatch.setenv("GRIDPIPE_TLS_CA", str(tmp_path / "nothing.pem"))
    result = gridpipe(*command, "--data-dir", str(tmp_path))
    assert (result.returncode, "GRIDPIPE_TLS_CA" in result.stderr) == (2, True)


# --- Kafka


def test_kafka_clients_get_what_the_settings_say(certificates: Certificates, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("k7Qx-2mV9_pLw4Zr8Tn\n")
    password.chmod(0o600)
    sasl = Settings(
        kafka="kafka.example:9093",
        kafka_security="sasl_ssl",
        kafka_username="gridpipe-worker",
        kafka_password_file=password,
        kafka_ca=certificates.ca,
        kafka_cert=certificates.client_cert,
        kafka_key=certificates.client_key,
    )
    assert librdkafka_options(sasl) == {
        "security.protocol": "sasl_ssl",
        "ssl.ca.location": str(certificates.ca),
        "ssl.certificate.location": str(certificates.client_cert),
        "ssl.key.location": str(certificates.client_key),
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "gridpipe-worker",
        "sasl.password": "k7Qx-2mV9_pLw4Zr8Tn",  # pragma: allowlist secret
    }
    from confluent_kafka.admin import AdminClient

    AdminClient({"bootstrap.servers": "127.0.0.1:9", "log_level": 0, **librdkafka_options(sasl)})
    found = faust_credentials(sasl)
    assert found.protocol.value == "SASL_SSL"
    assert found.mechanism.value == "SCRAM-SHA-512"
    assert (found.username, found.password) == ("gridpipe-worker", "k7Qx-2mV9_pLw4Zr8Tn")
    assert found.ssl_context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert "k7Qx" not in repr(found)
    assert faust_credentials(Settings(kafka="a:1")) is None
    assert librdkafka_options(Settings()) == {}
    with pytest.raises(ConfigurationError, match="GRIDPIPE_KAFKA_USERNAME"):
        librdkafka_options(Settings(kafka="a:1", kafka_security="sasl_plaintext"))


@contextlib.asynccontextmanager
async def _serving(certificates: Certificates) -> AsyncIterator[uvicorn.Server]:
    config = uvicorn.Config(
        Starlette(),
        http=protocol.BoundedHttp,
        host="127.0.0.1",
        port=0,
        lifespan="off",
        log_config=None,
        ssl_certfile=certificates.cert,
        ssl_keyfile=certificates.key,
    )
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    try:
        yield server
    finally:
        server.should_exit = True
        await running


def test_a_handshake_has_no_longer_than_a_head(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it is done the connection is in no count."""
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.5)

    async def silent() -> bytes:
        async with _serving(certificates) as server:
            reader, writer = await asyncio.open_connection(*server.servers[0].sockets[0].getsockname())
            try:
                async with asyncio.timeout(20):
                    with contextlib.suppress(ConnectionError):
                        return await reader.read()
                return b""
            finally:
                writer.close()

    with asyncio.Runner(loop_factory=protocol.Loop) as runner:
        assert runner.run(silent()) == b""


def test_a_closed_connection_keeps_its_place_no_longer_than_its_farewell(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that never answers the end of TLS."""
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.5)

    def handshake(address: tuple[str, int]) -> ssl.SSLSocket:
        context = ssl.create_default_context(cafile=certificates.ca)
        return context.wrap_socket(socket.create_connection(address), server_hostname="127.0.0.1")

    async def left() -> int:
        async with _serving(certificates) as server:
            address = server.servers[0].sockets[0].getsockname()
            with contextlib.closing(await asyncio.to_thread(handshake, address)):
                assert len(server.server_state.connections) == 1
                await asyncio.sleep(0.5 + protocol.TLS_FAREWELL_SECONDS + 1)
                return len(server.server_state.connections)

    with asyncio.Runner(loop_factory=protocol.Loop) as runner:
        assert runner.run(left()) == 0
