"""A loopback server that speaks the part of ClickHouse's HTTP interface that clickhouse-connect uses,
on top of the embedded engine: one process owns the engine, the others are ordinary ClickHouse clients."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import re
import secrets
import socket
import threading
import uuid
import zlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from email import policy
from email.parser import BytesParser
from typing import Any, Final

import lz4.frame
import orjson
import structlog
import uvicorn
import uvloop
import zstandard
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from pipeline.contract.privacy import first_line
from pipeline.errors import UnavailableError
from pipeline.store.engine import EmbeddedEngine
from pipeline.store.session import Chunks, EngineError, Session, Statement, read_statement

log = structlog.get_logger(__name__)

HANDLES: Final = 8
#: How long a request waits for a free handle before it is told that the engine is busy.
HANDLE_WAIT_SECONDS: Final = 30.0
MAX_BODY_BYTES: Final = 1 << 30
SERVER_NAME: Final = "gridpipe"
#: Parameters that ClickHouse's HTTP handler consumes itself; the engine does not know them as settings.
_TRANSPORT_PARAMETERS: Final = frozenset({
    "query", "database", "user", "password", "buffer_size", "compress", "decompress", "session_id",
    "session_timeout", "session_check", "query_id", "quota_key", "wait_end_of_query", "default_format",
    "client_protocol_version", "role", "enable_http_compression", "send_progress_in_http_headers",
    "http_headers_progress_interval_ms", "cancel_http_readonly_queries_on_client_close",
})  # fmt: skip
#: HTTP status by ClickHouse error code, as its own HTTP handler answers; everything else is 500.
_STATUS: Final = {
    **dict.fromkeys((194,), 401),
    **dict.fromkeys((192, 193, 497, 516), 403),
    **dict.fromkeys((6, 26, 27, 34, 36, 38, 41, 42, 43, 44, 53, 62, 70, 72, 130), 400),
    **dict.fromkeys((349, 386, 427, 456, 457), 400),
    **dict.fromkeys((16, 46, 47, 50, 56, 60, 63, 81, 115), 404),
    **dict.fromkeys((159, 160), 408),
    **dict.fromkeys((48,), 501),
    **dict.fromkeys((202, 209), 503),
}  # fmt: skip
#: Formats whose blocks can be sent one after the other; others have a header or footer around the whole.
_STREAMED_FORMATS: Final = frozenset({"Native", "TabSeparated", "TSV", "CSV", "RowBinary", "JSONEachRow"})


class Bridge:
    """Serves `engine` on 127.0.0.1 in a thread of its own until `close`.

    engine : None serves `extra_routes` only.
    token : the password every request but `/ping` must carry (Basic, `X-ClickHouse-Key` or Bearer);
    None, only without an engine: anybody who reaches the listener.
    listener : a bound loopback socket; unset: a free port.
    extra_routes : further routes behind the same token, for what else the owning process answers.
    options : further ones of uvicorn's; without `http` heads have no bounds (statements stand in them).

    Source: design 6 (one process owns the engine, gateway and api are the same client in both shapes).
    """

    def __init__(
        self,
        engine: EmbeddedEngine | None,
        token: str | None,
        *,
        listener: socket.socket | None = None,
        extra_routes: Sequence[BaseRoute] = (),
        handles: int = HANDLES,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if engine is not None and token is None:
            raise ValueError("an engine is served behind a token only")
        self._engine = engine
        self._sessions: asyncio.Queue[Session] = asyncio.Queue()
        self._open: list[Session] = []
        self._ending: set[asyncio.Task[None]] = set()
        self._handles = handles
        self._socket = listener or _free_loopback_socket()
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        routes: list[BaseRoute] = [Route("/ping", self._ping, methods=["GET"]), *extra_routes]
        if engine is not None:
            routes.append(Route("/", self._answer, methods=["GET", "POST"]))
        app = Starlette(routes=routes)
        config = uvicorn.Config(
            app if token is None else _Guard(app, token),
            **{
                "http": "httptools",
                "ws": "none",
                "lifespan": "off",
                "log_config": None,
                "access_log": False,
                "timeout_keep_alive": 120,
                "timeout_graceful_shutdown": 5,
                **(options or {}),
            },
        )
        self._started = threading.Event()
        self._server = _Server(config, self._started)
        self._thread = threading.Thread(target=self._run, name="bridge", daemon=True)

    def start(self) -> Bridge:
        """Open the handles and listen. Raises UnavailableError when the server does not come up."""
        if self._engine is not None:
            self._open = [Session(self._engine.new_handle()) for _ in range(self._handles)]
            for session in self._open:
                self._sessions.put_nowait(session)
        self._thread.start()
        if not self._started.wait(10):
            raise UnavailableError(f"the store's address {self.url} does not answer")
        return self

    def close(self) -> None:
        """Stop listening, wait for running requests (at most 5 s), close the handles."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(10)
        for session in self._open:
            session.close()
        self._open = []
        self._socket.close()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        await self._server.serve(sockets=[self._socket])

    async def _ping(self, _: Request) -> Response:
        return PlainTextResponse("Ok.\n")

    async def _answer(self, request: Request) -> Response:
        try:
            statement = await _read_request(request)
            session = await self._lease()
        except ClientDisconnect:
            return Response(status_code=400)
        except EngineError as error:
            return _error_response(error)
        streamed = (
            statement.data is None
            and statement.format in _STREAMED_FORMATS
            and request.query_params.get("wait_end_of_query") != "1"
        )
        try:
            if streamed:
                return await self._stream(session, statement, _headers(request, statement.format))
            result = await asyncio.to_thread(session.run, statement)
        except EngineError as error:
            self._release(session)
            return _error_response(error)
        except BaseException:
            self._release(session)
            raise
        self._release(session)
        headers = _headers(request, result.format)
        headers["X-ClickHouse-Summary"] = orjson.dumps(result.summary).decode()
        return Response(result.body, headers=headers)

    async def _stream(self, session: Session, statement: Statement, headers: dict[str, str]) -> Response:
        """Blocks as the engine makes them; the session stays leased until the response is over."""
        blocks = _Blocks(await asyncio.to_thread(session.open_stream, statement))
        first = await blocks.next()  # an error before the first block still gets its status
        tag = secrets.token_hex(8)
        headers["X-ClickHouse-Exception-Tag"] = tag

        async def body() -> AsyncIterator[bytes]:
            chunk = first
            try:
                while chunk is not None:
                    yield chunk
                    chunk = await blocks.next()
            except EngineError as error:
                yield _tagged_exception(error, tag)

        def over() -> None:
            ending = asyncio.create_task(self._give_back(session, blocks))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

        return _Streamed(body(), headers, over)

    async def _give_back(self, session: Session, blocks: _Blocks) -> None:
        try:
            await blocks.close()
        except Exception as error:
            # a stream that may still be open would give the next reader nothing, and no error
            session.broken = True
            log.warning("stream_not_ended", error=first_line(error))
        finally:
            self._release(session)

    async def _lease(self) -> Session:
        try:
            async with asyncio.timeout(HANDLE_WAIT_SECONDS):
                session = await self._sessions.get()
        except TimeoutError:
            raise EngineError(
                202,
                "Code: 202. DB::Exception: Too many simultaneous queries. (TOO_MANY_SIMULTANEOUS_QUERIES)",
            ) from None
        if session.broken and self._engine is not None:
            try:
                fresh = Session(self._engine.new_handle())
            except Exception as error:
                self._sessions.put_nowait(session)  # the next one tries again
                raise EngineError.of(error) from error
            self._open[self._open.index(session)] = fresh
            with contextlib.suppress(Exception):
                session.close()
            session = fresh
        return session

    def _release(self, session: Session) -> None:
        self._sessions.put_nowait(session)


class _Blocks:
    """Blocks of a streaming result, made in threads one after the other."""

    def __init__(self, chunks: Chunks) -> None:
        self._chunks = chunks
        self._making: asyncio.Future[bytes | None] | None = None

    async def next(self) -> bytes | None:
        """None after the last one. Raises EngineError."""
        self._making = asyncio.ensure_future(asyncio.to_thread(next, self._chunks, None))
        return await asyncio.shield(self._making)

    async def close(self) -> None:
        """Once the block is made that nobody waits for any more."""
        if self._making is not None:
            await asyncio.wait([self._making])
        await asyncio.to_thread(self._chunks.close)


class _Streamed(StreamingResponse):
    """over : called at its end. Who hangs up cancels whatever it waits for, its `finally` too, or ends it
    before its body has begun: what must be waited for then needs a task of its own."""

    def __init__(
        self, body: AsyncIterator[bytes], headers: Mapping[str, str], over: Callable[[], None]
    ) -> None:
        super().__init__(body, headers=headers)
        self._over = over

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._over()


class _Server(uvicorn.Server):
    """Tells another thread when it listens."""

    def __init__(self, config: uvicorn.Config, listening: threading.Event) -> None:
        super().__init__(config)
        self._listening = listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._listening.set()


class _Guard:
    """Lets a request through with the token only; `/ping` needs none."""

    def __init__(self, app: Any, token: str) -> None:
        self._app = app
        self._token = token.encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] != "/ping":
            headers = dict(scope["headers"])
            if not hmac.compare_digest(_password(headers), self._token):
                name = "default: Authentication failed: password is incorrect"
                error = EngineError(516, f"Code: 516. DB::Exception: {name}. (AUTHENTICATION_FAILED)")
                await _error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _password(headers: dict[bytes, bytes]) -> bytes:
    if key := headers.get(b"x-clickhouse-key"):
        return key
    scheme, _, value = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer":
        return value.strip()
    if scheme.lower() == b"basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except ValueError:
            return b""
    return b""


async def _read_request(request: Request) -> Statement:
    """The statement of a request: SQL in the body, in `query` or in a form; an INSERT's data after it."""
    body = await _body(request)
    parameters = dict(request.query_params)
    content_type = request.headers.get("content-type", "")
    sql = parameters.get("query", "").encode()
    if content_type.startswith("multipart/form-data"):
        parameters |= _form_fields(content_type, body)
        sql, body = parameters.get("query", "").encode(), b""
    return read_statement(
        sql,
        body,
        database=parameters.get("database") or request.headers.get("x-clickhouse-database"),
        format_=parameters.get("default_format") or request.headers.get("x-clickhouse-format"),
        parameters={k.removeprefix("param_"): v for k, v in parameters.items() if k.startswith("param_")},
        settings={
            k: v
            for k, v in parameters.items()
            if k not in _TRANSPORT_PARAMETERS and not k.startswith("param_")
        },
    )


async def _body(request: Request) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise EngineError(
                307, f"Code: 307. DB::Exception: body over {MAX_BODY_BYTES} bytes. (TOO_MANY_BYTES)"
            )
        chunks.append(chunk)
    body = b"".join(chunks)
    encoding = request.headers.get("content-encoding", "identity")
    if encoding == "identity" or not body:
        return body
    try:
        return await asyncio.to_thread(_decompress, body, encoding)
    except (RuntimeError, ValueError, OSError, EOFError, zstandard.ZstdError) as error:
        raise EngineError(
            354, f"Code: 354. DB::Exception: cannot read {encoding} body: {error}. (ZLIB_INFLATE_FAILED)"
        ) from error


def _decompress(body: bytes, encoding: str) -> bytes:
    if encoding == "lz4":
        return _frames(lz4.frame.LZ4FrameDecompressor, body)
    if encoding == "zstd":
        return _frames(lambda: zstandard.ZstdDecompressor().decompressobj(), body)
    if encoding in {"gzip", "deflate"}:
        return _frames(lambda: zlib.decompressobj(wbits=47), body)
    raise EngineError(
        48, f"Code: 48. DB::Exception: Content-Encoding {encoding} is not known. (NOT_IMPLEMENTED)"
    )


def _frames(new: Callable[[], Any], body: bytes) -> bytes:
    """Clients compress each chunk of a body as a frame of its own."""
    out: list[bytes] = []
    while body:
        decompressor = new()
        out.append(decompressor.decompress(body))
        if not decompressor.eof:
            raise EOFError("the last frame is cut off")
        body = decompressor.unused_data or b""
    return b"".join(out)


def _form_fields(content_type: str, body: bytes) -> dict[str, str]:
    head = b"Content-Type: " + content_type.encode("latin-1") + b"\r\n\r\n"
    message = BytesParser(policy=policy.HTTP).parsebytes(head + body)
    fields: dict[str, str] = {}
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        if part.get_filename() or not isinstance(name, str):
            raise EngineError(
                48, "Code: 48. DB::Exception: external tables are not supported. (NOT_IMPLEMENTED)"
            )
        payload = part.get_payload(decode=True)
        fields[name] = payload.decode() if isinstance(payload, bytes) else ""
    return fields


def _headers(request: Request, format_: str | None) -> dict[str, str]:
    headers = {
        "X-ClickHouse-Server-Display-Name": SERVER_NAME,
        "X-ClickHouse-Query-Id": request.query_params.get("query_id") or str(uuid.uuid4()),
        "X-ClickHouse-Timezone": "UTC",
        "Content-Type": "application/octet-stream",
    }
    if format_ is not None:
        headers["X-ClickHouse-Format"] = format_
    return headers


def _error_response(error: EngineError) -> Response:
    return PlainTextResponse(
        error.message + "\n",
        status_code=_STATUS.get(error.code, 500),
        headers={
            "X-ClickHouse-Exception-Code": str(error.code),
            "X-ClickHouse-Server-Display-Name": SERVER_NAME,
        },
    )


def _tagged_exception(error: EngineError, tag: str) -> bytes:
    """What ClickHouse appends when a query fails after its first blocks were sent."""
    message = re.sub(rb"[\r\n]+", b" ", error.message.encode()) + b"\n"
    marker = b"__exception__\r\n"
    tagged = tag.encode()
    return b"\r\n" + marker + tagged + b"\r\n" + message + b"%d " % len(message) + tagged + b"\r\n" + marker


def _free_loopback_socket() -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    listener.listen(256)
    return listener
