"""One chDB handle as a ClickHouse session: a statement in, bytes out, settings and database tracked."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

_FORMAT_AT_END: Final = re.compile(rb"\bFORMAT\s+(\w+)\s*;?\s*\Z", re.IGNORECASE)
#: An INSERT whose data follow: the statement, its format, and one separator before the first byte of data.
_INSERT: Final = re.compile(rb"\s*INSERT\s+INTO\s", re.IGNORECASE)
_INSERT_DATA: Final = re.compile(
    rb"\s*(INSERT\s+INTO\s.*?)\s+FORMAT\s+(?!VALUES\b)(\w+)[ \t]*(?:\r?\n|\Z)", re.IGNORECASE | re.DOTALL
)
#: An INSERT statement ends within this many bytes of a body; the rest is data.
_HEAD_BYTES: Final = 262_144
_CODE: Final = re.compile(r"Code: (\d+)\.")
_SETTING: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
#: ClickHouse's code for an error without one.
_UNKNOWN_EXCEPTION: Final = 1002


class EngineError(Exception):
    """An error as ClickHouse words it. code : its number; message : `Code: N. DB::Exception: …`."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    @classmethod
    def of(cls, error: BaseException) -> EngineError:
        text = str(error)
        start = text.find("Code: ")
        message = text[start:].strip() if start >= 0 else text.strip()
        found = _CODE.match(message)
        if found is None:
            message = f"Code: {_UNKNOWN_EXCEPTION}. DB::Exception: {message}. (UNKNOWN_EXCEPTION)"
        return cls(int(found.group(1)) if found else _UNKNOWN_EXCEPTION, message)


@dataclass(frozen=True)
class Statement:
    """sql : without an INSERT's FORMAT clause when `data` is set; format : of the result or of `data`."""

    sql: bytes
    format: str | None = None
    data: bytes | memoryview | None = None
    database: str | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """format : None when the statement has no result set."""

    body: bytes
    format: str | None
    summary: dict[str, str]


def read_statement(
    sql: bytes,
    body: bytes,
    *,
    database: str | None,
    format_: str | None,
    parameters: Mapping[str, str],
    settings: Mapping[str, str],
) -> Statement:
    """Tell SQL from data. `sql` is the URL's query, `body` what follows it (ClickHouse joins the two)."""
    head = (sql + b"\n" + body[:_HEAD_BYTES]) if sql else body[:_HEAD_BYTES]
    if _INSERT.match(head):
        found = _INSERT_DATA.match(head)
        if found is not None:
            start = found.end() - (len(sql) + 1 if sql else 0)
            data = memoryview(body)[max(start, 0) :]
            return Statement(found.group(1), found.group(2).decode(), data, database, parameters, settings)
    text = sql + b"\n" + body if sql and body else sql or body
    at_end = _FORMAT_AT_END.search(text[-256:])
    return Statement(
        text, at_end.group(1).decode() if at_end else format_, None, database, parameters, settings
    )


class Session:
    """A chDB handle with the database and settings of its last statement, so that only changes are sent.

    Not thread-safe: one statement or stream at a time.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._database: str | None = None
        self._settings: dict[str, str] = {}
        #: The handle's state is unknown: it must be replaced.
        self.broken = False

    def run(self, statement: Statement) -> Result:
        """Execute and return everything. Raises EngineError."""
        self._prepare(statement)
        if statement.data is not None:
            return self._insert(statement, statement.data)
        if _FORMAT_AT_END.search(statement.sql[-256:]) or statement.format:
            result = self._query(statement.sql, statement.format or "TabSeparated", statement.parameters)
            return Result(result.bytes() or b"", statement.format, _summary(result))
        # A statement with a result set prints at least the names; one without prints nothing.
        result = self._query(statement.sql, "TabSeparatedWithNames", statement.parameters)
        body: bytes = result.bytes() or b""
        if not body:
            return Result(b"", None, _summary(result))
        return Result(body[body.find(b"\n") + 1 :], "TabSeparated", _summary(result))

    def open_stream(self, statement: Statement) -> Chunks:
        """Blocks of the result, encoded. The session must not be used until the iterator is closed."""
        self._prepare(statement)
        try:
            stream = self._handle.send_query(
                statement.sql.decode(), statement.format or "Native", params=dict(statement.parameters)
            )
        except Exception as error:
            raise EngineError.of(error) from error
        return Chunks(stream)

    def close(self) -> None:
        self._handle.close()

    def _insert(self, statement: Statement, data: bytes | memoryview) -> Result:
        """The data are a file in memory to the engine: its `send_insert` calls an insert done that it refused
        at the end (full disk, too many parts, constraint), and data within the statement end at some byte."""
        file = os.memfd_create("insert", os.MFD_CLOEXEC)
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(file, left) :]
            source = f" FROM INFILE '/proc/self/fd/{file}' COMPRESSION 'none'".encode()
            into, settings, values = statement.sql.partition(b" SETTINGS ")
            form = f" FORMAT {statement.format}".encode()
            done = self._query(into + source + settings + values + form)
        finally:
            os.close(file)
        summary = _summary(done)
        written = {
            "written_rows": summary["read_rows"],
            "written_bytes": summary["read_bytes"],
            "elapsed_ns": summary["elapsed_ns"],
        }
        return Result(b"", None, written)

    def _prepare(self, statement: Statement) -> None:
        if statement.database and statement.database != self._database:
            quoted = statement.database.replace("\\", "\\\\").replace("`", "\\`")
            self._query(f"USE `{quoted}`")
            self._database = statement.database
        wanted = dict(statement.settings)
        changes = [f"{_name(k)} = DEFAULT" for k in self._settings if k not in wanted]
        changes += [f"{_name(k)} = {_literal(v)}" for k, v in wanted.items() if self._settings.get(k) != v]
        if changes:
            try:
                self._query("SET " + ", ".join(changes))
            except EngineError:
                self.broken = True  # some of them may have been applied
                raise
            self._settings = wanted

    def _query(
        self, sql: str | bytes, format_: str = "TabSeparated", parameters: Mapping[str, str] | None = None
    ) -> Any:
        try:
            return self._handle.query(sql, format_, params=dict(parameters or {}))
        except Exception as error:
            raise EngineError.of(error) from error


class Chunks:
    """Encoded blocks of a streaming result; errors become EngineError."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Chunks:
        return self

    def __next__(self) -> bytes:
        while True:
            try:
                chunk = next(self._stream)
            except StopIteration:
                raise
            except Exception as error:
                raise EngineError.of(error) from error
            payload: bytes = chunk.bytes()
            if payload:
                return payload

    def close(self) -> None:
        self._stream.close()


def _summary(result: Any) -> dict[str, str]:
    return {
        "read_rows": str(result.rows_read()),
        "read_bytes": str(result.bytes_read()),
        "elapsed_ns": str(int(result.elapsed() * 1e9)),
    }


def _name(setting: str) -> str:
    if not _SETTING.match(setting):
        raise EngineError(115, f"Code: 115. DB::Exception: Unknown setting {setting!r}. (UNKNOWN_SETTING)")
    return setting


def _literal(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
