"""HTTP/1.1 on the wire: bounded heads, deadlines, and refusals as problem documents.

uvicorn bounds neither the head nor the time that it takes to arrive, nor that of a body whose answer is
written already, nor how long an answer waits to be read; a client that sends one byte now and then, or reads
nothing, would hold its connection for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
from collections import deque
from collections.abc import Iterator
from typing import Any, Final

import httptools
import uvicorn
import uvloop
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from pipeline.ingest.body import WHOLE
from pipeline.ingest.problem import ProblemError, problem_response, request_id_of

MAX_HEAD_BYTES: Final = 16_384
MAX_HEADERS: Final = 100
HEAD_SECONDS: Final = 5.0
#: How long the other end of a TLS connection that we close may take to say that it heard so.
TLS_FAREWELL_SECONDS: Final = 2.0
#: Requests of one connection that wait for the answers before theirs.
MOST_WAITING: Final = 64
#: After a refusal behind other answers so much more is taken in and dropped, for so long: to close a
#: connection with bytes that nobody read resets it, and who still sends would lose the answers, too.
_DROPPED_BYTES: Final = 1_000_000
_LINGER_SECONDS: Final = 1.0
#: Of an answer that waits to be read so much must be taken in so long, or all that is left.
UNREAD_SECONDS: Final = 30.0
_UNREAD_BYTES: Final = 16_384
_OWN_DESCRIPTORS: Final = 200


class BoundedHttp(HttpToolsProtocol):
    """A connection whose heads (and trailers) are bounded in bytes, number and time.

    most_connections : open at once in this process; who comes above gets a 503. Those that say nothing
    leave their place after `HEAD_SECONDS`.
    """

    most_connections = 2_000

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.flow: _Flow
        self._awaiting_head = True
        self._idle_bytes = 0  # since the parser last finished a head, a piece of body or a message
        self._heard = False
        self._deadline: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._refusal: ProblemError | None = None
        self._last_word: ProblemError | None = None  # said when what came before it is answered
        self._dropped_bytes = 0  # since then
        self._passed_over: bytes | None = None  # a head that asked for an upgrade, without that

    # --- connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(transport, self.pipeline)
        transport.set_write_buffer_limits(high=1, low=0)  # `pause_writing` with whatever is not taken at once
        if len(self.connections) > self.most_connections:
            self._refuse(
                ProblemError(503, "too_many_connections", "too many connections are open; come again")
            )
            return
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._last_word is not None:
            self._dropped_bytes += len(data)
            if self._dropped_bytes > _DROPPED_BYTES:
                self.flow.pause_reading()
            return
        self._heard = True
        if self._awaiting_head and self._deadline is None:
            self._arm()
        self._idle_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response("")
        if self._idle_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(_too_large())

    def eof_received(self) -> None:
        """The other end sends no more, and may still read: of a body that is not all there it is told so. The
        transport closes itself afterwards."""
        cycle = self.cycle
        cut_off = cycle is not None and cycle.more_body and not cycle.response_started
        if cut_off and not self.transport.is_closing():
            self._refuse(ProblemError(400, "bad_request", "the body was cut off"))

    def _arm(self) -> None:
        self._deadline = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self._arm()  # an earlier request is still being answered
        elif self._heard:
            self._refuse(
                ProblemError(408, "head_too_slow", f"the head did not arrive within {HEAD_SECONDS:g} s")
            )
        else:
            self.transport.close()

    def _close_later(self, seconds: float) -> None:
        self._disarm()
        self._deadline = self.loop.call_later(seconds, self.transport.close)

    # --- answers

    def on_response_complete(self) -> None:
        last = not self.pipeline
        super().on_response_complete()
        if self._last_word is not None:
            if last and not self.transport.is_closing():
                self._say(self._last_word, linger=True)
        elif not self._awaiting_head and self.cycle.response_complete and not self.transport.is_closing():
            # the rest of the body: its first byte ends uvicorn's own deadline
            self._close_later(HEAD_SECONDS)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        super().resume_writing()

    def _watch_reader(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._unread = self.loop.call_later(UNREAD_SECONDS, self._look_at_reader, left)

    def _look_at_reader(self, before: int) -> None:
        if before - self.transport.get_write_buffer_size() < _UNREAD_BYTES:
            self.transport.abort()
        else:
            self._watch_reader()

    # --- parser

    def _parse(self, data: bytes) -> None:
        """Upgrades are passed over, as RFC 9110, 7.8 allows: such a request is answered over HTTP/1.1.

        The parser takes its body for another protocol and ends it with its head; one of ours that does so is
        a request of whoever wrote that body. So a new parser gets the head once more, without the upgrade,
        and then what came behind it. Raises httptools.HttpParserError.
        """
        rest: bytes | memoryview = data
        while rest:
            try:
                self.parser.feed_data(rest)
            except httptools.HttpParserUpgrade as upgrade:
                head, self._passed_over = self._passed_over, None
                if head is None:
                    raise httptools.HttpParserError("not an upgrade of a request") from None
                rest = memoryview(rest)[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                self.parser.feed_data(head)
            else:
                return

    def _should_upgrade(self) -> bool:
        return False

    def _head_without_upgrade(self) -> bytes:
        version = self.parser.get_http_version().encode()
        fields = [b"%b: %b\r\n" % field for field in self.headers if field[0] != b"upgrade"]
        return b"%b %b HTTP/%b\r\n%b\r\n" % (self.parser.get_method(), self.url, version, b"".join(fields))

    def on_headers_complete(self) -> None:
        self._disarm()
        self._awaiting_head, self._idle_bytes = False, 0
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > MAX_HEAD_BYTES or len(self.headers) > MAX_HEADERS:
            self._refusal = _too_large()
            raise self._refusal  # the parser stops; `send_400_response` answers
        if self.parser.get_http_version() not in {"1.0", "1.1"}:
            raise ProblemError(400, "bad_request", "")  # HTTP/0.9: the parser takes a lone GET line for it
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":  # what follows is for another host
                raise ProblemError(400, "bad_request", "")
            self._passed_over = self._head_without_upgrade()
            return
        if len(self.pipeline) >= MOST_WAITING:
            self._refusal = ProblemError(
                503, "too_many_waiting", f"{MOST_WAITING} requests of this connection wait for their answers"
            )
            raise self._refusal
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._idle_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._passed_over is not None:
            return  # only the head has come
        self._awaiting_head, self._idle_bytes = True, 0
        self.scope[WHOLE] = True  # type: ignore[typeddict-unknown-key]
        super().on_message_complete()
        if self.cycle is not None and self.cycle.response_complete and not self.transport.is_closing():
            self._close_later(HEAD_SECONDS)

    # --- refusals

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._refusal or ProblemError(400, "bad_request", "this is not an HTTP/1.1 request"))

    def _refuse(self, problem: ProblemError) -> None:
        """Say so and close; behind requests that came whole, once they are answered: a refusal in between
        would be taken for the answer of one whose events are stored."""
        if self._last_word is not None:
            return
        cycle = self.cycle
        behind = cycle is not None and not cycle.response_complete
        if behind and cycle.more_body:  # this request is the one that cannot be read on
            behind = bool(self.pipeline)
            if behind:
                self.pipeline.popleft()
        if not behind:
            self._say(problem)
            return
        self._last_word = problem
        self._disarm()
        self.flow.read_on()

    def _say(self, problem: ProblemError, *, linger: bool = False) -> None:
        answer = problem_response(problem, request_id_of(None))
        answer.headers["Connection"] = "close"
        head = [name + b": " + value + b"\r\n" for name, value in answer.raw_headers]
        self.transport.write(b"".join([STATUS_LINE[problem.status], *head, b"\r\n", bytes(answer.body)]))
        if linger and self.transport.can_write_eof():
            self.transport.write_eof()
            self.flow.read_on()
            self._close_later(_LINGER_SECONDS)
        else:
            self.transport.close()


class _Flow(FlowControl):
    """Reads nothing while requests wait for the answers before theirs: what one call reads becomes that many
    requests, and both the one that is answered and its answer's end would ask for more."""

    def __init__(self, transport: asyncio.Transport, waiting: deque[Any]) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        if self.read_paused and not self._waiting:
            super().resume_reading()

    def read_on(self) -> None:
        """For what is not looked at."""
        super().resume_reading()


class CutOff:
    """ASGI wrapper: what a stop cuts off is told so. The server cancels the requests that are not answered in
    time, and would answer 500 for them: their events may be in the log, or not."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except asyncio.CancelledError:
            if begun or scope["type"] != "http":
                raise
            problem = ProblemError(503, "stopping", "the process stops and did not wait; send again")
            given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
            await problem_response(problem, request_id_of(given))(scope, receive, send)


class Loop(uvloop.Loop):
    """Whoever opens a TLS connection has as long to finish its handshake as for a head. Until then it is no
    connection that the protocol could count or end; uvloop itself waits for a minute, and half of one for
    the farewell of a client, whose closed connection keeps its place until then."""

    async def create_server(self, *arguments: Any, **options: Any) -> asyncio.AbstractServer:  # type: ignore[override]
        if options.get("ssl") is not None:
            options["ssl_handshake_timeout"] = HEAD_SECONDS
            options["ssl_shutdown_timeout"] = TLS_FAREWELL_SECONDS
        return await super().create_server(*arguments, **options)


class SecondServer(uvicorn.Server):
    """A server beside others of its process, which take the signals for it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def raise_descriptors() -> None:
    """As many open files as this process may ask for: what starts it often sets fewer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # macOS has a limit of its own below the hard one
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def bounded_to(most_connections: int) -> type[BoundedHttp]:
    """The protocol with room for so many connections, and no more than descriptors allow: some stay for the
    log, the store and files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        most_connections = min(most_connections, max(soft - _OWN_DESCRIPTORS, 1))
    return type("Bounded", (BoundedHttp,), {"most_connections": most_connections})


def _too_large() -> ProblemError:
    return ProblemError(
        431, "head_too_large", f"the head may have {MAX_HEAD_BYTES} bytes and {MAX_HEADERS} fields"
    )
