"""The benchmarks' load client against a small server: what it sends, how it paces, what it counts."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

from benchmarks.http_client import read_bodies, run, write_bodies
from benchmarks.load_bodies import MARK


async def _serve(
    bodies: list[bytes], seconds: float, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"Content-Length: (\d+)", head)
            assert length is not None
            bodies.append(await reader.readexactly(int(length[1])))
            await asyncio.sleep(seconds)
            answer = b'{"accepted":2,"rejected":1}'
            writer.write(b"HTTP/1.1 202 Accepted\r\ncontent-length: %d\r\n\r\n%s" % (len(answer), answer))
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


def send(
    tmp_path: Path, bodies: list[bytes], answer_after: float = 0.0, **more: Any
) -> tuple[dict[str, Any], list[bytes]]:
    file = tmp_path / "bodies"
    write_bodies(file, bodies)
    assert read_bodies(file) == bodies
    came: list[bytes] = []

    async def both() -> dict[str, Any]:
        server = await asyncio.start_server(lambda r, w: _serve(came, answer_after, r, w), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        task = {"address": f"127.0.0.1:{port}", "key": "k", "bodies": str(file), "headers": {}, "events": 3}
        async with server:
            return await run(task | {"connections": 2} | more)

    return asyncio.run(both()), came


def test_every_answer_is_counted(tmp_path: Path) -> None:
    found, came = send(tmp_path, [b"one", b"two"], requests=10)
    assert len(came) == found["requests"] == 10
    assert (found["accepted"], found["rejected"], found["unanswered"]) == (20, 10, 0)
    assert found["statuses"] == {"202": 10}
    assert set(came) == {b"one", b"two"}


def test_every_pass_has_marks_of_its_own(tmp_path: Path) -> None:
    _, came = send(tmp_path, [b'{"event_id":"' + MARK + b'1"}'], requests=3, first_pass=7)
    assert sorted(came) == [b'{"event_id":"pass0000%d.1"}' % number for number in (7, 8, 9)]


def test_open_loop_keeps_its_pace_and_sends_nothing_behind_the_end(tmp_path: Path) -> None:
    # 3 events a request at 60 a second: one request every 50 ms, for half a second
    found, came = send(tmp_path, [b"x"], rate=60.0, seconds=0.5)
    assert 8 <= len(came) <= 11
    assert found["unanswered"] == 0


def test_a_load_without_a_free_connection_says_how_far_it_is_behind(tmp_path: Path) -> None:
    # one request every 20 ms is due, and each of two connections gets its answer after 200
    found, _ = send(tmp_path, [b"x"], answer_after=0.2, rate=150.0, seconds=1.0)
    assert found["late_seconds"] > 0.2
    assert send(tmp_path, [b"x"], requests=4)[0]["late_seconds"] == 0
