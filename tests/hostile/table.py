"""The hostile inputs 1–62, in one table. Rows share a number where one input has several forms.

Only a row that waits for a deadline stands last, so that the deadline runs while the others do.
"""

from __future__ import annotations

import gzip
import zlib
from typing import Any, Final

import orjson
import zstandard

from tests.hostile import beyond, callers, events, files, flood
from tests.hostile.rows import JSON, NDJSON, Bad, Batch, Record, Records, Row, Scenario, Whole, Wire
from tests.hostile.world import OTHER, World

_LIMIT: Final = 5_000_000
_UNPACKED_LIMIT: Final = 20_000_000


def _one(world: World, **changes: Any) -> bytes:
    return orjson.dumps(world.event(**changes))


def _attribute(text: bytes) -> bytes:
    """A report whose attribute `x` is this JSON text."""
    return (
        b'{"event_id":"a","source":"hostile","event_type":"REPORTED","case_id":"c","channel":"hotline_12345",'
        b'"occurred_at":"2026-01-01T08:00:00+08:00","matter_code":"UE-01","grid_code":"440704001001003",'
        b'"actor":{"type":"citizen"},"attributes":{"x":' + text + b"}}"
    )


def _location(text: bytes) -> bytes:
    return _attribute(b"1").replace(b'"attributes":{"x":1}', b'"location":' + text)


def _time(text: Any) -> dict[str, Any]:
    return {"occurred_at": text}


def _gzip_layers(layers: int) -> bytes:
    body = b"[" * 1000
    for _ in range(layers):
        body = gzip.compress(body)
    return body


def _zstd_window(log: int) -> bytes:
    """A frame with a window of 2**log bytes: magic, descriptor without size, window byte, one raw block."""
    return b"\x28\xb5\x2f\xfd\x00" + bytes([(log - 10) << 3]) + b"\x19\x00\x00" + b"abc"


def _chunked(world: World) -> tuple[bytes, ...]:
    chunk = b"186a0\r\n" + b"a" * 100_000 + b"\r\n"
    return (world.head("Transfer-Encoding: chunked"), *([chunk] * 2_000))


def _framing(*fields: str, body: bytes = b"{}") -> Any:
    return lambda world: (world.head(*fields) + body,)


def _get(path: str, *fields: str, method: str = "GET") -> Any:
    return lambda world: (world.head(*fields, path=path, method=method),)


_XXE: Final = b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x>&e;</x>'
_NEVER_2XX: Final = frozenset({400, 401, 403, 404, 405, 408, 411, 413, 415, 421, 422, 426, 431, 501, 505})
_BAD: Final = frozenset({400})
_GONE: Final = frozenset({404, 400})

TABLE: Final[tuple[Row, ...]] = (
    # --- documents
    Whole(1, "empty body", b"", 400, "empty_body"),
    Whole(1, "blank lines only", b" \r\n\n", 400, "empty_body", NDJSON),
    Whole(2, "empty list", b"[]", 400, "empty_batch"),
    *(
        Whole(3, f"document {text.decode()}", text, 400, "not_an_object")
        for text in (b"null", b"42", b'"x"', b"true")
    ),
    Scenario(4, "truncated JSON, with the byte", "client: a whole request", events.truncated_json),
    Whole(5, "two documents", lambda w: _one(w) + _one(w), 400, "malformed_json"),
    Whole(5, "trailing bytes", lambda w: _one(w) + b"x", 400, "malformed_json"),
    *(
        Whole(6, text.decode(), _attribute(text), 400, "malformed_json")
        for text in (b"NaN", b"Infinity", b"-Infinity")
    ),
    Batch(6, "number beyond every float", (Bad(_attribute(b"1e400"), "out_of_range"),)),
    Scenario(7, "duplicate keys: the last wins everywhere", "client", events.duplicate_keys),
    Whole(8, "nested 100,000 deep", b"[" * 100_000, 400, "too_deep"),
    Whole(8, "objects nested 100,000 deep", b'{"a":' * 100_000, 400, "too_deep"),
    Scenario(8, "nested 100,000 deep: refused in 10 ms", "client", events.deep_nesting),
    # the list, the event and its attributes are three levels of a document
    Batch(8, "32 levels", (Bad(_attribute(b"[" * 29 + b"]" * 29), "bad_type", "attributes"),)),
    Whole(8, "33 levels", lambda w: b"[" + _attribute(b"[" * 30 + b"]" * 30) + b"]", 400, "too_deep"),
    Batch(
        9,
        "integers beyond 63 bits",
        tuple(
            Bad(_attribute(text), "out_of_range")
            for text in (b"18446744073709551616", b"9223372036854775808", b"9" * 5000)
        ),
    ),
    *(
        Whole(10, name, body, 400, code)
        for name, body, code in (
            ("invalid UTF-8", _attribute(b'"\xff\xfe"'), "bad_encoding"),
            ("overlong UTF-8", _attribute(b'"\xc0\xaf"'), "bad_encoding"),
            ("UTF-16 with a mark", "{}".encode("utf-16"), "bad_encoding"),
            ("UTF-8 with a mark", b"\xef\xbb\xbf" + _attribute(b"1"), "malformed_json"),
        )
    ),
    Whole(11, "half a surrogate pair in a document", _attribute(rb'"\ud800"'), 400, "malformed_json"),
    Scenario(11, "halves of surrogate pairs in lines", "client", events.half_pairs),
    # --- fields
    Batch(
        12,
        "control characters",
        tuple(
            Bad({"description": f"a{character}b"}, "bad_text", "description")
            for character in "\x00\x01\x1b\x7f\x85"
        ),
    ),
    Batch(
        13,
        "odd characters in an id",
        tuple(
            Bad({"event_id": text}, "bad_pattern", "event_id")
            for text in ("a\u200bb", "a\u202eb", "\u0430bc", "\uff11\uff12", "a b", "a/b")
        ),
    ),
    Scenario(13, "odd characters in text are kept as they are", "client", events.odd_text),
    Scenario(14, "NFC and NFD of one text", "client", events.normal_forms),
    Batch(
        15,
        "event_id",
        (
            Bad({"event_id": ...}, "missing_field", "event_id"),
            Bad({"event_id": None}, "missing_field", "event_id"),
            Bad({"event_id": 7}, "bad_type", "event_id"),
            Bad({"event_id": ""}, "bad_pattern", "event_id"),
            Bad({"event_id": " a "}, "bad_pattern", "event_id"),
            Bad({"event_id": "a" * 1_000_000}, "too_long", "event_id"),
        ),
    ),
    Whole(15, "event_id of 10 MB", lambda w: _one(w, event_id="a" * 10_000_000), 413, "body_too_large"),
    Scenario(16, "ids that differ in case are two", "client", events.ids_by_case),
    Batch(
        17,
        "times",
        (
            *(
                Bad(_time(text), "bad_time", "occurred_at")
                for text in (
                    1767225600,
                    1767225600000,
                    1767225600000000,
                    -1,
                    0,
                    "2026-02-30T00:00:00Z",
                    "2026-01-01T24:00:00Z",
                    "2026-01-01T08:00:60+08:00",
                    "2026-01-01T08:00:00",
                    "2026-01-01T08:00:00+99:00",
                    "yesterday",
                    "",
                )
            ),
            *(
                Bad(_time(f"{year}-01-01T00:00:00Z"), "out_of_range", "occurred_at")
                for year in ("0001", "1900", "2300", "9999")
            ),
            Bad(_time("2026-01-01T08:00:00+14:00"), None),
        ),
    ),
    Scenario(18, "far past and future make no partition", "client", events.far_times),
    Batch(
        19,
        "coordinates",
        (
            Bad({"location": {"lon": None, "lat": 22.5, "crs": "wgs84"}}, "missing_field", "location.lon"),
            Bad({"location": {"lon": 22.5, "lat": 113.0, "crs": "wgs84"}}, "out_of_range", "location.lat"),
            Bad({"location": {"lon": 181, "lat": 22.5, "crs": "wgs84"}}, "out_of_range", "location.lon"),
            Bad({"location": {"lon": 113.0, "lat": 91, "crs": "wgs84"}}, "out_of_range", "location.lat"),
            Bad({"location": {"lon": "113", "lat": 22.5, "crs": "wgs84"}}, "bad_type", "location.lon"),
            Bad({"location": {"lon": 113.0, "lat": 22.5}}, "missing_field", "location.crs"),
            Bad({"location": {"lon": 113.0, "lat": 22.5, "crs": "bd09"}}, "unknown_value", "location.crs"),
        ),
    ),
    Whole(19, "NaN as coordinate", _location(b'{"lon":NaN,"lat":22.5,"crs":"wgs84"}'), 400, "malformed_json"),
    Batch(
        20,
        "unknown enumeration values",
        (
            Bad({"event_type": "EXPLODED"}, "unknown_value", "event_type"),
            Bad({"event_type": "ADMITTED"}, "unknown_value", "event_type"),
            Bad({"actor": {"type": "robot"}}, "unknown_value", "actor.type"),
        ),
    ),
    Scenario(20, "unknown codes are rejected with a reason", "client", events.unknown_codes),
    Batch(
        21,
        "small integers",
        (
            *(
                Bad(
                    {"event_type": "FEEDBACK", "attributes": {"rating": value}},
                    "out_of_range",
                    "attributes.rating",
                )
                for value in (70_000, -1, 300, 0)
            ),
            *(
                Bad(
                    {"event_type": "FEEDBACK", "attributes": {"rating": value}},
                    "bad_type",
                    "attributes.rating",
                )
                for value in (1.5, "5", True)
            ),
        ),
    ),
    Batch(22, "10,000 unknown fields", (Bad({f"x{n}": n for n in range(10_000)}, "unknown_field"),)),
    Batch(
        22, "33 attributes", (Bad({"attributes": {f"x{n}": n for n in range(33)}}, "too_long", "attributes"),)
    ),
    Batch(
        23,
        "mass assignment",
        (
            *(
                Bad({name: 1}, "unknown_field", name)
                for name in (
                    "_off",
                    "_inc",
                    "_part",
                    "ingested_at",
                    "status",
                    "is_admin",
                    "backfill",
                    "outcome",
                )
            ),
            Bad({"source": OTHER}, "source_not_allowed", "source"),
        ),
    ),
    Whole(23, "only foreign sources", lambda w: _one(w, source=OTHER), 403, "source_not_allowed"),
    Batch(24, "text of 1 MB", (Bad({"description": "a" * 1_000_000}, "too_long", "description"),)),
    Whole(
        24,
        "text of 20 MB, packed",
        lambda w: gzip.compress(_one(w, description="a" * 20_000_000)),
        413,
        "body_too_large",
        headers={"Content-Encoding": "gzip"},
    ),
    # --- bodies
    Wire(
        25,
        "Content-Length over the limit, body not sent",
        lambda w: (w.head(f"Content-Length: {_LIMIT + 1}"),),
        frozenset({413}),
    ),
    Wire(26, "endless chunked body", _chunked, frozenset({413}), grows=2 * _LIMIT),
    Scenario(27, "Content-Length in characters, not bytes", "raw socket", callers.length_in_characters),
    Wire(27, "Content-Length too large, then closed", _framing("Content-Length: 9"), _BAD, shut=True),
    Wire(27, "Content-Length negative", _framing("Content-Length: -2"), _BAD),
    Wire(27, "Content-Length with a sign", _framing("Content-Length: +2"), _BAD),
    Wire(27, "two Content-Lengths", _framing("Content-Length: 2", "Content-Length: 3"), _BAD),
    Wire(27, "both framings", _framing("Content-Length: 2", "Transfer-Encoding: chunked"), _BAD),
    Wire(
        27,
        "unknown transfer coding",
        _framing("Transfer-Encoding: xchunked", body=b"2\r\n{}\r\n0\r\n\r\n"),
        _BAD,
    ),
    Wire(
        27,
        "chunked not last",
        _framing("Transfer-Encoding: chunked, gzip", body=b"2\r\n{}\r\n0\r\n\r\n"),
        _BAD,
    ),
    Wire(27, "folded header", _framing("X-A: 1\r\n Transfer-Encoding: chunked", "Content-Length: 2"), _BAD),
    Wire(27, "blank before the colon", _framing("Content-Length : 2"), _BAD),
    Wire(
        27,
        "chunk size beyond 64 bits",
        _framing("Transfer-Encoding: chunked", body=b"f" * 20 + b"\r\n{}"),
        _BAD,
    ),
    *(
        Whole(28, name, body, status, code, headers={"Content-Encoding": encoding}, grows=2 * _UNPACKED_LIMIT)
        for name, encoding, body, status, code in (
            ("gzip bomb", "gzip", lambda _: gzip.compress(bytes(200_000_000), 9), 413, "body_too_large"),
            ("zstd bomb", "zstd", lambda _: zstandard.compress(bytes(200_000_000)), 413, "body_too_large"),
            ("nested gzip", "gzip", _gzip_layers(2), 400, "bad_encoding"),
            ("zstd window of 2 GB", "zstd", _zstd_window(31), 400, "bad_compression"),
            ("truncated gzip", "gzip", gzip.compress(b"{}" * 1000)[:-9], 400, "bad_compression"),
            ("truncated zstd", "zstd", zstandard.compress(b"{}" * 1000)[:-3], 400, "bad_compression"),
            ("raw deflate as gzip", "gzip", zlib.compress(b"{}"), 400, "bad_compression"),
            ("members of gzip, one bad", "gzip", gzip.compress(b"{}") + b"rest", 400, "bad_compression"),
            (
                "bombs in 400 members",
                "gzip",
                lambda _: gzip.compress(bytes(1_000_000), 9) * 400,
                413,
                "body_too_large",
            ),
        )
    ),
    Scenario(28, "members of gzip, one after another", "client", events.gzip_members),
    Scenario(28, "elements without end in a kilobyte", "client", callers.elements_without_end),
    *(
        Whole(
            29,
            f"{kind} {encoding}".strip(),
            b"{}",
            415,
            code,
            kind,
            {"Content-Encoding": encoding} if encoding else {},
        )
        for kind, encoding, code in (
            (JSON, "br", "unknown_encoding"),
            (JSON, "gzip, gzip", "unknown_encoding"),
            (JSON, "deflate", "unknown_encoding"),
            ("text/plain", "", "unknown_content_type"),
            ("application/json; charset=gbk", "", "unknown_charset"),
            (None, "", "unknown_content_type"),
            ("application/json\t, text/html", "", "unknown_content_type"),
        )
    ),
    *(
        Whole(30, kind, body, 415, "unknown_content_type", kind)
        for kind, body in (
            ("multipart/form-data; boundary=x", b"--x\r\n\r\n--x--"),
            ("application/x-www-form-urlencoded", b"a=1"),
            ("application/xml", _XXE),
            ("text/xml", _XXE),
        )
    ),
    # --- heads and paths
    Wire(32, "500 headers", lambda w: (w.head(*(f"X-{n}: v" for n in range(500))),), frozenset({431})),
    Wire(32, "header of 64 KB", lambda w: (w.head("X-A: " + "a" * 65_536),), frozenset({431})),
    Wire(
        32,
        "trailers without end",
        lambda w: (
            w.head("Transfer-Encoding: chunked") + b"2\r\n{}\r\n0\r\n",
            *([b"X-T: " + b"t" * 4_000 + b"\r\n"] * 8),
        ),
        frozenset({431}),
        pause=0.02,
    ),
    *(
        Wire(33, f"path {path[:30]!r} of {len(path):,}", _get(path, "Connection: close"), _GONE | {431})
        for path in (
            "/v1/../metrics",
            "/v1/%2e%2e/metrics",
            "//metrics",
            "/metrics;x=1",
            "/metrics%00",
            "/v1/events/%2e%2e/%2e%2e",
            "/docs/assets/../../../../etc/passwd",
            "/docs/assets/%2e%2e/%2e%2e/etc/passwd",
            "/" + "a" * 10_000,
            "/" + "a" * 20_000,
        )
    ),
    *(
        Wire(
            34,
            f"{method} {path}",
            _get(path, "Connection: close", "Content-Length: 0", method=method),
            frozenset({400, 405}),
        )
        for method, path in (
            ("TRACE", "/v1/events"),
            ("DELETE", "/v1/events"),
            ("PUT", "/v1/kpi"),
            ("CONNECT", "127.0.0.1:22"),
            ("BREW", "/v1/events"),
            ("GET", "/v1/events"),
        )
    ),
    Wire(34, "HTTP/0.9", lambda _: (b"GET /v1/kpi\r\n\r\n",), _BAD),
    Wire(
        34,
        "HTTP/2 with prior knowledge",
        lambda _: (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",),
        frozenset({400, 505}),
    ),
    Scenario(
        34, "an upgrade that is not offered is passed over", "raw socket", events.upgrade_is_passed_over
    ),
    # --- batches
    Scenario(35, "one event too many: none is taken", "client", events.too_many_events),
    Scenario(36, "one id twice in a batch", "client", events.same_id_twice),
    Scenario(37, "one bad event among 999", "client", events.one_bad_among_many),
    # --- what lies behind
    Scenario(38, "SQL in values is stored verbatim", "client", beyond.sql_in_values),
    Scenario(39, "identifiers in queries are of a closed list", "client", beyond.identifiers_in_queries),
    Scenario(40, "functions of the engine in queries", "client", beyond.functions_in_queries),
    Scenario(41, "log injection", "raw socket", beyond.log_injection),
    Scenario(42, "metric labels come from closed sets", "client", beyond.metric_labels),
    Scenario(43, "formulae and markup are kept and never served as a page", "client", beyond.formulae),
    Scenario(44, "personal numbers in free text", "client", beyond.personal_numbers_in_text),
    Scenario(45, "spellings of an identity number", "client", beyond.identity_spellings),
    Scenario(46, "spellings of a phone", "client", beyond.phone_spellings),
    # --- credentials and load
    Scenario(47, "keys: none, wrong, revoked, expired, foreign, in the address", "client", callers.keys),
    Scenario(48, "signatures over something else", "client", callers.signatures),
    Scenario(49, "a signed request again", "client", callers.replays),
    Scenario(50, "one key floods: other sources notice nothing", "raw socket", flood.one_key),
    Scenario(51, "client gone before the answer", "raw socket", callers.client_gone),
    Scenario(52, "a thousand half-open connections", "raw socket", callers.half_open),
    # --- the topic
    Records(
        53,
        "records that are no events",
        (
            Record(b"not json"),
            Record(b""),
            Record(None),
            Record(b"\x00\xff" * 500),
            Record(b"[]"),
            Record(b"42"),
            Record(lambda w: b'{"description":"' + b"a" * 5_000_000 + b'"}', key=None),
            Record(_one, {"content-type": b"image/png"}),
            Record(_one, {"content-type": b"\xff\xfe"}),
            Record(
                b"ARROW1\x00\x00",
                {"content-type": b"application/vnd.apache.arrow.stream", "schema-version": b"1"},
            ),
            Record(b"\xff" * 64, {"content-type": b"application/vnd.apache.arrow.stream"}),
            Record(
                beyond.arrow_bomb,
                {"content-type": b"application/vnd.apache.arrow.stream", "schema-version": b"1"},
            ),
        ),
    ),
    *(
        Records(53, f"records packed with {codec}", (Record(b"not json"),), {"compression.type": codec})
        for codec in ("gzip", "snappy", "lz4", "zstd")
    ),
    Records(
        54,
        "schema versions",
        (
            Record(_one, {"schema-version": b"2"}, reason="UNSUPPORTED_VERSION"),
            Record(_one, {"schema-version": b"0"}, reason="UNSUPPORTED_VERSION"),
            Record(_one, {"schema-version": b"one"}),
            Record(_one, {"schema-version": b"1"}, reason=None),
            Record(_one, None, reason=None),
        ),
    ),
    Records(
        55,
        "one bad line never costs the others of its record",
        (
            Record(lambda w: _one(w) + b"\n{bad\n" + _one(w), count=1),
            Record(lambda w: _one(w) + b"\n" + _one(w, attributes={"x": 2**63}) + b"\n" + _one(w), count=1),
            Record(lambda w: b"[" + _one(w) + b",null,7," + _one(w) + b"]", count=2),
            Record(
                lambda w: (
                    _one(w, title=None, description=None, attributes=None)
                    + b"\n"
                    + _one(w, attributes={"x": 1})
                    + b"\n"
                    + _one(w, attributes={"x": "1"})
                ),
                reason=None,
            ),
        ),
    ),
    Scenario(56, "hostile reference files", "command line", files.reference_files),
    Scenario(57, "hostile rule files", "command line", files.rule_files),
    Scenario(58, "hostile configuration", "command line", files.configuration),
    Scenario(59, "a million keys in one object", "client", callers.million_keys),
    Scenario(60, "deletion of a stranger, of a person, and again", "command line", beyond.deletions),
    Scenario(61, "probes and metrics under attack", "raw socket", callers.probes),
    Scenario(61, "a listener of their own, the other one full", "raw socket", callers.separate_listener),
    Scenario(62, "Idempotency-Key with another body", "client", beyond.idempotency_key),
    Scenario(31, "a thousand idle connections cost nobody time", "raw socket", callers.idle_crowd),
    # --- deadlines
    Scenario(31, "slow heads, slow bodies, idle connections", "raw socket", callers.slow_clients),
)
