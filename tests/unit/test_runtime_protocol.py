"""The wire: heads and trailers are bounded in bytes, number and time; refusals are problem documents."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import resource
import socket
import time
from collections.abc import AsyncIterator

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from pipeline.ingest.body import WHOLE
from pipeline.runtime import protocol
from pipeline.runtime.protocol import (
    _OWN_DESCRIPTORS,
    MAX_HEAD_BYTES,
    MOST_WAITING,
    BoundedHttp,
    CutOff,
    bounded_to,
)

pytestmark = pytest.mark.timeout(30)
LARGE = 8_000_000


async def _echo(request: Request) -> Response:
    body = await request.body()
    if body == b"slow":
        await asyncio.sleep(0.5)
    return PlainTextResponse(f"read {len(body)}")


async def _early(_request: Request) -> Response:
    return PlainTextResponse("refused", 401)


async def _large(_request: Request) -> Response:
    return PlainTextResponse(b"a" * LARGE)


@pytest.fixture
async def port() -> AsyncIterator[int]:
    app = Starlette(
        routes=[Route("/", _echo, methods=["GET", "POST"]), Route("/early", _early, methods=["POST"]),
                Route("/large", _large)]
    )  # fmt: skip
    async for port in _serving(app):
        yield port


async def _serving(app: Starlette) -> AsyncIterator[int]:
    server = uvicorn.Server(
        uvicorn.Config(app, http=BoundedHttp, host="127.0.0.1", port=0, lifespan="off", log_config=None)
    )
    running = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await running


async def ask(port: int, *parts: bytes, pause: float = 0.0) -> bytes:
    """What comes back until the server closes; the parts are sent one after another."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause)
        return await asyncio.wait_for(reader.read(), 10)
    except ConnectionError:
        return b""
    finally:
        writer.close()


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def statuses_of(answers: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answers)]


GET = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (GET + b"X-A: " + b"a" * MAX_HEAD_BYTES + b"\r\n\r\n", 431, "head_too_large"),
        (GET + b"".join(b"X-%d: v\r\n" % number for number in range(500)) + b"\r\n", 431, "head_too_large"),
        (b"GET /" + b"a" * MAX_HEAD_BYTES + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431, "head_too_large"),
        (POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "bad_request"),
        (POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n", 400, "bad_request"),
        (POST + b"Content-Length: -1\r\n\r\n", 400, "bad_request"),
        (b"GET /\r\n\r\n", 400, "bad_request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "bad_request"),
    ],
)
async def test_a_bad_head_is_a_problem_document_and_the_end(
    port: int, request_bytes: bytes, status: int, code: str
) -> None:
    answer = await ask(port, request_bytes)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert status_of(answer) == status
    assert b"application/problem+json" in head
    assert json.loads(body)["code"] == code


async def test_an_endless_head_is_cut_off(port: int) -> None:
    answer = await ask(port, GET, *[b"X-A: " + b"a" * 4_000] * 5, pause=0.01)
    assert status_of(answer) == 431


async def test_endless_trailers_are_cut_off(port: int) -> None:
    start = POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n"
    answer = await ask(port, start, *[b"X-T: " + b"t" * 4_000] * 6, pause=0.01)
    assert status_of(answer) == 431


SLOW = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nslow"


@pytest.mark.parametrize(
    ("behind", "status"),
    [
        (b'{"rest": "of a body whose length was counted in characters"}\n', 400),
        (GET + b"X-A: " + b"a" * 20_000 + b"\r\n\r\n", 431),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    ],
)
@pytest.mark.parametrize("pause", [0.0, 0.1])
async def test_a_refusal_is_never_the_answer_to_the_request_before_it(
    port: int, behind: bytes, status: int, pause: float
) -> None:
    answer = await ask(port, SLOW, behind, pause=pause)
    assert statuses_of(answer) == [200, status]
    assert b"read 4" in answer


async def test_what_is_refused_behind_several_requests_is_answered_after_all_of_them(port: int) -> None:
    answer = await ask(port, SLOW * 3, b"nonsense\r\n\r\n", b"more of it", pause=0.05)
    assert statuses_of(answer) == [200, 200, 200, 400]


async def test_a_body_that_breaks_off_is_refused_at_once(port: int) -> None:
    answer = await ask(port, POST + b"Transfer-Encoding: chunked\r\n\r\n4\r\nslow\r\nzz\r\n")
    assert statuses_of(answer) == [400]


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n", [400]),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{}", [400]),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n", [400]),
        (b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{}", [401]),  # answered already
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}", [200]),
        (b"", []),
    ],
)
async def test_who_shuts_its_half_in_the_middle_of_a_body_is_told_so(
    port: int, sent: bytes, statuses: list[int]
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    await asyncio.sleep(0.1)
    writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    await writer.wait_closed()
    assert statuses_of(answer) == statuses
    if statuses == [400]:
        assert json.loads(answer.rpartition(b"\r\n\r\n")[2])["code"] == "bad_request"


async def test_a_slow_head_is_408_and_a_silent_connection_is_closed(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.2)
    assert status_of(await ask(port, b"GET / HT")) == 408
    assert await ask(port) == b""


async def test_a_slow_answer_and_a_large_body_are_not_cut_off(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.2)
    slow = await ask(port, POST + b"Content-Length: 4\r\n\r\nslow\r\n")
    assert slow.endswith(b"read 4")
    pieces = [b"a" * 50_000] * 20
    large = await ask(port, POST + b"Content-Length: 1000000\r\n\r\n", *pieces, pause=0.02)
    assert large.endswith(b"read 1000000")
    chunked = b"".join(b"1\r\na\r\n" for _ in range(10_000)) + b"0\r\n\r\n"
    assert (await ask(port, POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunked)).endswith(b"read 10000")


@pytest.mark.parametrize("rest", [[b"a"], [b"aa"], [b"aa", b"POST /"], [b"a"] * 2, [b""]])
async def test_an_answer_before_the_end_of_the_body_is_no_place_to_stay(
    port: int, monkeypatch: pytest.MonkeyPatch, rest: list[bytes]
) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.3)
    head = b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n"
    assert status_of(await ask(port, head, *rest, pause=0.1)) == 401


async def test_a_connection_goes_on_after_an_early_answer(port: int) -> None:
    early = b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n"
    answer = await ask(port, early, b"aa" + early, b"a", b"a" + early + b"aa", GET + b"\r\n", pause=0.05)
    assert answer.count(b"401 Unauthorized") == 3
    assert answer.count(b"200 OK") == 1


H2C = b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEA\r\nUpgrade: h2c\r\n"
SMUGGLED = b"POST /smuggled HTTP/1.1\r\nContent-Length: 0\r\n\r\n"
UPGRADES: dict[str, tuple[bytes, list[bytes]]] = {
    "a body that reads like a request": (
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % len(SMUGGLED) + H2C + b"\r\n" + SMUGGLED,
        [b"/ 46"],
    ),
    "requests behind it": (
        (
            b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: foo\r\n\r\n"
            b"GET /b HTTP/1.1\r\nHost: x\r\n\r\nGET /c HTTP/1.1\r\nHost: x\r\n\r\n"
        ),
        [b"/a 0", b"/b 0", b"/c 0"],
    ),
    "a chunked body": (
        b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n" + H2C + b"\r\n"
        b"3\r\nabc\r\n%x\r\n" % len(SMUGGLED) + SMUGGLED + b"\r\n0\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n",
        [b"/a 49", b"/b 0"],
    ),
    "trailers": (
        b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n" + H2C + b"\r\n"
        b"GET /b HTTP/1.1\r\nHost: x\r\n\r\n",
        [b"/a 3", b"/b 0"],
    ),
    "a websocket, and one after another": (
        b"POST /a HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        b"Content-Length: 2\r\n\r\nabGET /b HTTP/1.1\r\nHost: x\r\n" + H2C + b"\r\n"
        b"GET /c HTTP/1.1\r\nHost: x\r\n" + H2C + b"\r\n",
        [b"/a 2", b"/b 0", b"/c 0"],
    ),
    "Java's client": (
        (
            b"POST /a HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nContent-Length: 4\r\nHost: x\r\n"
            b"HTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAABgAGAAA\r\nUpgrade: h2c\r\n"
            b"User-Agent: Java-http-client/17.0.9\r\n\r\nslow"
            b"GET /b HTTP/1.1\r\nHost: x\r\n\r\n"
        ),
        [b"/a 4", b"/b 0"],
    ),
}


async def _whole(request: Request) -> Response:
    begun = WHOLE in request.scope
    body = await request.body()
    return PlainTextResponse(f"<{begun} {WHOLE in request.scope} {len(body)}>")


async def test_a_request_knows_whether_its_body_was_there_when_it_began() -> None:
    head = POST.replace(b"Connection: close\r\n", b"") + b"Content-Length: 4\r\n\r\n"
    last = POST + b"Content-Length: 0\r\n\r\n"
    async for port in _serving(Starlette(routes=[Route("/", _whole, methods=["POST"])])):
        assert _told_of(await ask(port, head + b"full" + last)) == [b"True True 4", b"True True 0"]
        # the mark of a request is not that of the one behind it
        for first in (head, head + b"fu", head + b"full" + head):
            sent = head + b"full" + head + b"full" + last
            answers = _told_of(await ask(port, sent[: len(first)], sent[len(first) :], pause=0.05))
            assert answers.count(b"False True 4") == 1, first
            assert answers[-1] == b"True True 0"


async def _told(request: Request) -> Response:
    body = await request.body()
    return PlainTextResponse(f"<{request.url.path} {len(body)}>")


@pytest.fixture
async def telling() -> AsyncIterator[int]:
    async for port in _serving(Starlette(routes=[Route("/{rest:path}", _told, methods=["GET", "POST"])])):
        yield port


def _told_of(answers: bytes) -> list[bytes]:
    return re.findall(rb"<([^>]*)>", answers)


@pytest.mark.parametrize("name", UPGRADES)
async def test_an_upgrade_that_is_not_offered_is_passed_over_and_nothing_of_the_request_is_lost(
    telling: int, name: str
) -> None:
    sent, expected = UPGRADES[name]
    sent += b"GET /end HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    whole = await ask(telling, sent)
    assert _told_of(whole) == [*expected, b"/end 0"]
    assert statuses_of(whole) == [200] * (len(expected) + 1)

    limit = asyncio.Semaphore(50)

    async def cut(at: int) -> bytes:
        async with limit:
            return await ask(telling, sent[:at], sent[at:], pause=0.01)

    for answers in await asyncio.gather(*map(cut, range(1, len(sent)))):
        assert _told_of(answers) == [*expected, b"/end 0"]
    byte_by_byte = await ask(telling, *(sent[at : at + 1] for at in range(len(sent))), pause=0.001)
    assert _told_of(byte_by_byte) == [*expected, b"/end 0"]


async def test_an_upgrade_loosens_no_bound(telling: int) -> None:
    large = await ask(telling, b"GET / HTTP/1.1\r\nHost: x\r\n" + H2C + b"X: " + b"a" * 17_000 + b"\r\n\r\n")
    assert statuses_of(large) == [431]
    many = b"".join(b"X-%d: v\r\n" % number for number in range(99))
    assert statuses_of(await ask(telling, b"GET / HTTP/1.1\r\nHost: x\r\n" + H2C + many + b"\r\n")) == [431]
    both = b"POST / HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n" + H2C + b"\r\n"
    assert statuses_of(await ask(telling, both)) == [400]
    old = await ask(telling, b"POST / HTTP/1.0\r\nContent-Length: 2\r\n" + H2C + b"\r\nab")
    assert _told_of(old) == [b"/ 2"]


async def test_a_tunnel_is_refused_behind_earlier_answers_and_nothing_in_it_is_taken(telling: int) -> None:
    ahead = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
    tunnel = b"CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n" + SMUGGLED
    for parts in ([ahead + tunnel], [ahead, tunnel], [ahead + tunnel[:40], tunnel[40:]]):
        answers = await ask(telling, *parts, pause=0.05)
        assert statuses_of(answers) == [200, 400]
        assert _told_of(answers) == [b"/a 0"]


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[BoundedHttp]:
    """Every connection that is made."""
    made: list[BoundedHttp] = []
    plain = BoundedHttp.connection_made

    def noted(self: BoundedHttp, transport: asyncio.Transport) -> None:
        made.append(self)
        plain(self, transport)

    monkeypatch.setattr(BoundedHttp, "connection_made", noted)
    return made


async def _most(connections: list[BoundedHttp], asked: asyncio.Task[bytes]) -> tuple[int, int]:
    """The most requests that waited, and the most bytes of their bodies, until `asked` is done."""
    requests = held = 0
    while not asked.done():
        for connection in connections:
            cycles = [cycle for cycle, _ in connection.pipeline]
            requests = max(requests, len(cycles))
            held = max(held, sum(len(cycle.body) for cycle in cycles))
        await asyncio.sleep(0.001)
    return requests, held


async def test_of_pipelined_requests_only_so_many_wait_and_the_rest_is_refused_behind_them(
    telling: int, connections: list[BoundedHttp]
) -> None:
    asked = asyncio.create_task(ask(telling, b"GET / HTTP/1.1\r\n\r\n" * 14_000))
    requests, _ = await _most(connections, asked)
    answers = await asked
    assert requests <= MOST_WAITING
    assert statuses_of(answers) == [200] * (MOST_WAITING + 1) + [503]
    assert b"too_many_waiting" in answers
    assert b"retry-after: 1" in answers.lower()


async def test_a_client_with_so_many_requests_under_way_is_answered_in_order(telling: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", telling)
    for number in range(MOST_WAITING):
        writer.write(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number)
    answers = b""
    for number in range(MOST_WAITING, 5 * MOST_WAITING):  # one more for each that is answered
        while answers.count(b">") <= number - MOST_WAITING:
            answers += await asyncio.wait_for(reader.read(65_536), 5)
        writer.write(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number)
    writer.write_eof()
    while answers.count(b">") < 5 * MOST_WAITING:
        answers += await asyncio.wait_for(reader.read(65_536), 5)
    writer.close()
    assert _told_of(answers) == [b"/%d 0" % number for number in range(5 * MOST_WAITING)]


async def test_nothing_more_is_read_while_requests_wait(port: int, connections: list[BoundedHttp]) -> None:
    post = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n" + b"a" * 200_000
    asked = asyncio.create_task(ask(port, SLOW * 4 + post * 30 + GET + b"\r\n"))
    _, held = await _most(connections, asked)
    assert statuses_of(await asked) == [200] * 35
    assert held < 300_000  # what one call reads


async def unread(port: int, head: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection with little room for answers."""
    own = socket.socket()
    own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
    own.setblocking(False)
    await asyncio.get_running_loop().sock_connect(own, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=own, limit=4_096)
    writer.write(head)
    return reader, writer


@pytest.mark.parametrize("close", [b"", b"Connection: close\r\n"])
async def test_an_answer_that_nobody_reads_is_given_up(
    port: int, monkeypatch: pytest.MonkeyPatch, close: bytes
) -> None:
    monkeypatch.setattr(protocol, "UNREAD_SECONDS", 0.3)
    reader, writer = await unread(port, b"GET /large HTTP/1.1\r\nHost: x\r\n" + close + b"\r\n")
    await asyncio.sleep(1)
    read = 0
    with contextlib.suppress(ConnectionError):
        while part := await asyncio.wait_for(reader.read(65_536), 1):
            read += len(part)
    assert read < LARGE
    writer.close()


async def test_a_slow_reader_gets_all(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "UNREAD_SECONDS", 1.5)
    reader, writer = await unread(port, b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    read, started = 0, time.monotonic()
    while part := await reader.read(65_536):
        read += len(part)
        await asyncio.sleep(len(part) / LARGE * 4)
    assert read > LARGE
    assert time.monotonic() - started > 3
    writer.close()


async def test_requests_one_after_another_on_one_connection(port: int) -> None:
    keep = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab"
    answer = await ask(port, keep * 3 + GET + b"\r\n")
    assert answer.count(b"200 OK") == 4


async def test_connections_above_the_cap_are_sent_away_and_room_is_made_again(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BoundedHttp, "most_connections", 3)
    silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
    await asyncio.sleep(0.1)
    answer = await ask(port, GET + b"\r\n")
    assert status_of(answer) == 503
    assert b"too_many_connections" in answer
    assert b"retry-after: 1" in answer.lower()
    silent[0][1].close()
    await asyncio.sleep(0.1)
    assert status_of(await ask(port, GET + b"\r\n")) == 200
    for _, writer in silent:
        writer.close()


def test_the_cap_leaves_descriptors_for_everything_else() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert bounded_to(10).most_connections == 10
    resource.setrlimit(resource.RLIMIT_NOFILE, (700, hard))
    try:
        assert bounded_to(2_000).most_connections == 700 - _OWN_DESCRIPTORS
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_as_many_descriptors_are_asked_for_as_there_may_be() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (700, hard))
    try:
        protocol.raise_descriptors()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
        protocol.raise_descriptors()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_what_a_stop_cuts_off_is_told_to_come_again() -> None:
    async def never(_request: Request) -> Response:
        await asyncio.sleep(60)
        return PlainTextResponse("too late")

    app = CutOff(Starlette(routes=[Route("/", never, methods=["POST"])]))
    server = uvicorn.Server(
        uvicorn.Config(
            app, http=BoundedHttp, host="127.0.0.1", port=0, log_config=None, timeout_graceful_shutdown=1
        )
    )
    running = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    asked = asyncio.create_task(
        ask(server.servers[0].sockets[0].getsockname()[1], POST + b"X-Request-Id: of-a-stop\r\n\r\n")
    )
    await asyncio.sleep(0.2)
    server.should_exit = True
    head, _, body = (await asked).partition(b"\r\n\r\n")
    assert status_of(head) == 503
    assert b"retry-after: 1" in head.lower()
    told = json.loads(body)
    assert (told["code"], told["request_id"]) == ("stopping", "of-a-stop")
    await running
