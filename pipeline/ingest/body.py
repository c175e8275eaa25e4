"""A request's body: read under a limit and a deadline, decompressed under a limit."""

from __future__ import annotations

import asyncio
import io
import zlib
from collections.abc import Callable
from typing import Final

import zstandard
from starlette.types import Receive

from pipeline.ingest.problem import ProblemError

READ_SECONDS: Final = 30.0
#: Largest zstd window taken, as RFC 8878 advises receivers: a frame cannot ask for gigabytes.
_ZSTD_WINDOW_BYTES: Final = 8 * 1024 * 1024
_STEP: Final = 256 * 1024
#: Input of one step: four bytes can stand for a block of 128 KiB, so a step makes 16 MiB at most.
_ZSTD_STEP: Final = 512


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


async def read_body(receive: Receive, declared: int, limit: int, grow: Callable[[int], None]) -> bytes:
    """The body as sent. declared : its length as declared; `grow` is told the bytes that came beyond it.

    Raises ProblemError: 413 over `limit`, 408 after `READ_SECONDS`, 400 when the client went away.
    """
    parts: list[bytes] = []
    size = 0
    more = True
    try:
        async with asyncio.timeout(READ_SECONDS):
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
    except TimeoutError:
        raise ProblemError(
            408, "body_too_slow", f"the body did not arrive within {READ_SECONDS:.0f} s"
        ) from None
    return parts[0] if len(parts) == 1 else b"".join(parts)


def decompress(body: bytes, encoding: str, limit: int) -> bytes:
    """The plain body, at most `limit` bytes: output is counted as it is made.

    encoding : "" | identity | gzip | zstd. Raises ProblemError: 415 other encodings, 413 over `limit`, 400
    damaged.
    """
    if encoding in ("", "identity"):
        if len(body) > limit:
            raise too_large(limit, "decompressed")
        return body
    if encoding not in ("gzip", "zstd"):
        raise ProblemError(415, "unknown_encoding", "Content-Encoding must be gzip, zstd or absent")
    try:
        return _gunzip(body, limit) if encoding == "gzip" else _unzstd(body, limit)
    except (zlib.error, zstandard.ZstdError, EOFError) as error:
        raise ProblemError(400, "bad_compression", f"the body is not valid {encoding}") from error


def _gunzip(body: bytes, limit: int) -> bytes:
    """All members of a gzip file, one after another."""
    output = io.BytesIO()  # gives what it holds without a copy
    rest = body
    while rest:
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            output.write(member.decompress(rest, min(_STEP, limit + 1 - output.tell())))
            if output.tell() > limit:
                raise too_large(limit, "decompressed")
            if not member.eof and not member.unconsumed_tail:
                output.write(member.flush() if output.tell() < limit else b"")
                if not member.eof:
                    raise EOFError
            rest = member.unconsumed_tail
        rest = member.unused_data
    return output.getvalue()


def _unzstd(body: bytes, limit: int) -> bytes:
    """All frames of a zstd file, one after another."""
    output = io.BytesIO()
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
    frame = decompressor.decompressobj()
    position = 0
    while position < len(body):
        output.write(frame.decompress(body[position : position + _ZSTD_STEP]))
        if output.tell() > limit:
            raise too_large(limit, "decompressed")
        position = min(position + _ZSTD_STEP, len(body))
        if frame.eof:
            position -= len(frame.unused_data)
            if position < len(body):
                frame = decompressor.decompressobj()
    if body and not frame.eof:
        raise EOFError
    return output.getvalue()
