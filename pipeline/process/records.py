"""A record of the topic as the stages see it, free of the client library's types."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

ARROW: Final = "application/vnd.apache.arrow.stream"
#: JSON of one event, of an array, or one event per line: all are read the same way.
JSON_TYPES: Final = frozenset({"application/json", "application/x-ndjson", "application/ndjson"})
SCHEMA_VERSION: Final = "1"
#: Positions are packed as offset * 2**20 + index; a record of a megabyte holds far fewer events.
MAX_EVENTS_PER_RECORD: Final = 1 << 20

#: Of a buffered record beside its value.
_OBJECT_BYTES: Final = 360
_CONTENT_TYPE: Final = "content-type"
_SCHEMA_VERSION: Final = "schema-version"
_VIA: Final = "via"
#: What the gateway writes into the header `via` of its records.
GATEWAY: Final = "gateway"


class Record(NamedTuple):
    """One record: where it lies, when the broker or producer stamped it, and its bytes.

    content_type and schema_version are None when the header is absent, "" when it is not readable text.
    """

    offset: int
    timestamp_ms: int
    content_type: str | None
    value: bytes | None
    schema_version: str | None = None
    direct: bool = False  # did not come from the gateway

    @classmethod
    def of(
        cls,
        offset: int,
        timestamp_ms: int,
        value: bytes | None,
        headers: Iterable[tuple[str, bytes | None]] = (),
    ) -> Record:
        """A record from Kafka's headers; names are compared without case, parameters are cut off."""
        found = {name.lower(): _header_text(raw) for name, raw in headers}
        content_type = found.get(_CONTENT_TYPE)
        if content_type is not None:
            content_type = content_type.partition(";")[0].strip().lower()
        direct = found.get(_VIA) != GATEWAY
        return cls(offset, timestamp_ms, content_type, value, found.get(_SCHEMA_VERSION), direct)

    @property
    def is_arrow(self) -> bool:
        return self.content_type == ARROW

    @property
    def size(self) -> int:
        """Bytes that the record holds in memory, roughly; its objects are measured, not guessed."""
        return len(self.value or b"") + _OBJECT_BYTES


def _header_text(raw: bytes | None) -> str:
    try:
        return (raw or b"").decode("ascii")
    except UnicodeDecodeError:
        return ""
