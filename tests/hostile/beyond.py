"""Hostile values that aim at what lies behind the gateway: queries, logs, metrics, pages, pseudonyms."""

from __future__ import annotations

import time
from typing import Final

import httpx
import orjson
from prometheus_client.parser import text_string_to_metric_families

from tests.hostile.world import EVENTS, SOURCE, World

#: Of the fictitious region 999999, with a valid check digit.
ID_NUMBER: Final = "999999199001010016"
PHONE: Final = "13800138000"

# --- what lies behind

_SQL: Final = "'); DROP TABLE events; -- \\' {x:String} FORMAT CSV \" ` $1 %s ${jndi:x}"


def sql_in_values(world: World) -> None:
    event = world.event(description=_SQL, title=_SQL[:60], attributes={"note": _SQL})
    world.take(event)
    assert world.column("description", event["event_id"]) == [_SQL]
    (attributes,) = world.column("attributes", event["event_id"])
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
    world.take(world.event(matter_code="hostile-label", channel="hostile-label"))
    world.post([world.event(source="hostile-label:x")])
    before = _series(world)
    world.take(
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
    world.take(event)
    assert world.column("title", event["event_id"]) == [text]
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
    world.take(taken)
    (description,) = world.column("description", taken["event_id"])
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
    world.take(*events)
    keys = world.column("actor_key", *[event["event_id"] for event in events])
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


def idempotency_key(world: World) -> None:
    """Our idempotency key is the event's id: the same id with another content keeps the first."""
    first = world.event(title="first")
    world.take(first)
    for headers in ({"Idempotency-Key": "k-1"}, {}):
        assert world.post(first | {"title": "second"}, headers=headers).status_code == 202
    assert world.column("title", first["event_id"]) == ["first"]
    rows = world.rows(
        "SELECT count() FROM quarantine WHERE event_id = {id:String} AND reason = 'ID_CONFLICT'",
        id=first["event_id"],
    )
    assert rows == [(2,)]
