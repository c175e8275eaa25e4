"""A TCP proxy between two parts of the system that cuts, holds, delays or answers in place of the far end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_CHUNK = 65_536


class Proxy:
    """Forwards 127.0.0.1:`port` to `host`:`target` in a thread of its own.

    The attributes may be changed at any time:

    up : False refuses connections and breaks those that are open.
    hold : True forwards nothing, in either direction, and closes nothing (a half-open connection).
    delay_reply : seconds that every chunk of a reply waits.
    bytes_per_second : of each direction and connection; None: no limit.
    """

    def __init__(self, target: int, host: str = "127.0.0.1") -> None:
        self.target = target
        self.host = host
        self.hold = False
        self.delay_reply = 0.0
        self.bytes_per_second: float | None = None
        self.connections = 0
        self._up = True
        self._drop_reply_to: bytes | None = None
        self._answer: tuple[bytes, bytes] | None = None
        self._within: tuple[bytes, float, Callable[[], object]] | None = None
        self._unanswered: set[asyncio.StreamWriter] = set()
        self._late: tuple[bytes, Callable[[], float]] | None = None
        #: Requests that wait, and clients whose late request the far end has and has not answered.
        self.waiting = 0
        self._owed: set[asyncio.StreamWriter] = set()
        self.late = 0
        #: Connections whose reply was dropped.
        self.dropped = 0
        self.answered = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._server = self._call(asyncio.start_server(self._serve, sock=self._socket))

    def close(self) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    @property
    def up(self) -> bool:
        return self._up

    @up.setter
    def up(self, value: bool) -> None:
        self._up = value
        if not value:
            self.cut()

    def cut(self) -> None:
        """Break every open connection with a reset."""
        self._call(self._cut())

    def drop_reply_to(self, request: bytes) -> None:
        """Break the next connection whose request holds `request`, at the first reply after it."""
        self._drop_reply_to = request

    def within(self, request: bytes, seconds: float, do: Callable[[], object]) -> None:
        """Call `do`, once, while the far end has a request that holds `request` and has not answered it:
        so many `seconds` after its first byte went there, of the first one that takes that long."""
        self._within = (request, seconds, do)

    @property
    def waits(self) -> bool:
        """Whether what `within` asked for is still to come."""
        return self._within is not None

    def delay(self, request: bytes, seconds: Callable[[], float] | None) -> None:
        """Requests that hold `request` reach the far end so many seconds later, also where who sent them
        is gone by then; None: those that come from now on reach it at once."""
        self._late = None if seconds is None else (request, seconds)

    def answer(self, request: bytes, reply: bytes | None) -> None:
        """Answer requests that hold `request` with `reply`, unforwarded; None: forward again."""
        self._answer = None if reply is None else (request, reply)

    # --- on the loop

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _close(self) -> None:
        self._server.close()
        await self._cut()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _cut(self) -> None:
        for writer in list(self._writers):
            _reset(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if not self._up:
            _reset(writer)
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(self.host, self.target)
        except OSError:
            _reset(writer)
            return
        self._writers |= {writer, far_writer}
        dropping = asyncio.Event()
        try:
            await asyncio.gather(
                self._pump(
                    reader,
                    far_writer,
                    lambda chunk: self._request(chunk, writer, dropping),
                    lambda: writer in self._owed and not (far_reader.at_eof() or far_reader.exception()),
                ),
                self._pump(far_reader, writer, lambda _: self._reply(writer, dropping)),
            )
        finally:
            self._writers -= {writer, far_writer}
            self._unanswered.discard(writer)
            self._owed.discard(writer)
            for one in (writer, far_writer):
                with contextlib.suppress(OSError):
                    one.close()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        look: Callable[[bytes], Coroutine[Any, Any, bool]],
        open_still: Callable[[], bool] = lambda: False,
    ) -> None:
        """open_still : the far end is not told of the end yet: it drops a request whose sender is gone."""
        with contextlib.suppress(OSError):
            while chunk := await reader.read(_CHUNK):
                while self.hold:  # noqa: ASYNC110  set from another thread
                    await asyncio.sleep(0.02)
                if self.bytes_per_second:
                    await asyncio.sleep(len(chunk) / self.bytes_per_second)
                if await look(chunk):
                    writer.write(chunk)
                    await writer.drain()
            while open_still():  # noqa: ASYNC110  few requests, and no reply may come
                await asyncio.sleep(0.02)
            writer.write_eof()

    async def _request(self, chunk: bytes, writer: asyncio.StreamWriter, dropping: asyncio.Event) -> bool:
        if self._drop_reply_to is not None and self._drop_reply_to in chunk:
            self._drop_reply_to = None
            dropping.set()
        if self._answer is not None and self._answer[0] in chunk:
            self.answered += 1
            writer.write(self._answer[1])
            await writer.drain()
            writer.close()
            return False
        if self._within is not None and self._within[0] in chunk:
            self._unanswered.add(writer)
            self._loop.call_later(self._within[1], self._act_within, writer)
        if self._late is not None and self._late[0] in chunk:
            self._owed.add(writer)
            self.waiting += 1
            try:
                await asyncio.sleep(self._late[1]())
            finally:
                self.waiting -= 1
            self.late += 1
        return True

    def _act_within(self, writer: asyncio.StreamWriter) -> None:
        if self._within is not None and writer in self._unanswered:
            _, _, do = self._within
            self._within = None
            do()

    async def _reply(self, writer: asyncio.StreamWriter, dropping: asyncio.Event) -> bool:
        self._unanswered.discard(writer)
        self._owed.discard(writer)
        if dropping.is_set():
            # once per connection: what was asked on it before has a reply, too, and a long one comes in parts
            if not writer.transport.is_closing():
                self.dropped += 1
                _reset(writer)
            return False
        if self.delay_reply:
            await asyncio.sleep(self.delay_reply)
        return True


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    writer.transport.abort()
