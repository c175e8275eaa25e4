"""A request's body: read under a limit and a deadline, decompressed under a limit."""

from __future__ import annotations

import asyncio
import io
import zlib
from collections.abc import Callable
from typing import Any, Final

import zstandard
from starlette.types import Receive

from pipeline.ingest.problem import ProblemError

READ_SECONDS: Final = 30.0
#: In a request's scope where its body had come to its end: then `receive` waits for nothing.
WHOLE: Final = "gridpipe.whole"
#: Largest zstd window taken, as RFC 8878 advises receivers: a frame cannot ask for gigabytes.
_ZSTD_WINDOW_BYTES: Final = 8 * 1024 * 1024
#: Input of one step. Of zstd four bytes can stand for a block of 128 KiB, so a step makes 16 MiB at most;
#: of gzip a byte stands for a kilobyte: 1 MiB.
_ZSTD_STEP: Final = 512
_GZIP_STEP: Final = 1024
#: A body has 5,000 events; each part costs some microseconds however empty it is.
_MOST_PARTS: Final = 10_000
#: What a body may unpack to, in times its size, once that is more than it might have sent plain.
MOST_TIMES: Final = 50


def too_large(limit: int, what: str) -> ProblemError:
    return ProblemError(
        413, "body_too_large", f"the body is larger than {limit} bytes {what}; send less at once"
    )


def declared_length(given: bytes | None, limit: int) -> int:
    """Content-Length as it was sent, refused before reading if it is over `limit`; 0 where it is None."""
    if given is None:
        return 0
    if not given.isdigit():
        raise ProblemError(400, "bad_length", "Content-Length must be a whole number")
    if len(given) > 18 or int(given) > limit:
        raise too_large(limit, "as sent")
    return int(given)


async def read_body(
    receive: Receive, declared: int, limit: int, grow: Callable[[int], None], *, whole: bool = False
) -> bytes:
    """The body as sent. declared : its length as declared; `grow` is told the bytes that came beyond it.
    whole : all of it is here, see `WHOLE`.

    Raises ProblemError: 413 over `limit`, 408 after `READ_SECONDS`, 400 when the client went away.
    """
    if whole:  # a deadline that nothing waits for takes 5 µs, a twentieth of a request of one event
        return await _read_parts(receive, declared, limit, grow)
    try:
        async with asyncio.timeout(READ_SECONDS):
            return await _read_parts(receive, declared, limit, grow)
    except TimeoutError:
        raise ProblemError(
            408, "body_too_slow", f"the body did not arrive within {READ_SECONDS:.0f} s"
        ) from None


async def _read_parts(receive: Receive, declared: int, limit: int, grow: Callable[[int], None]) -> bytes:
    parts: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ProblemError(400, "client_gone", "the client closed the connection")
        part = message.get("body", b"")
        more = message.get("more_body", False)
        size += len(part)
        if size > limit:
            raise too_large(limit, "as sent")
        if size > declared:
            grow(size - max(declared, size - len(part)))
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def decompress(body: bytes, encoding: str, limit: int, *, free: int, grow: Callable[[int], None]) -> bytes:
    """The plain body, at most `limit` bytes and, above `free` bytes, `MOST_TIMES` as many as were sent.

    encoding : "" | identity | gzip | zstd. grow : told the bytes of each piece as it is made; it may refuse.
    Raises ProblemError: 415 other encodings, 413 over a limit, 400 damaged or in more than 10,000 parts.
    """
    if encoding in ("", "identity"):
        if len(body) > limit:
            raise too_large(limit, "decompressed")
        return body
    if encoding not in ("gzip", "zstd"):
        raise ProblemError(415, "unknown_encoding", "Content-Encoding must be gzip, zstd or absent")
    output = _Output(len(body), limit, free, grow)
    try:
        if encoding == "gzip":
            _unpack(body, lambda: zlib.decompressobj(wbits=31), _GZIP_STEP, output.add)
        else:
            frames = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
            _unpack(body, frames.decompressobj, _ZSTD_STEP, output.add)
    except (zlib.error, zstandard.ZstdError, EOFError) as error:
        raise ProblemError(400, "bad_compression", f"the body is not valid {encoding}") from error
    return output.plain.getvalue()


class _Output:
    """What a body of so many bytes unpacks to."""

    def __init__(self, packed: int, limit: int, free: int, grow: Callable[[int], None]) -> None:
        self.plain = io.BytesIO()  # gives what it holds without a copy
        self._limit = limit
        self._most = max(free, MOST_TIMES * packed)
        self._grow = grow

    def add(self, piece: bytes) -> None:
        if not piece:
            return
        size = self.plain.tell() + len(piece)
        if size > self._limit:
            raise too_large(self._limit, "decompressed")
        if size > self._most:
            raise ProblemError(
                413,
                "body_too_large",
                f"the body unpacks to more than {MOST_TIMES} times its size; send it plain, or less at once",
            )
        self._grow(len(piece))
        self.plain.write(piece)


def _unpack(body: bytes, new: Callable[[], Any], step: int, add: Callable[[bytes], None]) -> None:
    """All members of a gzip file, all frames of a zstd file, one after another.

    new : makes what unpacks one of them; what it leaves of the input it was given, the next one begins with.
    """
    part, parts, position = new(), 1, 0
    while position < len(body):
        add(part.decompress(body[position : position + step]))
        position = min(position + step, len(body))
        if part.eof:
            position -= len(part.unused_data)
            if position < len(body):
                parts += 1
                if parts > _MOST_PARTS:
                    raise ProblemError(
                        400, "bad_compression", f"the body is in more than {_MOST_PARTS} compressed parts"
                    )
                part = new()
    if body and not part.eof:
        raise EOFError
