"""Hostile values that aim at what lies behind the gateway: queries, logs, metrics, pages, pseudonyms."""

from __future__ import annotations

import io
import time
from typing import Final

import httpx
import orjson
import polars as pl
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.clock import utc_now
from pipeline.contract.parse import parse_document
from pipeline.contract.privacy import Privacy
from pipeline.contract.rows import to_frame
from tests.e2e.service import gridpipe
from tests.hostile.world import EVENTS, OTHER, SOURCE, World, patience

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
    # the log is at work: refused events are told with their ids, and one that is no id is told by its place
    event = world.event(event_id=f'{marker}\n"evil": "\x1b[31m')
    told = world.event(grid_code="nowhere")
    assert world.post([event, told]).status_code == 422
    lines = log.read_bytes().splitlines()
    assert any(told["event_id"].encode() in line for line in lines), "nothing is logged: nothing is shown"
    for line in lines:
        assert isinstance(orjson.loads(line), dict), line[:200]
        assert len(line) < 20_000
        assert b"\x1b" not in line
        assert b"a" * 100 not in line
        assert marker.encode() not in line, line[:500]


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
    for batch in range(20):  # 100,000 sources that are nobody's; of what is stored 1,500 must do
        many = [world.event(source=f"hostile-label:{batch}-{n}") for n in range(5_000)]
        assert world.post(many).status_code == 403
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


# --- persons


def _id_number(serial: int) -> str:
    """An identity number of nobody's: fictitious region, valid check digit."""
    digits = f"99999919850101{serial:03d}"
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    total = sum(int(digit) * weight for digit, weight in zip(digits, weights, strict=True))
    return digits + "10X98765432"[total % 11]


def deletions(world: World) -> None:
    """A stranger, a person that two sources know, and the same again: one and the same answer for all, which
    does not tell who was there before, nor from where; each leaves a line in the audit log, none a number."""
    person, stranger = _id_number(7), _id_number(8)
    citizen = {"type": "citizen", "id_number": person}
    reported = world.event(actor=citizen, channel="hotline_12345", description="路灯坏了")
    world.take(reported)
    elsewhere = world.event(source=OTHER, actor=citizen, channel="hotline_12345", description="路灯又坏了")
    told = world.post(elsewhere, key=world.keys.create(OTHER))
    assert (told.status_code, told.json()["accepted"]) == (202, 1), told.text
    numbers = world.settings.data_dir / "numbers"
    answers = []
    for request, number in (("H-1", stranger), ("H-2", person), ("H-3", person), ("H-4", "' OR 1=1 --")):
        numbers.touch(mode=0o600)
        numbers.write_text(number)
        with pytest.MonkeyPatch.context() as patch:  # as the service: an erasure waits twice as long
            patch.setenv("GRIDPIPE_REFERENCE_REFRESH_SECONDS", "0.5")
            done = gridpipe(
                "person", "erase", "--yes", "--json", "--request", request, "--from", str(numbers),
                "--data-dir", str(world.settings.data_dir), seconds=90 * patience(),
            )  # fmt: skip
        assert number not in done.stdout + done.stderr
        answers.append((done.returncode, orjson.loads(done.stdout)))
    numbers.unlink()
    assert [code for code, _ in answers] == [0, 0, 0, 0], answers
    assert all(set(answer) == set(answers[0][1]) for _, answer in answers)
    assert [sum(answer["found"].values()) for _, answer in answers] == [0, 2, 0, 0]
    assert not any(sum(answer["left"].values()) for _, answer in answers)
    assert world.column("actor_key", reported["event_id"], elsewhere["event_id"]) == [None, None]
    world.keep(reported, elsewhere)
    audit = "".join(path.read_text() for path in world.settings.audit_dir.glob("*.jsonl"))
    for request in ("H-1", "H-2", "H-3", "H-4"):
        assert request in audit
    assert person not in audit
    assert stranger not in audit
    for path in ("/v1/persons", f"/v1/persons/{person}"):
        assert world.get(path).status_code == 404, "no way in over HTTP"


def arrow_bomb(world: World) -> bytes:
    """A block of the right columns, some 60 kB, whose text unpacks to 400 MB."""
    parsed = parse_document(orjson.dumps([world.event()]))
    row = to_frame(
        parsed.events, ingested_at=utc_now(), request_id=None, backfill=False, privacy=Privacy(b"k" * 32)
    )
    bomb = pl.concat([row.with_columns(description=pl.lit("a" * 200_000))] * 2_000)
    buffer = io.BytesIO()
    bomb.write_ipc_stream(buffer, compression="zstd", compat_level=pl.CompatLevel.oldest())
    return buffer.getvalue()
