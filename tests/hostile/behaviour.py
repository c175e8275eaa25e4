"""Hostile inputs that need more than one request, or a look at what was stored."""

from __future__ import annotations

import gzip
import re
import socket
import threading
import time
import unicodedata
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import httpx
import orjson
from prometheus_client.parser import text_string_to_metric_families

from pipeline.ingest.signing import SigningAuth
from tests.hostile.world import EVENTS, OTHER, SOURCE, World, patience

#: Of the fictitious region 999999, with a valid check digit.
ID_NUMBER: Final = "999999199001010016"
PHONE: Final = "13800138000"


def _take(world: World, *events: dict[str, Any]) -> dict[str, Any]:
    answer = world.post(list(events))
    assert answer.status_code == 202, answer.text
    document: dict[str, Any] = answer.json()
    assert document["accepted"] == len(events), document["errors"]
    world.keep(*events)
    return document


def _column(world: World, name: str, *event_ids: str) -> list[Any]:
    """A column of stored rows, in the order of the ids, whatever became of them."""
    rows = dict(
        world.rows(
            " UNION ALL ".join(
                f"SELECT event_id, {name} FROM {table} FINAL WHERE event_id IN {{ids:Array(String)}}"
                for table in ("events", "rejections")
            ),
            ids=list(event_ids),
        )
    )
    return [rows.get(event_id) for event_id in event_ids]


# --- documents


def truncated_json(world: World) -> None:
    body = orjson.dumps([world.event(), world.event()])
    for end in (1, 7, len(body) // 2, len(body) - 1):
        answer = world.post(body[:end])
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed_json"), answer.text
        assert re.search(r"\d+", answer.json()["message"]), "no place given"


def duplicate_keys(world: World) -> None:
    first, last = world.event(), world.event()
    text = (
        orjson.dumps(first)[:-1] + b',"event_id":"' + last["event_id"].encode() + b'","title":"\xe4\xba\x8c"}'
    )
    answer = world.post(text)
    assert answer.status_code == 202, answer.text
    world.keep(last)
    assert _column(world, "title", last["event_id"]) == ["二"]
    assert world.client.get(f"{EVENTS}/{SOURCE}/{first['event_id']}").status_code == 404


def half_pairs(world: World) -> None:
    first, last = world.event(), world.event()
    bads = [
        orjson.dumps(world.event(title="TITLE")).replace(b"TITLE", text)
        for text in (rb"\ud800", rb"\udc00x", rb"\ud800\u0041")
    ]
    answer = world.post(b"\n".join([orjson.dumps(first), *bads, orjson.dumps(last)]), "application/x-ndjson")
    assert answer.status_code == 202, answer.text
    assert [error["index"] for error in answer.json()["errors"]] == [1, 2, 3]
    assert {error["code"] for error in answer.json()["errors"]} <= {
        "malformed_json",
        "bad_encoding",
        "bad_text",
    }
    world.keep(first, last)


# --- fields


def odd_text(world: World) -> None:
    text = "零\u200b宽 \u202e反 \uff11\uff12 \U0001f9ef <b>"
    event = world.event(title=text)
    _take(world, event)
    assert _column(world, "title", event["event_id"]) == [text]


def normal_forms(world: World) -> None:
    text = "Café 路灯坏了 é"
    common = {"actor": {"type": "citizen", "key": "same-reporter"}, "occurred_at": _ago(30)}
    composed = world.event(description=unicodedata.normalize("NFC", text), **common)
    apart = world.event(description=unicodedata.normalize("NFD", text), **common)
    assert composed["description"] != apart["description"]
    _take(world, composed)
    answer = world.post([apart])
    assert answer.status_code == 202
    found = world.outcome(apart["event_id"])
    # a rejected report is no anchor: then both are judged alike, which is the same decision
    first = world.outcome(composed["event_id"])["outcome"]
    assert found["outcome"] == ("duplicate" if first == "admitted" else first)
    rows = world.rows(
        "SELECT normalizeUTF8NFC({a:String}) = normalizeUTF8NFC({b:String})",
        a=composed["description"],
        b=apart["description"],
    )
    assert rows[0][0] == 1


def _ago(minutes: float) -> str:
    return (datetime.now(UTC) - timedelta(minutes=minutes)).isoformat()


def ids_by_case(world: World) -> None:
    stem = f"Case-{time.time_ns()}"
    upper, lower = world.event(event_id=stem.upper()), world.event(event_id=stem.lower())
    _take(world, upper, lower)
    assert world.outcome(stem.upper())["outcome"] == world.outcome(stem.lower())["outcome"] == "rejected"


def far_times(world: World) -> None:
    def partitions() -> set[str]:
        rows = world.rows(
            "SELECT DISTINCT table || ':' || partition FROM system.parts "
            "WHERE active AND database = currentDatabase() AND table IN ('events', 'rejections')"
        )
        return {row[0] for row in rows}

    world.still_well()
    before = partitions()
    far = [
        world.event(occurred_at=text)
        for text in ("2000-01-01T00:00:00Z", "2013-07-01T00:00:00Z", "2099-12-31T00:00:00Z")
    ]
    _take(world, *far)
    reasons = [set(world.outcome(event["event_id"])["reasons"]) for event in far]
    assert "TOO_OLD" in reasons[0] & reasons[1]
    assert any("FUTURE" in reason for reason in reasons[2]), reasons[2]
    assert partitions() == before


def unknown_codes(world: World) -> None:
    matter, grid, channel = (
        world.event(matter_code="ZZ-99"),
        world.event(grid_code="9" * 15),
        world.event(channel="carrier_pigeon"),
    )
    _take(world, matter, grid, channel)
    assert "UNKNOWN_MATTER" in world.outcome(matter["event_id"])["reasons"]
    assert "GRID_UNKNOWN" in world.outcome(grid["event_id"])["reasons"]
    assert world.outcome(channel["event_id"])["outcome"] == "rejected"
    assert _column(world, "matter_code", matter["event_id"]) == ["ZZ-99"]


# --- bodies


def gzip_members(world: World) -> None:
    first, last = world.event(), world.event()
    body = b"".join(gzip.compress(orjson.dumps(event) + b"\n") for event in (first, last))
    answer = world.post(body, "application/x-ndjson", headers={"Content-Encoding": "gzip"})
    assert answer.json()["accepted"] == 2, answer.text
    world.keep(first, last)


def upgrade_is_passed_over(world: World) -> None:
    reply = world.talk(
        world.head(
            "Connection: Upgrade, HTTP2-Settings",
            "Upgrade: h2c",
            "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
            path="/health/live",
            method="GET",
        ),
        seconds=1.0,
    )
    assert 101 not in reply.statuses
    assert set(reply.statuses) <= {200, 400, 426}


# --- batches


def too_many_events(world: World) -> None:
    batch = [world.event() for _ in range(5_001)]
    for content_type, body in (
        ("application/json", orjson.dumps(batch)),
        ("application/x-ndjson", b"\n".join(map(orjson.dumps, batch))),
    ):
        answer = world.post(body, content_type)
        assert (answer.status_code, answer.json()["code"]) == (413, "too_many_events")
    assert world.client.get(f"{EVENTS}/{SOURCE}/{batch[0]['event_id']}").status_code == 404


def same_id_twice(world: World) -> None:
    event = world.event()
    answer = world.post([event, event])
    assert answer.json()["accepted"] == 2, answer.text
    world.keep(event)
    rows = world.rows(
        "SELECT count() FROM duplicates FINAL WHERE event_id = {id:String} AND level = 'L1'",
        id=event["event_id"],
    )
    assert rows == [(1,)]


def one_bad_among_many(world: World) -> None:
    batch = [world.event() for _ in range(1_000)]
    batch[500]["grid_code"] = "nowhere"
    answer = world.post(batch)
    document = answer.json()
    assert (answer.status_code, document["accepted"]) == (202, 999)
    assert [(error["index"], error["code"]) for error in document["errors"]] == [(500, "bad_pattern")]
    world.keep(*batch[:500], *batch[501:])


# --- what lies behind

_SQL: Final = "'); DROP TABLE events; -- \\' {x:String} FORMAT CSV \" ` $1 %s ${jndi:x}"


def sql_in_values(world: World) -> None:
    event = world.event(description=_SQL, title=_SQL[:60], attributes={"note": _SQL})
    _take(world, event)
    assert _column(world, "description", event["event_id"]) == [_SQL]
    (attributes,) = _column(world, "attributes", event["event_id"])
    assert orjson.loads(attributes)["note"] == _SQL


def identifiers_in_queries(world: World) -> None:
    for path in (
        "/v1/kpi?by=grid%20UNION%20SELECT%201", "/v1/kpi?by=city;DROP%20TABLE%20events", "/v1/kpi?view=other",
        "/v1/kpi?by=city&by=town", "/v1/kpi?from=now()", "/v1/kpi?as_of=2026-01-01", "/v1/kpi?sort=event_id",
        "/v1/rejections?limit=1001", "/v1/rejections?limit=-1", "/v1/rejections?limit=1e3",
        "/v1/rejections?reason='%20OR%201=1",
        "/v1/rejections?table=events", "/v1/rejections?from=%00", "/v1/matters?format=CSV",
        "/v1/rejections?limit=" + "9" * 400,
    ):  # fmt: skip
        assert world.get(path).status_code == 400, path


def functions_in_queries(world: World) -> None:
    for call in (
        "url('http://127.0.0.1:1/')",
        "file('/etc/passwd')",
        "remote('127.0.0.1')",
        "s3('x')",
        "x' INTO OUTFILE '/tmp/x",
        "x SETTINGS readonly=0",
    ):
        quoted = httpx.QueryParams({"v": call})["v"]
        for path, parameters in (
            ("/v1/kpi", {"by": quoted}),
            ("/v1/rejections", {"reason": quoted}),
            ("/v1/kpi", {"from": quoted}),
        ):
            assert world.get(path, params=parameters).status_code == 400, (path, call)
        from urllib.parse import quote

        assert world.get(f"/v1/cases/{quote(call, safe='')}").status_code in {400, 404}
        assert world.get(f"/v1/events/{SOURCE}/{quote(call, safe='')}").status_code in {400, 404}


def log_injection(world: World) -> None:
    log = world.settings.log_dir / "http.log"
    marker = f"injected-{time.time_ns()}"
    world.talk(world.head(f"User-Agent: x\x1b[31m{marker}", "Content-Length: 2", "Connection: close") + b"{}")
    world.talk(world.head("User-Agent: " + "a" * 1_000_000))
    assert (
        world.post(b"{}", headers={"X-Request-Id": f'{marker}" evil="1'}).headers["x-request-id"].find(marker)
        < 0
    )
    world.get(f"/v1/{marker}%0d%0aSet-Cookie:%20a=b%1b[2J")
    for line in log.read_bytes().splitlines() if log.exists() else []:
        assert isinstance(orjson.loads(line), dict), line[:200]
        assert len(line) < 20_000
        assert b"\x1b" not in line


def _series(world: World) -> int:
    page = world.client.get("/metrics").text
    families = list(text_string_to_metric_families(page))
    for family in families:
        for item in family.samples:
            assert all(len(value) <= 100 for value in item.labels.values()), item
            assert not any("hostile-label" in value for value in item.labels.values()), item
    return sum(len(family.samples) for family in families)


def metric_labels(world: World) -> None:
    _take(world, world.event(matter_code="hostile-label", channel="hostile-label"))
    world.post([world.event(source="hostile-label:x")])
    before = _series(world)
    _take(
        world,
        *[
            world.event(matter_code=f"hostile-label-{n}", channel=f"hostile-label-{n}", grid_code=f"{n:015d}")
            for n in range(1_500)
        ],
    )
    world.post([world.event(source=f"hostile-label:{n}") for n in range(1_500)])
    for odd in ('a"b', "a\nb", "a{b}"):
        assert world.post([world.event(source=odd)]).status_code == 422
        world.get(f"/v1/{httpx.QueryParams({'x': odd})}")
    assert _series(world) <= before + 20


def formulae(world: World) -> None:
    text = '=HYPERLINK("http://evil.example","x") <script>alert(1)</script>'
    event = world.event(title=text)
    _take(world, event)
    assert _column(world, "title", event["event_id"]) == [text]
    for path in (
        f"{EVENTS}/{SOURCE}/{event['event_id']}",
        f"/v1/cases/{event['case_id']}",
        "/v1/rejections?limit=5",
    ):
        answer = world.get(path)
        assert answer.headers["content-type"].startswith("application/"), path
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'self'" in answer.headers["content-security-policy"]


def personal_numbers_in_text(world: World) -> None:
    secrets = (ID_NUMBER, PHONE)
    full_width = "".join(chr(ord(digit) + 0xFEE0) for digit in ID_NUMBER)
    text = f"联系人{ID_NUMBER}电话{PHONE}，全角{full_width}"
    taken = world.event(description=text, title=text[:40], attributes={"note": text})
    _take(world, taken)
    (description,) = _column(world, "description", taken["event_id"])
    assert not any(secret in description for secret in (*secrets, full_width)), description
    refused = world.post([world.event(description=text, grid_code=text), world.event(event_id=ID_NUMBER)])
    assert refused.status_code == 422
    assert not any(secret in refused.text for secret in secrets)
    direct, sound = orjson.dumps({"oops": text, "phone": PHONE}), world.event()
    world.produce([(direct, None, None), (orjson.dumps(sound), None, None)])
    world.wait_for(sound["event_id"])
    world.keep(sound)
    kept = world.rows("SELECT payload, detail FROM quarantine WHERE payload LIKE '%oops%'")
    assert kept
    pages = [str(kept), world.client.get("/metrics").text]
    pages += [path.read_text(errors="replace") for path in world.settings.log_dir.iterdir()]
    assert not any(secret in page for secret in secrets for page in pages)


def _keys_of(world: World, field: str, spellings: tuple[str, ...]) -> set[str]:
    events = [world.event(actor={"type": "citizen", field: text}) for text in spellings]
    _take(world, *events)
    keys = _column(world, "actor_key", *[event["event_id"] for event in events])
    assert None not in keys
    return set(keys)


def identity_spellings(world: World) -> None:
    spaced = f"{ID_NUMBER[:6]} {ID_NUMBER[6:14]} {ID_NUMBER[14:]}"
    wide = "".join(chr(ord(digit) + 0xFEE0) for digit in ID_NUMBER)
    assert len(_keys_of(world, "id_number", (ID_NUMBER, spaced, wide))) == 1
    with_x = "11010519491231002X"
    assert len(_keys_of(world, "id_number", (with_x, with_x.lower()))) == 1
    assert (
        len(_keys_of(world, "id_number", ("110105491231002", with_x))) == 1
    )  # the old form of the same person
    assert (
        len(_keys_of(world, "id_number", ("999999199001010018", ID_NUMBER))) == 2
    )  # a wrong check digit is another


def phone_spellings(world: World) -> None:
    wide = "".join(chr(ord(digit) + 0xFEE0) for digit in PHONE)
    spellings = (PHONE, f"+86{PHONE}", f"0086{PHONE}", "+86 138 0013 8000", "138-0013-8000", wide)
    assert len(_keys_of(world, "phone", spellings)) == 1


# --- credentials and load


def keys(world: World) -> None:
    revoked, foreign = world.keys.create(SOURCE), world.keys.create(OTHER)
    world.keys.revoke(revoked.split("_")[1])
    event = world.event()
    answers = []
    wrong = world.key[:-3] + ("abc" if not world.key.endswith("abc") else "xyz")
    for key in ("x", "nonsense", wrong, revoked, "gp_000000000000_" + "x" * 43, "a" * 5_000):
        answer = world.post(event, headers={"Authorization": f"Bearer {key}"})
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorised"), key[:20]
        answers.append({name: value for name, value in answer.json().items() if name != "request_id"})
    assert all(answer == answers[0] for answer in answers), "an answer tells a known key from an unknown one"
    assert world.post(event, headers={"Authorization": "Basic YTpi"}).status_code == 401
    for name in ("key", "api_key", "access_token", "Authorization"):
        assert world.post(event, path=f"{EVENTS}?{name}={world.key}").status_code == 401
    refused = world.post(event, key=foreign)
    assert (refused.status_code, refused.json()["code"]) == (403, "source_not_allowed")
    assert world.client.get(f"{EVENTS}/{SOURCE}/{event['event_id']}").status_code == 404


def _signed(world: World, body: bytes, *, key: str, **changes: Any) -> httpx.Response:
    """A signed POST of `body`; `changes` replace parts of what was signed before it is sent."""
    headers = {"Content-Type": "application/json"}
    request = world.client.build_request("POST", EVENTS, content=body, headers=headers)
    signed = next(SigningAuth(key, changes.pop("clock", time.time)).auth_flow(request))
    authorization = changes.pop("authorization", signed.headers["Authorization"])
    sent = world.client.build_request(
        changes.pop("method", "POST"),
        changes.pop("path", EVENTS),
        content=changes.pop("body", body),
        headers=headers | changes.pop("headers", {}) | {"Authorization": authorization},
    )
    assert not changes
    answer = world.checked(lambda: world.client.send(sent))
    answer.extensions["authorization"] = signed.headers["Authorization"]
    return answer


def signatures(world: World) -> None:
    key = world.keys.create(SOURCE, signed=True)
    event = world.event()
    body = orjson.dumps(event)
    spoilt: tuple[dict[str, Any], ...] = (
        {"body": orjson.dumps(event | {"title": "other"})},
        {"path": f"{EVENTS}?x=1"},
        {"path": f"{EVENTS}:validate"},
        {"headers": {"Content-Type": "application/x-ndjson"}},
        {"authorization": f"Bearer {key}"},
        {"authorization": "GRIDPIPE-HMAC-SHA256 alg=none,key=" + key.split("_")[1]},
        {"authorization": "GRIDPIPE-HMAC-SHA1 key=x,time=1,nonce=x,signature=x"},
        {"clock": lambda: time.time() - 301},
        {"clock": lambda: time.time() + 301},
    )
    for change in spoilt:
        answer = _signed(world, body, key=key, **change)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorised"), change
    assert world.client.get(f"{EVENTS}/{SOURCE}/{event['event_id']}").status_code == 404
    assert _signed(world, body, key=key).status_code == 202
    world.keep(event)


def replays(world: World) -> None:
    key = world.keys.create(SOURCE, signed=True)
    event = world.event()
    body = orjson.dumps(event)
    first = _signed(world, body, key=key)
    assert first.status_code == 202
    world.keep(event)
    for _ in range(2):
        again = _signed(world, body, key=key, authorization=first.extensions["authorization"])
        assert again.status_code in {401, 409}, again.text


def client_gone(world: World) -> None:
    gone = [world.event() for _ in range(20)]
    for event in gone:
        body = orjson.dumps(event)
        with socket.create_connection(world.address, timeout=2) as connection:
            connection.sendall(world.head(f"Content-Length: {len(body)}") + body)
    _take(world, *gone)  # whatever became of them: sending again is safe, and each is there once
    for event in gone[:3]:
        assert world.outcome(event["event_id"])["outcome"] == "rejected"
    assert world.http.num_threads() < 200


def half_open(world: World) -> None:
    connections = []
    try:
        for _ in range(1_000):
            connections.append(socket.create_connection(world.address, timeout=2))
        for _ in range(3):
            world.still_well()
        assert world.get("/health/live").status_code == 200
    finally:
        for connection in connections:
            connection.close()


def probes(world: World) -> None:
    attacks = [
        lambda: world.talk(world.head(*(f"X-{n}: v" for n in range(500)), path="/metrics", method="GET")),
        lambda: world.talk(
            world.head("Content-Length: 9", path="/health/live", method="POST") + b"{}", seconds=0.5
        ),
        lambda: world.talk(world.head("Transfer-Encoding: xchunked", path="/metrics")),
        lambda: world.talk(world.head(path="/metrics/../v1/events", method="GET") + b"", seconds=0.5),
        lambda: world.talk(b"GET /health/ready HTTP/1.1\r\n", seconds=0.5),
    ]
    threads = [threading.Thread(target=attack) for attack in attacks * 4]
    for thread in threads:
        thread.start()
    for _ in range(5):
        for path in ("/health/live", "/health/ready", "/metrics"):
            assert world.get(path).status_code == 200
    for thread in threads:
        thread.join()
    list(text_string_to_metric_families(world.get("/metrics").text))


def idempotency_key(world: World) -> None:
    """Our idempotency key is the event's id: the same id with another content keeps the first."""
    first = world.event(title="first")
    _take(world, first)
    for headers in ({"Idempotency-Key": "k-1"}, {}):
        assert world.post(first | {"title": "second"}, headers=headers).status_code == 202
    assert _column(world, "title", first["event_id"]) == ["first"]
    rows = world.rows(
        "SELECT count() FROM quarantine WHERE event_id = {id:String} AND reason = 'ID_CONFLICT'",
        id=first["event_id"],
    )
    assert rows == [(2,)]


def million_keys(world: World) -> None:
    many = ",".join(f'"k{n}":1' for n in range(1_000_000))
    plain = b'{"event_id":"m","attributes":{' + many.encode() + b"}}"
    assert world.post(plain).status_code == 413
    before = world.http.memory_info().rss
    for _ in range(3):
        answer = world.post(gzip.compress(plain, 1), headers={"Content-Encoding": "gzip"})
        assert answer.status_code in {413, 422}, answer.text[:200]
    assert world.http.memory_info().rss - before < 100_000_000


class SlowClients:
    """Connections that dawdle; opened early, looked at last."""

    def __init__(self, world: World) -> None:
        self.started = time.monotonic()
        self.heads = [socket.create_connection(world.address) for _ in range(50)]
        self.idle = [socket.create_connection(world.address) for _ in range(200)]
        self.bodies = [socket.create_connection(world.address) for _ in range(5)]
        for connection in self.heads:
            connection.sendall(b"POST /v1/events HTTP/1.1\r\nHost: 127")
        for connection in self.bodies:
            connection.sendall(world.head("Content-Length: 1000"))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._drip, daemon=True)
        self._thread.start()

    def _drip(self) -> None:
        while not self._stop.wait(0.5):
            for connection in [*self.heads, *self.bodies]:
                try:
                    connection.send(b".")
                except OSError:
                    continue

    def answers(self, connections: list[socket.socket], deadline: float) -> list[bytes]:
        """What each was told before it was closed; raises when one is still open after `deadline` seconds."""
        found = []
        for connection in connections:
            received = b""
            connection.settimeout(max(0.1, self.started + deadline - time.monotonic()))
            try:
                while chunk := connection.recv(65_536):
                    received += chunk
            except ConnectionResetError:
                pass
            found.append(received)
        return found

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5)
        for connection in [*self.heads, *self.idle, *self.bodies]:
            connection.close()


SLOW: list[SlowClients] = []


def slow_clients(world: World) -> None:
    (slow,) = SLOW
    allowance = patience()
    assert all(b" 408 " in answer for answer in slow.answers(slow.heads, 5 + allowance))
    slow.answers(slow.idle, 5 + allowance)
    world.still_well()
    for answer in slow.answers(slow.bodies, 30 + allowance):
        assert b" 408 " in answer, answer[:200]
        assert b"body_too_slow" in answer


# --- command line


def reference_files(world: World) -> None:
    from tests.hostile.files import reference_files as play

    play(world)


def rule_files(world: World) -> None:
    from tests.hostile.files import rule_files as play

    play(world)


def configuration(world: World) -> None:
    from tests.hostile.files import configuration as play

    play(world)
