"""Nothing leaves the machine (reliability f.12): while `gridpipe up` starts, takes events, answers reads and
the page, loses its store by a crash, and stops, no process of it sends a packet off loopback, or asks
for a name.

The service runs on a machine of its own (`alone.py`), started by this file as a program, which also sends on
purpose, before and after: what tells of these packets would tell of others.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest

from pipeline.errors import UnavailableError
from pipeline.settings import Settings
from pipeline.store.client import connect_server
from tests.e2e.service import Service
from tests.security.alone import NOT_ALLOWED, RESOLVER, Wire

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

#: Exit code of the program where the machine does not allow it; the reason is what it printed.
NOT_HERE: Final = 77
SOMEBODY: Final = "203.0.113.9"
SOMEBODY_V6: Final = "2001:db8:1::9"
#: As on machines whose programs report to a collector, and reach the world through a proxy only.
COLLECTOR: Final = {
    "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{SOMEBODY}:4318",
    "OTEL_METRIC_EXPORT_INTERVAL": "1000",
    "SENTRY_DSN": f"http://key@{SOMEBODY}:9000/1",
}
PROXY: Final = {f"{scheme}_proxy": f"http://{SOMEBODY}:3128" for scheme in ("http", "https", "all")}
PAGES: Final = ("/", "/docs", "/openapi.json", "/metrics", "/health/live", "/health/ready")
READS: Final = (
    "/v1/kpi?by=city",
    "/v1/matters",
    "/v1/rejections",
    "/v1/events/local/alone-1",
    "/v1/cases/alone-1",
    "/v1/live/tables/district",
    "/v1/live/matters",
    "/v1/live/search?q=alone-1",
)


def _found(data_dir: Path, *what: str) -> dict[str, Any]:
    """What `main` printed; skips where it may not have a machine of its own."""
    if sys.platform != "linux":
        pytest.skip("needs a network namespace (Linux)")
    program = subprocess.Popen(
        [sys.executable, "-m", "tests.security.test_nothing_leaves", str(data_dir), *what],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = program.communicate(timeout=280)
    finally:
        with suppress(ProcessLookupError):  # the service too, whatever ended the program
            os.killpg(program.pid, signal.SIGKILL)
        program.communicate()
    if program.returncode == NOT_HERE:
        pytest.skip(f"needs a network namespace with an interface (root, or user namespaces): {out}")
    assert program.returncode == 0, err + out
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.mark.parametrize("what", ["used", pytest.param("crashed", marks=pytest.mark.slow)])
def test_no_packet_and_no_question_for_a_name_leaves_the_machine(tmp_path: Path, what: str) -> None:
    found = _found(tmp_path / "data", what)
    expected = [
        (f"udp {SOMEBODY} 9 ", "on-purpose"),
        (f"tcp {SOMEBODY} 443 ", ""),
        (f"udp {RESOLVER} 53 ", "on-purpose.example"),
        (f"udp {RESOLVER} 53 ", found["host"]),
    ]
    if found["ipv6"]:
        expected.append((f"udp {SOMEBODY_V6} 9 ", "on-purpose"))
    for told in (found["before"], found["after"]):
        missed = [
            (start, text)
            for start, text in expected
            if not any(line.startswith(start) and text in line for line in told)
        ]
        assert not missed, told
    assert found["roles"] == ["city", "http", "store", "tansu"]
    assert found["outcome"] == "admitted"
    assert found["files"] > 3
    assert found["stopped"] == 0
    assert found["sent"] == []


def test_a_server_that_is_spoken_to_in_plain_text_is_not_reached_through_a_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy of the environment would read the password and every event."""
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        settings = Settings(
            data_dir=tmp_path, clickhouse=f"http://gridpipe@127.0.0.1:{port}", insert_timeout_seconds=1
        )
        with pytest.raises(UnavailableError):
            connect_server(settings, None)
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody called
            proxy.accept()


def _on_purpose(wire: Wire) -> list[str]:
    """What is told of a datagram, a connection, a question for a name and one for the machine's own."""
    for family, address in ((socket.AF_INET, SOMEBODY), (socket.AF_INET6, SOMEBODY_V6))[: 1 + wire.ipv6]:
        with socket.socket(family, socket.SOCK_DGRAM) as post:
            post.sendto(b"on-purpose", (address, 9))
    with socket.socket() as call:
        call.setblocking(False)
        call.connect_ex((SOMEBODY, 443))
    for name in ("on-purpose.example", socket.gethostname()):
        with suppress(socket.gaierror):
            socket.getaddrinfo(name, None)
    return wire.sent()


def _report(number: int) -> dict[str, Any]:
    """A citizen's report that the simulated city's reference data admit."""
    return {
        "event_id": f"alone-{number}",
        "source": "local",
        "event_type": "REPORTED",
        "case_id": f"alone-{number}",
        "occurred_at": datetime.now(UTC).isoformat(),
        "channel": "hotline_12345",
        "matter_code": "UE-08",
        "grid_code": "440704001001001",
        "actor": {"type": "citizen", "phone": "13800001234"},
        "location": {"lon": 113.104808, "lat": 22.503802, "crs": "wgs84"},
        "description": "路灯不亮，见 http://on-purpose.example/1.jpg",
    }


def _use(service: Service, crash: bool) -> dict[str, Any]:
    """A short life of the service, to its end. crash : of its store, by a signal of the processor's."""
    roles = sorted(service.children())
    service.send(_report(1))
    outcome = service.get("/v1/events/local/alone-1")["outcome"]
    client = service.client
    client.post("/v1/events:validate", json=[_report(2)]).raise_for_status()
    files = re.findall(r'(?:href|src)="(/page/[^"]+)"', client.get("/").text)
    for path in (*PAGES, *READS, *files):
        client.get(path).raise_for_status()
    with client.stream("GET", "/v1/live") as stream:
        assert "event: figures" in stream.iter_lines()
    if crash:  # engines like to report theirs
        store = service.children()["store"]
        store.send_signal(signal.SIGSEGV)
        store.wait(30)
        service.send(_report(3), seconds=150)
    return {"roles": roles, "outcome": outcome, "files": len(files), "stopped": service.stop()}


def main() -> None:
    """Arguments: data directory, `used` or `crashed`. Prints a line of JSON."""
    try:
        wire = Wire()
    except OSError as error:
        if error.errno not in NOT_ALLOWED:
            raise
        print(error)
        sys.exit(NOT_HERE)
    found: dict[str, Any] = {"ipv6": wire.ipv6, "host": socket.gethostname(), "before": _on_purpose(wire)}
    data_dir = Path(sys.argv[1])
    os.environ |= COLLECTOR | PROXY | {name.upper(): value for name, value in PROXY.items()}
    os.environ.pop("no_proxy", None)
    os.environ.pop("NO_PROXY", None)
    # Some programs look for more of it where they are started.
    os.chdir(data_dir.parent)
    Path(".env").write_text("".join(f"{name}={value}\n" for name, value in COLLECTOR.items()))
    service = Service(data_dir, "--http", "127.0.0.1:0")
    try:
        found |= _use(service, sys.argv[2] == "crashed")
    finally:
        service.kill()
    found["sent"] = wire.sent()
    print(json.dumps(found | {"after": _on_purpose(wire)}))


if __name__ == "__main__":
    main()
