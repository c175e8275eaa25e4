"""The sending side: batches, patience, line numbers, resuming; against the real gateway in memory."""

from __future__ import annotations

import asyncio
import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import msgspec
import orjson
import pytest
import typer
import uvicorn
import zstandard
from starlette.applications import Starlette
from typer.testing import CliRunner

from pipeline.cli import send
from pipeline.cli.send import SendState, Source
from pipeline.clock import utc_now
from pipeline.errors import ConfigurationError, UnavailableError
from pipeline.ingest.client import EventClient, Line, batches
from pipeline.ingest.routes import gateway_routes
from pipeline.runtime.health import Health
from tests.unit.gateway_world import World, event, make_world
from tests.unit.test_gateway_http import Decides


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path / "var")


class Bridge(httpx.BaseTransport):
    """Requests of a synchronous client into the gateway; `before` may answer in its stead."""

    def __init__(self, world: World, before: Callable[[int], httpx.Response | None] = lambda _: None) -> None:
        self._world = world
        self._before = before
        self.requests = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        answer = self._before(self.requests)
        if answer is not None:
            return answer

        async def call() -> httpx.Response:
            async with self._world.client() as client:
                return await client.request(
                    request.method, str(request.url.path), content=request.read(), headers=request.headers
                )

        found = asyncio.run(call())
        return httpx.Response(found.status_code, headers=found.headers, content=found.content)


def lines(count: int, **spoilt: dict[str, Any]) -> list[Line]:
    made = [event(number, **spoilt.get(f"at_{number}", {})) for number in range(count)]
    return [Line(number + 1, orjson.dumps(given)) for number, given in enumerate(made)]


def client(world: World, transport: httpx.BaseTransport, waits: list[float], **more: Any) -> EventClient:
    return EventClient("http://gateway", world.key, transport=transport, sleep=waits.append, **more)


def test_batches_skip_blank_lines_and_stay_small() -> None:
    made = [Line(number, b"x" * 10 if number % 3 else b" ") for number in range(1, 31)]
    found = list(batches(made, 4, max_bytes=35))
    assert [line.number for batch in found for line in batch] == [n for n in range(1, 31) if n % 3]
    assert max(map(len, found)) == 3


def test_refused_events_carry_their_line(world: World) -> None:
    with client(world, Bridge(world), []) as sender:
        answer = sender.send(lines(10, at_4={"grid_code": "x"}, at_7={"source": "other"}))
    assert answer.accepted == 8
    assert sorted((number, error["code"]) for number, error in answer.refused) == [
        (5, "bad_pattern"),
        (8, "source_not_allowed"),
    ]


def test_all_refused_is_an_answer_not_a_failure(world: World) -> None:
    with client(world, Bridge(world), []) as sender:
        answer = sender.send(lines(1, at_0={"grid_code": "x"}))
    assert (answer.accepted, len(answer.refused)) == (0, 1)


def test_retry_after_is_honoured_and_nothing_is_lost(world: World) -> None:
    waits: list[float] = []

    def busy(number: int) -> httpx.Response | None:
        if number <= 2:
            status = 429 if number == 1 else 503
            return httpx.Response(status, headers={"Retry-After": "7"}, json={"message": "busy"})
        return None

    with client(world, Bridge(world, busy), waits) as sender:
        assert sender.send(lines(20)).accepted == 20
    assert len(waits) == 2
    assert min(waits) >= 7
    assert world.stored().height == 20


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"Retry-After": "300"}, 300),
        ({"Retry-After": "Sun, 29 Nov 2026 08:05:00 GMT", "Date": "Sun, 29 Nov 2026 08:00:00 GMT"}, 300),
        ({"Retry-After": "Sun, 29 Nov 2026 07:00:00 GMT", "Date": "Sun, 29 Nov 2026 08:00:00 GMT"}, 0),
        ({"Retry-After": "soon"}, 0),
    ],
)
def test_a_long_wait_is_kept_told_and_uses_up_no_patience(
    world: World, headers: dict[str, str], wait: int
) -> None:
    waits: list[float] = []
    told: list[tuple[str, float, bool]] = []

    def busy(number: int) -> httpx.Response | None:
        return httpx.Response(429, headers=headers, json={"message": "too many"}) if number == 1 else None

    heard = client(world, Bridge(world, busy), waits, on_wait=lambda *how: told.append(how))
    with heard as sender:
        assert sender.send(lines(3)).accepted == 3
    assert waits == [wait] if wait else waits[0] < 1
    assert told == [("too many", waits[0], bool(wait))]


def test_patience_counts_what_nobody_asked_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    def asks(number: int) -> httpx.Response | None:
        if number <= 20:
            return httpx.Response(429, headers={"Retry-After": "300"}, json={"message": "too many"})
        return None if number > 1_000 else httpx.Response(503, json={"message": "away"})

    monkeypatch.setattr("time.monotonic", lambda: now)
    patient = EventClient("http://gateway", world.key, transport=Bridge(world, asks), sleep=sleep)
    with patient as sender, pytest.raises(UnavailableError, match="503: away"):
        sender.send(lines(1))
    assert 20 * 300 + 60 <= now < 20 * 300 + 60 + 30


def test_nobody_is_waited_for_longer_than_a_day(world: World) -> None:
    def never(_: int) -> httpx.Response | None:
        return httpx.Response(503, headers={"Retry-After": "99999999999999"}, json={"message": "closed"})

    waits: list[float] = []
    with (
        client(world, Bridge(world, never), waits) as sender,
        pytest.raises(UnavailableError, match="closed"),
    ):
        sender.send(lines(1))
    assert waits == []


def test_only_unwritten_events_are_sent_again(world: World) -> None:
    world.log.refused = set(range(6))

    def repair(number: int) -> None:
        if number == 2:
            world.log.refused = set()

    waits: list[float] = []
    with client(world, Bridge(world, repair), waits) as sender:
        assert sender.send(lines(40)).accepted == 40
    assert sorted(world.stored()["event_id"]) == sorted(f"e-{number}" for number in range(40))
    assert len(waits) == 1


def test_batch_that_is_too_large_is_halved(tmp_path: Path) -> None:
    world = make_world(tmp_path, max_events_per_request=6)
    transport = Bridge(world)
    with client(world, transport, []) as sender:
        assert sender.send(lines(20)).accepted == 20
    assert transport.requests == 7


def test_patience_ends(world: World) -> None:
    def refused(_: int) -> httpx.Response | None:
        raise httpx.ConnectError("refused")

    absent = client(world, Bridge(world, refused), [], patience_seconds=0)
    with absent, pytest.raises(UnavailableError, match="does not answer"):
        absent.send(lines(1))
    world.log.down = True
    broken = client(world, Bridge(world), [], patience_seconds=0)
    with broken, pytest.raises(UnavailableError, match="503"):
        broken.send(lines(1))


def test_wrong_key_is_a_configuration_error(world: World) -> None:
    denied = Bridge(world, lambda _: httpx.Response(401, json={"message": "a valid key is needed"}))
    with client(world, denied, []) as sender, pytest.raises(ConfigurationError, match="401"):
        sender.send(lines(1))


@pytest.mark.parametrize(
    ("suffix", "pack"), [("", bytes), (".gz", gzip.compress), (".zst", zstandard.compress)]
)
def test_files_are_read_plain_and_compressed(
    tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"events.ndjson{suffix}"
    path.write_bytes(pack(b"one\r\n\ntwo\nthree"))
    source = Source(path)
    assert [(line.number, line.text) for line in source.lines()] == [
        (1, b"one"), (2, b""), (3, b"two"), (4, b"three")
    ]  # fmt: skip
    assert [line.number for line in source.lines(skip=2)] == [3, 4]


def test_damaged_file_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "events.ndjson.gz"
    path.write_bytes(gzip.compress(b"one\ntwo\n" * 1000)[:-20])
    with pytest.raises(ConfigurationError, match="cannot be read to the end"):
        list(Source(path).lines())


# --- the commands


def told(result: Any) -> Any:
    """The JSON that a command printed; the gateway of these tests logs into the same stream."""
    printed = result.stdout.splitlines()
    return orjson.loads("\n".join(printed[printed.index("{") :]))


def _run(world: World, *arguments: str) -> Any:
    app = typer.Typer()
    send.register(app)
    place = str(world.gateway.settings.data_dir)
    return CliRunner().invoke(app, [*arguments, "--key", world.key, "--data-dir", place])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "events.ndjson"
    made = lines(25, at_10={"grid_code": "x"})
    path.write_bytes(b"\n".join(line.text for line in made) + b"\n")
    return path


@pytest.fixture
def wired(world: World, monkeypatch: pytest.MonkeyPatch) -> Bridge:
    """The commands' client talks to `world`."""
    bridge = Bridge(world)
    made = EventClient

    def connect(url: str, key: str, **more: Any) -> EventClient:
        return made(
            url, key, transport=bridge, sleep=lambda _: None, patience_seconds=0, on_wait=more.get("on_wait")
        )

    monkeypatch.setattr("pipeline.ingest.client.EventClient", connect)
    monkeypatch.setattr(send, "_answers", lambda *_: True)  # it asks a listener, which `world` is not
    return bridge


def test_send_reports_and_leaves_no_state_behind(world: World, file: Path, wired: Bridge) -> None:
    result = _run(world, "send", str(file), "--batch-size", "10", "--json")
    report = told(result)
    assert result.exit_code == 1
    assert (report["sent"], report["accepted"], report["rejected"]) == (25, 24, 1)
    assert [(error["line"], error["code"]) for error in report["errors"]] == [(11, "bad_pattern")]
    assert [path.name for path in file.parent.iterdir() if path.is_file()] == ["events.ndjson"]
    assert wired.requests == 3


def test_interrupted_send_goes_on_where_it_stopped(world: World, file: Path, wired: Bridge) -> None:
    def dies(number: int) -> httpx.Response | None:
        if number > 2:
            raise httpx.ConnectError("gone")
        return None

    wired._before = dies
    result = _run(world, "send", str(file), "--batch-size", "10")
    assert isinstance(result.exception, UnavailableError)
    assert "line 20" in str(result.exception)
    wired._before = lambda _: None
    report = orjson.loads(_run(world, "send", str(file), "--batch-size", "10", "--json").stdout)
    assert (report["resumed_after_line"], report["accepted"], report["rejected"]) == (20, 24, 1)
    assert sorted(world.stored()["event_id"]) == sorted(f"e-{n}" for n in range(25) if n != 10)


ABOUT_THE_REQUEST = [
    (
        httpx.Response(403, json={"code": "not_an_ingest_key", "message": "this key may not send events"}),
        "may not",
    ),
    (httpx.Response(403), "403"),
    (httpx.Response(301, headers={"Location": "https://gateway/v1/events"}), "301"),
    (httpx.Response(200, text="<html>welcome</html>"), "200"),
    (httpx.Response(200, json={"errors": "none"}), "200"),
    (httpx.Response(400, json={"code": "bad_length", "message": "Content-Length"}), "Content-Length"),
]


@pytest.mark.parametrize(("answered", "why"), ABOUT_THE_REQUEST)
def test_an_answer_about_the_request_refuses_no_event_and_the_file_is_gone_on_with(
    world: World, file: Path, wired: Bridge, answered: httpx.Response, why: str
) -> None:
    wired._before = lambda number: answered if number > 1 else None
    result = _run(world, "send", str(file), "--batch-size", "10")
    assert isinstance(result.exception, ConfigurationError), result.output
    assert why in str(result.exception)
    assert "line 10" in str(result.exception)
    wired._before = lambda _: None
    report = told(_run(world, "send", str(file), "--batch-size", "10", "--json"))
    assert (report["resumed_after_line"], report["accepted"], report["rejected"]) == (10, 24, 1)


def test_events_of_a_source_that_the_key_does_not_cover_are_refused_one_by_one(
    world: World, tmp_path: Path, wired: Bridge
) -> None:
    path = tmp_path / "others.ndjson"
    path.write_bytes(b"\n".join(orjson.dumps(event(n, source="other")) for n in range(3)))
    result = _run(world, "send", str(path), "--json")
    assert result.exit_code == 1
    report = told(result)
    assert [(error["line"], error["code"]) for error in report["errors"]] == [
        (number, "source_not_allowed") for number in (1, 2, 3)
    ]
    assert wired.requests == 1


@contextmanager
def served(world: World) -> Iterator[str]:
    """The gateway on a listener: its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    app = Starlette(routes=[*Health({}).routes(), *gateway_routes(world.gateway)])
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listener.close()


@pytest.mark.parametrize("command", ["send", "validate"])
def test_an_event_that_is_too_large_is_refused_alone(tmp_path: Path, file: Path, command: str) -> None:
    world = make_world(tmp_path / "small", validator=Decides(), max_decompressed_bytes=1_000)
    large = orjson.dumps(event(99, description="x" * 1_000))
    file.write_bytes(large + b"\n" + file.read_bytes())
    with served(world) as url:
        result = _run(world, command, str(file), "--url", url, "--json")
    assert result.exit_code == 1, result.output
    report = told(result)
    assert [(error["line"], error["code"]) for error in report["errors"]] == [
        (1, "body_too_large"), (12, "bad_pattern")
    ]  # fmt: skip
    if command == "validate":
        assert (report["reference_rules"], report["outcomes"]) == ("judged", {"admitted": 24})
        assert [found["line"] for found in report["decisions"]] == [n for n in range(2, 27) if n != 12]
        assert all(found["event_id"] == f"e-{found['line'] - 2}" for found in report["decisions"])


def test_a_service_that_cannot_judge_now_is_not_said_to_be_away(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.ingest.client.EventClient", partial(EventClient, patience_seconds=0))
    validator = Decides()
    validator.down = True
    world = make_world(tmp_path / "down", validator=validator)
    with served(world) as url:
        result = _run(world, "validate", str(file), "--url", url, "--json")
    assert isinstance(result.exception, UnavailableError)
    assert "503" in str(result.exception)
    assert "outcomes" not in result.stdout


def test_progress_that_cannot_be_kept_is_said_after_the_batch(
    world: World, file: Path, wired: Bridge
) -> None:
    file.with_name("events.ndjson.sent.tmp").symlink_to("/dev/full")
    result = _run(world, "send", str(file), "--batch-size", "10")
    assert isinstance(result.exception, ConfigurationError), result.output
    assert "events.ndjson.sent: No space left on device" in str(result.exception)
    assert "line 10" in str(result.exception)
    assert wired.requests == 1


@pytest.mark.parametrize("url", ["not a url", "ftp://127.0.0.1", "http://[::1"])
def test_an_address_that_is_none_is_not_an_absent_service(world: World, file: Path, url: str) -> None:
    result = _run(world, "validate", str(file), "--url", url)
    assert isinstance(result.exception, ConfigurationError), result.output
    assert url in str(result.exception)


def test_without_a_key_nothing_is_left_behind(world: World, tmp_path: Path, file: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    app = typer.Typer()
    send.register(app)
    with served(world) as url:
        words = ["send", str(file), "--data-dir", str(tmp_path / "none"), "--url", url]
        result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, ConfigurationError), result.output
    assert "no key" in str(result.exception)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("key", [(), ("--key", "gp_0123456789ab_secret")], ids=["no key", "a key"])
def test_a_service_that_is_not_there_is_said_at_once_whether_there_is_a_key(
    tmp_path: Path, file: Path, key: tuple[str, ...]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    app = typer.Typer()
    send.register(app)
    words = ["send", str(file), "--data-dir", str(tmp_path / "none"), "--url", "http://127.0.0.1:9", *key]
    began = time.monotonic()
    result = CliRunner().invoke(app, words)
    assert time.monotonic() - began < 30  # not the minute for which one that restarts is waited for
    assert isinstance(result.exception, UnavailableError), result.output  # exit 3
    assert "http://127.0.0.1:9" in str(result.exception)
    assert sorted(tmp_path.rglob("*")) == before


def test_changed_file_begins_anew(world: World, file: Path, wired: Bridge) -> None:
    state = SendState(Source(file).fingerprint(), "http://127.0.0.1:8080", lines_done=20, accepted=20)
    file.with_name("events.ndjson.sent").write_bytes(msgspec.json.encode(state))
    file.write_bytes(file.read_bytes() + lines(26)[25].text + b"\n")
    report = told(_run(world, "send", str(file), "--json"))
    assert (report["resumed_after_line"], report["accepted"]) == (0, 25)


def test_validate_without_a_service_checks_contract_and_catalogue(world: World, tmp_path: Path) -> None:
    path = tmp_path / "check.ndjson"
    now = {"occurred_at": utc_now().isoformat()}
    made = lines(3, at_0=now, at_1={"grid_code": "x"}, at_2={"matter_code": "ZZ-99", **now})
    path.write_bytes(b"\n".join(line.text for line in made))
    result = _run(world, "validate", str(path), "--url", "http://127.0.0.1:9", "--json")
    report = told(result)
    assert result.exit_code == 1
    assert report["reference_rules"] == "unknown"
    assert [(error["line"], error["code"]) for error in report["errors"]] == [(2, "bad_pattern")]
    by_line = {decision["line"]: decision for decision in report["decisions"]}
    assert by_line[3]["reasons"] == ["UNKNOWN_MATTER"]
    assert {rule["result"] for rule in by_line[1]["rules"] if rule["number"] == 8} == {"unknown"}
