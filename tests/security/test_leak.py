"""No personal number anywhere: known fake ones go in by every way, then all that was written is searched."""

from __future__ import annotations

import gzip
import json
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import orjson
import polars as pl
import pytest
from clickhouse_connect.driver.client import Client
from confluent_kafka import Consumer, TopicPartition

from pipeline.contract.parse import parse_document
from pipeline.contract.privacy import Privacy
from pipeline.contract.rows import to_frame
from pipeline.ingest.blocks import ARROW, HEADERS, decode_block, encode_frame
from tests.e2e.service import gridpipe
from tests.hostile.world import GRID, SOURCE, World, open_world
from tests.security.fakes import fake_card, fake_id, fake_mobile, full_width

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

#: Known only by the reference files of `write_places`.
OWN_GRID = "440704001001909"
_IN_THE_ENVELOPE = {"event_id", "source", "case_id", "event_type", "occurred_at"}
PLATES = ("粤J8K2M7", "粤JD12345")
#: Plates with what people put into them and after them; each is searched for as it is spelled.
SPELLED_PLATES = (
    "粤J・8K2M7", "粤J•8K2M7", "粤J：8K2M7", "粤J(8K2M7)", "粤J8K2M7SUV", "粤J\u00ad8K2M7", "粤J・ 8K2M7",
)  # fmt: skip
#: Go in with nearly every event: the name is to become a mask, the room to be cut off.
NAME, ROOM = "陈大文", "2单元501室"
#: Buildings and what must not stay behind them.
ADDRESSES = (
    ("文昌花园3栋", ROOM), ("东海路46号", "507室"), ("圭峰路12号", "308房"), ("东海路48号", "3单元509室"),
    ("阳光大厦", "1207室"), ("麻三村3巷5号", "207"), ("凤凰苑12", "-3-509"), ("文昌花园15棟", "608室"),
    ("江华路１２号", "５０８室"), ("东海路50号", "五楼"),
)  # fmt: skip
#: Between and around the parts of a mobile number: 3, 4 and 4 digits.
SPELLED_MOBILES = (
    "{} - {} - {}", "{}   {}   {}", "({}){}-{}", "{}_{}_{}", "{}/{}/{}", "{}，{}，{}", "{}\u2010{}\u2011{}",
    "{}\u2012{}\u2015{}", "{}\u00ad{}\u200e{}", "{}\u200b{}\u200b{}", "0{}{}{}", "086{}{}{}",
)  # fmt: skip

#: Tables of the engine without rows of their own that repeat messages and statements.
_ENGINE_TELLS = ("errors", "mutations", "processes", "query_cache", "warnings")


def escaped(text: str) -> str:
    """As JSON writes it in ASCII."""
    return json.dumps(text)[1:-1]


@dataclass
class Seeds:
    """Numbers that went in, and every spelling of them that must not be found."""

    taken: int = 0
    shapes: int = 0
    spellings: set[str] = field(default_factory=lambda: {NAME, ROOM, escaped(NAME), escaped(ROOM)})

    def _keep(self, *spellings: str) -> None:
        self.spellings |= {text for spelling in spellings for text in (spelling, full_width(spelling))}

    def id(self) -> str:
        self.taken += 1
        number = fake_id(1_000 + self.taken)
        self._keep(number, number[:17], f"{number[:6]} {number[6:14]} {number[14:]}")
        return number

    def mobile(self) -> str:
        self.taken += 1
        number = fake_mobile(self.taken)
        self._keep(number, f"{number[:3]}-{number[3:7]}-{number[7:]}")
        return number

    def card(self) -> str:
        self.taken += 1
        number = fake_card(self.taken)
        self._keep(number, " ".join(number[at : at + 4] for at in range(0, 16, 4)))
        return number

    def address(self) -> str:
        """An address with a room in it, then a number; each time another shape."""
        self.shapes += 1
        building, room = ADDRESSES[self.shapes % len(ADDRESSES)]
        self._keep(building[-1] + room)
        return f"{building}{room} {self.mobile()}"

    def text(self) -> str:
        """A description in which people hide numbers in every way they know."""
        number, mobile, card, spaced = self.id(), self.mobile(), self.card(), self.id()
        self._keep(*PLATES)
        return (
            f"身份证{number}，电话{mobile[:3]}-{mobile[3:7]}-{mobile[7:]}、＋８６{full_width(self.mobile())}，"
            f"卡号{' '.join(card[at : at + 4] for at in range(0, 16, 4))}，{full_width(self.id())}，"
            f"{spaced[:6]} {spaced[6:14]} {spaced[14:]}，车牌{PLATES[0]}、{full_width(PLATES[1])}"
        )

    def hidden(self) -> str:
        """Numbers spelled so that one has to look twice: each spelling is kept as it stands, too."""
        spelled = [*SPELLED_PLATES]
        for form in SPELLED_MOBILES:
            mobile = self.mobile()
            spelled.append(form.format(mobile[:3], mobile[3:7], mobile[7:]))
        number = self.id()
        spelled.append(f"{number[:6]} - {number[6:14]} - {number[14:]}")
        self._keep(*spelled)
        together = [
            f"{self.card()} 123", f"{self.card()} 12/28", f"{self.card()} 50元",
            f"{self.mobile()}{self.mobile()}", f"{self.id()}{self.mobile()}", f"{self.id()}0750-3333333",
        ]  # fmt: skip
        return "；".join([*spelled, *together])

    def escaped(self, text: str) -> str:
        """`text` in ASCII as JSON escapes it; what was kept is kept in this form, too."""
        self.spellings |= {escaped(spelling) for spelling in self.spellings}
        return escaped(text)

    def wide(self) -> tuple[str, str]:
        """An identity and a mobile number for a record of two bytes a character."""
        numbers = self.id(), self.mobile()
        for number in numbers:  # read as UTF-8, every other character is a zero or a mark in its place
            self.spellings |= {between.join(number) for between in ("\x00", "\ufffd", "?", " ")}
        return numbers


@dataclass
class Answers:
    """Everything that came back from calls and commands."""

    texts: list[str] = field(default_factory=list)
    statuses: set[int] = field(default_factory=set)

    def keep(self, answer: httpx.Response) -> httpx.Response:
        self.texts.append(f"{answer.headers} {answer.text}")
        self.statuses.add(answer.status_code)
        return answer

    def command(self, *arguments: str) -> int:
        result = gridpipe(*arguments)
        self.texts.append(result.stdout + result.stderr)
        return result.returncode


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    # a directory for temporary files of its own, so that what is left there can be searched
    folder = tmp_path_factory.mktemp("leak")
    (folder / "temporary").mkdir()
    (folder / "service").mkdir()
    with open_world(folder / "service" / "data", TMPDIR=str(folder / "temporary")) as opened:
        yield opened


def personal(world: World, seeds: Seeds, **changes: Any) -> dict[str, Any]:
    """An event with personal data in every field that takes text."""
    return world.event(
        actor={"type": "citizen", "id_number": seeds.id(), "phone": seeds.mobile(), "name": NAME},
        persons=[{"id_number": seeds.id(), "role": "subject"}, {"key": seeds.id(), "role": "contact"}],
        title=seeds.text(),
        description=f"{seeds.text()}，{seeds.hidden()}",
        location={"lon": 113.1, "lat": 22.57, "crs": "wgs84", "address": seeds.address()},
        organisation={"name": f"某店 {seeds.mobile()}"},
        attributes={"note": seeds.text(), seeds.mobile(): 1, "number": int(seeds.mobile())},
        **changes,
    )


def with_own_key(seeds: Seeds, key: str) -> dict[str, Any]:
    """A reporter for whom the source has a key of its own, beside the numbers."""
    return {"type": "citizen", "key": key, "id_number": seeds.id(), "phone": seeds.mobile(), "name": NAME}


def cloud_event(event: dict[str, Any]) -> dict[str, Any]:
    return {
        "specversion": "1.0", "id": event["event_id"], "source": SOURCE, "subject": event["case_id"],
        "type": "cn.jiangmen.grid.reported.v1", "time": event["occurred_at"],
        "data": {name: value for name, value in event.items() if name not in _IN_THE_ENVELOPE},
    }  # fmt: skip


def unclean_block(
    world: World, seeds: Seeds, *, role: str = "subject", sha256: str = "0a" * 32, **changes: str
) -> bytes:
    """An Arrow block as the gateway's, but written by somebody who cleaned nothing."""
    parsed = parse_document(orjson.dumps([world.event(), world.event()]))
    rows = to_frame(
        parsed.events,
        ingested_at=datetime.now(UTC),
        request_id=None,
        backfill=False,
        privacy=Privacy(bytes(range(1, 33))),
    )
    person = pl.lit([{"key": seeds.id(), "role": role}], dtype=rows.schema["persons"])
    photo = pl.lit([{"sha256": sha256, "taken_at": None}], dtype=rows.schema["photos"])
    values = {
        "actor_key": seeds.id(), "actor_name": NAME, "actor_phone": seeds.mobile(), "title": seeds.text(),
        "description": seeds.text() + seeds.hidden(), "level": seeds.mobile(),
        "address": seeds.address(), "organisation_name": f"某店 {seeds.mobile()}",
        "void_reason": seeds.text(),
        "attributes": orjson.dumps({"note": seeds.text(), seeds.mobile(): int(seeds.mobile())}).decode(),
        **changes,
    }  # fmt: skip
    return encode_frame(
        rows.with_columns(
            person.alias("persons"),
            photo.alias("photos"),
            *(pl.lit(text).alias(name) for name, text in values.items()),
        )
    )


def send_by_http(world: World, seeds: Seeds, answers: Answers) -> dict[str, Any]:
    """Returns an event that was taken."""

    def post(
        body: Any, content_type: str = "application/json", path: str = "/v1/events", **headers: str
    ) -> None:
        content = body if isinstance(body, bytes) else orjson.dumps(body)
        given = {"Authorization": f"Bearer {world.key}", "Content-Type": content_type, **headers}
        answers.keep(world.client.post(path, content=content, headers=given))

    good = personal(world, seeds)
    post(good)
    post(good)  # a redelivery
    post(good | {"description": seeds.text()})  # the same id with other content
    post([personal(world, seeds, matter_code="NO-SUCH"), personal(world, seeds, grid_code="440704001001999")])
    post(cloud_event(personal(world, seeds)), "application/cloudevents+json")
    post([cloud_event(personal(world, seeds)) for _ in range(2)], "application/cloudevents-batch+json")
    for key in ("wx_openid_1", f"tel:{seeds.mobile()}", seeds.mobile(), seeds.id()):
        post(personal(world, seeds) | {"actor": with_own_key(seeds, key)})
    post(json.dumps(personal(world, seeds)).encode())  # nothing but ASCII
    post(json.dumps(personal(world, seeds)).encode("utf-16"))
    post(gzip.compress(orjson.dumps([personal(world, seeds)])), **{"Content-Encoding": "gzip"})
    post(
        b"\n".join(
            [orjson.dumps(personal(world, seeds)), b'{"description": "' + seeds.id().encode(), b"", b"7"]
        ),
        "application/x-ndjson",
    )
    # everything that is refused
    for changes in (
        {"event_id": seeds.id()},
        {"case_id": seeds.mobile()},
        {"submission_id": seeds.id()},
        {"grid_code": seeds.id()},
        {"channel": seeds.mobile()},
        {"event_type": seeds.id()},
        {"occurred_at": seeds.id()},
        {"matter_code": seeds.id()},
        {"source": seeds.mobile()},
        {seeds.id(): 1},
        {"actor": {"type": seeds.id()}},
        {"actor": {"type": "citizen", "phone": [seeds.mobile()]}},
        {"persons": [{"role": seeds.id()}]},
        {"location": {"lon": seeds.mobile(), "lat": 1, "crs": seeds.id()}},
        {"photos": [{"sha256": seeds.id()}]},
        {"organisation": {seeds.id(): seeds.mobile()}},
        {"attributes": {seeds.id(): {seeds.mobile(): 1}}},
        {"title": seeds.text() * 5},
    ):
        post(personal(world, seeds) | changes)
    post(b'[{"description": "' + seeds.text().encode())
    post(seeds.text().encode(), "application/x-ndjson")
    post(b"\xff\xfe" + seeds.id().encode())
    post(seeds.id().encode(), seeds.id())
    post(b"x" * 6_000_000 + seeds.id().encode())
    post(gzip.compress(seeds.text().encode())[:-6], **{"Content-Encoding": "gzip"})
    post(
        personal(world, seeds),
        **{"X-Request-Id": seeds.id(), "User-Agent": seeds.id(), "Traceparent": seeds.mobile()},
    )
    post(personal(world, seeds), Authorization=f"Bearer {seeds.id()}")
    post(personal(world, seeds), path=f"/v1/events?key={seeds.mobile()}")
    post(personal(world, seeds), path="/v1/events:validate")
    post(personal(world, seeds, matter_code=seeds.mobile()), path="/v1/events:validate")
    for path in (
        f"/v1/events/{SOURCE}/{seeds.id()}",
        f"/v1/events/{seeds.mobile()}/x",
        f"/v1/cases/{seeds.id()}",
        f"/v1/kpi?by={seeds.id()}",
        f"/v1/kpi?from={seeds.mobile()}",
        f"/v1/kpi?{seeds.id()}=1",
        f"/v1/rejections?reason={seeds.id()}",
        f"/v1/rejections?limit={seeds.mobile()}",
        f"/{seeds.id()}",
        f"/v1/live/search?q={seeds.id()}",
    ):
        answers.keep(world.client.get(path, headers={"X-Request-Id": seeds.id()}))
    for path in (
        f"/v1/events/{SOURCE}/{good['event_id']}",
        f"/v1/cases/{good['case_id']}",
        "/v1/rejections?limit=1000",
    ):
        answers.keep(world.client.get(path))
    return good


def send_to_kafka(world: World, seeds: Seeds) -> tuple[int, str]:
    """Direct records, for the pipeline to clean: good, rejected, malformed. Returns their number, and the id
    of one that is quarantined."""
    name = {"content-type": b"application/x-ndjson"}
    arrow = {"content-type": ARROW.encode(), "schema-version": b"1"}
    number, mobile = seeds.wide()
    wide = f'{{"id_number": "{number}", "note": "{mobile}", "name": "{NAME}"}}'
    ascii_only = seeds.escaped(f"{full_width(seeds.id())}，{PLATES[0]}，{seeds.hidden()}")
    broken = b'{"event_id": "x", "description": "' + seeds.text().encode()
    refused = personal(world, seeds) | {seeds.id(): 1}
    records = [
        (orjson.dumps(personal(world, seeds)), name, GRID[:12].encode()),
        (orjson.dumps(personal(world, seeds, matter_code="NO-SUCH")), name, GRID[:12].encode()),
        (orjson.dumps(personal(world, seeds, event_id=seeds.id())), name, GRID[:12].encode()),
        (orjson.dumps(refused), name, seeds.id().encode()),
        (broken, name, None),
        (seeds.text().encode(), None, None),
        (full_width(seeds.id()).encode(), name, None),
        (b"\xff\xfe" + seeds.id().encode() + b"\x00", name, None),
        (orjson.dumps(personal(world, seeds)), {"content-type": seeds.id().encode()}, None),
        (seeds.id().encode(), {seeds.mobile(): seeds.id().encode()}, seeds.mobile().encode()),
        (b"ARROW1" + seeds.text().encode(), {"content-type": b"application/vnd.apache.arrow.stream"}, None),
        (orjson.dumps(personal(world, seeds) | {"actor": with_own_key(seeds, "wx_openid_2")}), name, None),
        (orjson.dumps(personal(world, seeds) | {"actor": with_own_key(seeds, seeds.mobile())}), name, None),
        (orjson.dumps(personal(world, seeds) | {"actor": {"type": "citizen", "name": [NAME]}}), name, None),
        (orjson.dumps(personal(world, seeds) | {"姓名": NAME, "地址": f"文昌花园3栋{ROOM}"}), name, None),
        (f"{{'event_id': 7, 'name': '{NAME}', 'address': '文昌花园3栋{ROOM}'}}".encode(), name, None),
        *[(f"{{'event_id': 7, 'address': '{seeds.address()}'}}".encode(), name, None) for _ in ADDRESSES],
        *[(orjson.dumps(personal(world, seeds)), name, None) for _ in ADDRESSES],
        *[(unclean_block(world, seeds), arrow, None) for _ in ADDRESSES],
        (json.dumps(personal(world, seeds) | {"event_type": 1}).encode(), name, None),
        (f'{{"event_id": "x", "description": "{ascii_only}", "name": "{escaped(NAME)}'.encode(), name, None),
        *[(wide.encode(code), name, None) for code in ("utf-16", "utf-16-le", "utf-16-be")],
        (unclean_block(world, seeds), arrow, None),
        (unclean_block(world, seeds, event_id=seeds.mobile()), arrow, None),
        (unclean_block(world, seeds, case_id=f"c-{seeds.id()}"), arrow, None),
        (unclean_block(world, seeds, grid_code=seeds.id()), arrow, None),
        (unclean_block(world, seeds, role=f"subject {seeds.mobile()} {seeds.id()}"), arrow, None),
        (unclean_block(world, seeds, sha256=seeds.id()), arrow, None),
        (unclean_block(world, seeds, crs=f"{seeds.card()} {PLATES[0]}"), arrow, None),
    ]
    before = _quarantined(world)
    last = world.event()  # of the same partition: when it is stored, all before it have been read
    world.produce([*records, (orjson.dumps(last), name, None)])
    world.wait_for(last["event_id"], 60.0)
    deadline = time.monotonic() + 60
    while _quarantined(world) < before + 6:
        assert time.monotonic() < deadline, _quarantined(world)
        time.sleep(0.2)
    return len(records), str(refused["event_id"])


def watch_the_page(world: World, seeds: Seeds, answers: Answers) -> None:
    """The stream that the live page hangs on, until it tells of a rejected report that is full of numbers."""
    report = personal(world, seeds, matter_code="NO-SUCH")
    headers = {"Authorization": f"Bearer {world.key}"}
    assert answers.keep(world.client.post("/v1/events", json=report, headers=headers)).status_code == 202
    told: list[str] = []
    deadline = time.monotonic() + 120
    with world.client.stream("GET", "/v1/live", timeout=60) as stream:
        for line in stream.iter_lines():
            told.append(line)
            if line.startswith("data:") and report["event_id"] in line:
                break
            assert time.monotonic() < deadline, "the page's stream did not tell of a rejected report"
    answers.texts.append("\n".join(told))


def _quarantined(world: World) -> int:
    return int(world.rows("SELECT count() FROM quarantine")[0][0])


def _until_taken(world: World) -> None:
    """The service goes on; a busy machine may answer 503 for a while."""
    deadline = time.monotonic() + 120
    good = world.event()
    headers = {"Authorization": f"Bearer {world.key}"}
    while (answer := world.client.post("/v1/events", json=good, headers=headers)).status_code != 202:
        assert answer.status_code in {429, 503}, answer.text
        assert time.monotonic() < deadline, world.service.log("store")
        time.sleep(1)


def run_commands(
    world: World, seeds: Seeds, answers: Answers, folder: Path, *, taken: dict[str, Any], refused: str
) -> None:
    """taken : an event that is stored; refused : id of one in quarantine."""
    place = ["--data-dir", str(world.settings.data_dir)]
    reference = folder / "reference"
    reference.mkdir()
    (reference / "persons.csv").write_text(
        "id_number,home_grid_code,name_masked,phone_masked\n"
        f"{seeds.id()},{GRID},陈**,\n{seeds.id()},{GRID},陈大文,{seeds.mobile()}\n{seeds.id()}x,{GRID},,\nx,{seeds.id()},,\n"
    )
    (reference / "staff.ndjson").write_text(
        orjson.dumps({"worker_key": seeds.mobile(), "kind": "full_time", "id_number": seeds.id()}).decode()
        + "\n{"
        + seeds.id()
    )
    write_places(reference, seeds)
    assert answers.command("reference", "load", str(reference), *place) == 1
    headless = folder / "headless"
    headless.mkdir()
    (headless / "persons.csv").write_text(f"{seeds.id()},{GRID},陈**,{seeds.mobile()}\n")
    assert answers.command("reference", "load", str(headless), *place) == 1
    enriched(world, seeds, answers)
    events = folder / "events.ndjson"
    lines = [
        orjson.dumps(personal(world, seeds)), orjson.dumps(personal(world, seeds, event_id=seeds.id())),
        seeds.text().encode(),
    ]  # fmt: skip
    events.write_bytes(b"\n".join(lines))
    url = ["--url", world.service.url]
    assert answers.command("send", str(events), *url, "--key", world.key, *place) == 1
    assert answers.command("validate", str(events), *url, "--key", world.key, *place) == 1
    events.unlink()
    mine = folder / "person"
    mine.write_text(f"{seeds.id()}\n{seeds.mobile()}\n")
    mine.chmod(0o600)
    assert answers.command("person", "find", "--from", str(mine), *place) == 0
    for request in (seeds.id(), f"R-{seeds.mobile()}", f"{seeds.mobile()} 2026"):
        refused_id = ("person", "erase", "--request", request, "--from", str(mine), "--yes")
        assert answers.command(*refused_id, *place) == 2
    assert answers.command("person", "erase", "--from", str(mine), "--yes", *place) == 0
    mine.unlink()
    for event_id in (taken["event_id"], refused):
        for how in ((), ("--json",)):
            assert answers.command("explain", SOURCE, event_id, *how, *url, *place) == 0, answers.texts[-1]
            assert event_id in answers.texts[-1]
    for how in ((), ("--json",)):
        assert answers.command("case", taken["case_id"], *how, *url, *place) == 0, answers.texts[-1]
    assert taken["event_id"] in answers.texts[-1]
    answers.command("explain", SOURCE, seeds.id(), *url, *place)
    answers.command("case", seeds.mobile(), *url, *place)
    answers.command("kpi", "--by", seeds.id(), *url, *place)
    for source in (seeds.id(), f"tel {seeds.mobile()}"):
        assert answers.command("keys", "add", "--source", source, *place) == 2
    assert answers.command("keys", "add", "--role", seeds.mobile(), *place) == 2
    assert answers.command("keys", "revoke", seeds.mobile(), *place) != 0


def write_places(folder: Path, seeds: Seeds) -> None:
    """Reference files of grids, units, firms and modes with numbers in every text and code of theirs."""

    def put(kind: str, *rows: dict[str, Any]) -> None:
        (folder / f"{kind}.ndjson").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))

    def words() -> str:
        return f"格 {seeds.mobile()} {full_width(seeds.id())} {seeds.id()}"

    start = "2020-01-01T00:00:00+08:00"
    grid = {"valid_from": start, "grid_type": "residential", "status": "active", "source_system": words()}
    grid["grid_name"] = words()
    codes = {
        "shelter_code": seeds.mobile(), "party_org_code": seeds.id(), "lead_worker_key": seeds.mobile(),
        "worker_keys": [seeds.id()], "department_route": {"SA": words()},
    }  # fmt: skip
    refused = [{"grid_code": f"{OWN_GRID[:-1]}{n}"} | {name: codes[name]} for n, name in enumerate(codes)]
    put("grids", grid | {"grid_code": OWN_GRID}, *(grid | row for row in refused))
    unit = {"unit_code": f"{OWN_GRID}-U001", "valid_from": start, "unit_name": words()}
    put("units", unit, unit | {"unit_head_key": seeds.mobile(), "source_system": words()})
    firm = {"name": words(), "kind": words(), "industry": words(), "staff_band": words()}
    firm |= {"source_system": words(), "grid_code": OWN_GRID}
    put("organisations", firm | {"org_code": "org-1"}, firm | {"org_code": seeds.id()})
    area = {"mode": "heat", "level": "IV", "area_code": "440785999"}  # no such town: in force nowhere
    put("modes", area | {"valid_from": start, "authority": words()})


def enriched(world: World, seeds: Seeds, answers: Answers) -> None:
    """Reports of the grid with numbers in its name, until one is stored with it; then what is shown of it."""
    deadline = time.monotonic() + 120
    headers = {"Authorization": f"Bearer {world.key}"}
    named = " UNION ALL ".join(
        f"SELECT event_id FROM {table} WHERE grid_code = {{grid:String}} AND grid_name LIKE '%[手机号]%'"
        for table in ("events", "rejections")
    )
    while not (found := world.rows(named, grid=OWN_GRID)):
        assert time.monotonic() < deadline, "no report is stored with the name of its grid"
        report = personal(world, seeds, grid_code=OWN_GRID)
        answers.keep(world.client.post("/v1/events", json=report, headers=headers))
        time.sleep(1)
    answers.keep(world.client.get(f"/v1/events/{SOURCE}/{found[0][0]}"))
    answers.keep(world.client.get("/v1/kpi?by=grid"))


class Needles:
    """Finds any of many texts; a look for their few beginnings first, since most places hold none of them."""

    def __init__(self, texts: set[str]) -> None:
        self.texts = sorted(texts)
        self._bytes = [text.encode() for text in self.texts]
        stems = sorted({text[:4].encode() for text in texts})
        self._stems = re.compile(b"|".join(map(re.escape, stems)))
        #: How the ones that were found are spelled, every digit a 9.
        self.found: set[str] = set()

    def within(self, content: bytes | str) -> bool:
        raw = content.encode("utf-8", "replace") if isinstance(content, str) else content
        if self._stems.search(raw) is None:
            return False
        found = {text for text, needle in zip(self.texts, self._bytes, strict=True) if needle in raw}
        self.found |= {re.sub(r"\d", "9", text) for text in found}
        return bool(found)


def search_files(folder: Path, needles: Needles) -> tuple[int, list[str]]:
    """(files searched, those that hold a needle), whatever their format."""
    searched, bad = 0, []
    for path in folder.rglob("*"):
        try:
            if not path.is_file():
                continue
            content = path.read_bytes()
        except OSError:  # merged away meanwhile
            continue
        searched += 1
        if needles.within(content):
            bad.append(str(path))
    return searched, bad


def search_topic(world: World, needles: Needles) -> tuple[int, int, list[str]]:
    """(partitions, blocks of the gateway, bad ones), decoded and as bytes; direct records are not ours."""
    consumer = Consumer({"bootstrap.servers": world.bootstrap(), "group.id": "searcher", "log_level": 0})
    topic, bad, records, blocks = world.settings.topic, [], 0, 0
    partitions = range(world.settings.partitions)
    consumer.assign([TopicPartition(topic, part, 0) for part in partitions])
    silent = 0
    while silent < 6:
        message = consumer.poll(0.5)
        silent = silent + 1 if message is None else 0
        if message is None or message.error() is not None:
            continue
        records += 1
        headers, value = dict(message.headers() or []), message.value() or b""
        if headers.get("via") != HEADERS["via"]:
            continue
        blocks += 1
        text = f"{decode_block(value).to_dicts()} {headers} {message.key()!r}"
        if needles.within(text) or needles.within(value):
            bad.append(f"{message.partition()}/{message.offset()}")
    consumer.close()
    assert records > blocks > 10
    return len(partitions), blocks, bad


def search_store(client: Client, needles: Needles) -> tuple[int, int, list[str]]:
    """(tables, rows, tables that hold a needle): every column of every row, whatever its type, of every
    database, the engine's own logs included; of what it makes up when asked, where it repeats statements."""
    tables = client.query(
        "SELECT database, name FROM system.tables WHERE engine NOT LIKE '%View' "
        "AND (engine NOT LIKE 'System%' OR database = 'system' AND name IN {told:Array(String)}) "
        "ORDER BY database, name",
        {"told": list(_ENGINE_TELLS)},
    ).result_rows
    rows, bad = 0, []
    for database, name in tables:
        table = f"`{database}`.`{name}`"
        texts = client.query(f"SELECT toString(tuple(*)) FROM {table}").result_rows
        rows += len(texts)
        if any(needles.within(text) for (text,) in texts):
            bad.append(table)
    return len(tables), rows, bad


def test_no_personal_number_is_left_anywhere(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seeds, answers = Seeds(), Answers()
    taken = send_by_http(world, seeds, answers)
    direct, refused = send_to_kafka(world, seeds)
    watch_the_page(world, seeds, answers)
    run_commands(world, seeds, answers, tmp_path, taken=taken, refused=refused)
    _until_taken(world)
    metrics = world.client.get("/metrics").text
    needles = Needles(seeds.spellings)
    assert {202, 400, 401, 404, 413, 415, 422} <= answers.statuses

    # the search itself finds what is there
    probe = tmp_path / "probe"
    probe.mkdir()
    (probe / "file").write_text(f"…{needles.texts[-1]}…")
    assert search_files(probe, needles) == (1, [str(probe / "file")])
    needles.found.clear()

    with world.store() as client:
        elsewhere = Needles({"a needle in another database"})
        client.command("CREATE DATABASE elsewhere")
        client.command("CREATE TABLE elsewhere.probe (x Array(String)) ENGINE = Log")
        client.insert("elsewhere.probe", [[elsewhere.texts]], column_names=["x"])
        assert search_store(client, elsewhere)[2] == ["`elsewhere`.`probe`"]
        client.command("DROP DATABASE elsewhere SYNC")
        assert client.query("SELECT count() FROM events").result_rows[0][0] > 5
        assert client.query("SELECT count() FROM rejections").result_rows[0][0] >= 3
        assert client.query("SELECT count() FROM quarantine").result_rows[0][0] >= 6
        tables, rows, bad_tables = search_store(client, needles)
        marks = " AND ".join(
            f"position(ifNull(description, ''), '{mark}') > 0"
            for mark in ("[身份证号]", "[手机号]", "[银行卡号]", "[车牌号]")
        )
        shown = sum(
            int(client.query(f"SELECT count() FROM {table} WHERE {marks}").result_rows[0][0])
            for table in ("events", "rejections")
        )
        assert shown >= 2  # the texts are there, without the numbers
    partitions, blocks, bad_records = search_topic(world, needles)
    bad_answers = [text[-300:] for text in answers.texts if needles.within(text)]
    bad_metrics = [metrics] if needles.within(metrics) else []
    printed = "".join(world.service.output)  # by `gridpipe up` itself and whatever its children say to it
    assert "gridpipe is ready" in printed
    bad_output = [printed] if needles.within(printed) else []
    files, bad_files = search_files(world.settings.data_dir, needles)
    temporary, bad_temporary = search_files(world.settings.data_dir.parents[1] / "temporary", needles)
    environment = [
        str(process.pid)
        for process in world.service.children().values()
        if needles.within(f"{process.environ()} {process.cmdline()}")
    ]
    places = rows + partitions + blocks + len(answers.texts) + 2 + files + temporary
    bad = bad_tables + bad_records + bad_answers + bad_files + bad_temporary + bad_metrics + bad_output
    with capsys.disabled():
        print(
            f"\npersonal data: {seeds.taken} fake numbers in {len(needles.texts)} spellings by {direct} "
            f"direct records and {len(answers.texts)} calls; {places} places searched ({rows} rows of "
            f"{tables} tables, {blocks} blocks in {partitions} partitions, {len(answers.texts)} answers, "
            f"{files + temporary} files, metrics, output): {len(bad)} leaks",
            file=sys.stderr,  # the other stream of a test process beside others is lost
        )
    assert bad_tables == [], str(sorted(needles.found))
    assert bad_records == [], str(sorted(needles.found))
    assert bad_answers == [], str(sorted(needles.found))
    assert bad_metrics == [], str(sorted(needles.found))
    assert bad_output == [], str(sorted(needles.found))
    assert bad_files == [], str(sorted(needles.found))
    assert bad_temporary == [], str(sorted(needles.found))
    assert environment == []


def test_no_core_dump_would_hold_them(world: World) -> None:
    for role, process in world.service.children().items():
        if role != "tansu":
            assert process.rlimit(4) == (0, 0), role  # RLIMIT_CORE
