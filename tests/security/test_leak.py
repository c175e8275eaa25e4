"""No personal number anywhere: known fake ones go in by every way, then all that was written is searched."""

from __future__ import annotations

import gzip
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from clickhouse_connect.driver.client import Client
from confluent_kafka import Consumer, TopicPartition

from pipeline.ingest.blocks import decode_block
from tests.e2e.service import gridpipe
from tests.hostile.world import GRID, SOURCE, World, open_world
from tests.security.fakes import fake_card, fake_id, fake_mobile, full_width

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

_IN_THE_ENVELOPE = {"event_id", "source", "case_id", "event_type", "occurred_at"}
PLATES = ("粤J8K2M7", "粤JD12345")


@dataclass
class Seeds:
    """Numbers that went in, and every spelling of them that must not be found."""

    taken: int = 0
    spellings: set[str] = field(default_factory=set)

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

    def text(self) -> str:
        """A description in which people hide numbers in every way they know."""
        number, mobile, card, spaced = self.id(), self.mobile(), self.card(), self.id()
        self._keep(*PLATES)
        return (
            f"身份证{number}，电话{mobile[:3]}-{mobile[3:7]}-{mobile[7:]}、＋８６{full_width(self.mobile())}，"
            f"卡号{' '.join(card[at : at + 4] for at in range(0, 16, 4))}，{full_width(self.id())}，"
            f"{spaced[:6]} {spaced[6:14]} {spaced[14:]}，车牌{PLATES[0]}、{full_width(PLATES[1])}"
        )


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
        actor={"type": "citizen", "id_number": seeds.id(), "phone": seeds.mobile(), "name": "陈大文"},
        persons=[{"id_number": seeds.id(), "role": "subject"}, {"key": seeds.id(), "role": "contact"}],
        title=seeds.text(),
        description=seeds.text(),
        location={
            "lon": 113.1,
            "lat": 22.57,
            "crs": "wgs84",
            "address": f"文昌花园3栋2单元501室 {seeds.mobile()}",
        },
        organisation={"name": f"某店 {seeds.mobile()}"},
        attributes={"note": seeds.text(), seeds.mobile(): 1, "number": int(seeds.mobile())},
        **changes,
    )


def send_by_http(world: World, seeds: Seeds, answers: Answers) -> None:
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
    plain = personal(world, seeds)
    cloud = {
        "specversion": "1.0", "id": plain["event_id"], "source": SOURCE, "subject": plain["case_id"],
        "type": "cn.jiangmen.grid.reported.v1", "time": plain["occurred_at"],
        "data": {name: value for name, value in plain.items() if name not in _IN_THE_ENVELOPE},
    }  # fmt: skip
    post(cloud, "application/cloudevents+json")
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


def send_to_kafka(world: World, seeds: Seeds) -> int:
    """Direct records, for the pipeline to clean: good, rejected, malformed. Returns their number."""
    name = {"content-type": b"application/x-ndjson"}
    broken = b'{"event_id": "x", "description": "' + seeds.text().encode()
    records = [
        (orjson.dumps(personal(world, seeds)), name, GRID[:12].encode()),
        (orjson.dumps(personal(world, seeds, matter_code="NO-SUCH")), name, GRID[:12].encode()),
        (orjson.dumps(personal(world, seeds, event_id=seeds.id())), name, GRID[:12].encode()),
        (orjson.dumps(personal(world, seeds) | {seeds.id(): 1}), name, seeds.id().encode()),
        (broken, name, None),
        (seeds.text().encode(), None, None),
        (full_width(seeds.id()).encode(), name, None),
        (b"\xff\xfe" + seeds.id().encode() + b"\x00", name, None),
        (orjson.dumps(personal(world, seeds)), {"content-type": seeds.id().encode()}, None),
        (seeds.id().encode(), {seeds.mobile(): seeds.id().encode()}, seeds.mobile().encode()),
        (b"ARROW1" + seeds.text().encode(), {"content-type": b"application/vnd.apache.arrow.stream"}, None),
    ]
    before = _quarantined(world)
    world.produce([(value, headers, key) for value, headers, key in records])
    deadline = time.monotonic() + 60
    while _quarantined(world) < before + 6:
        assert time.monotonic() < deadline, _quarantined(world)
        time.sleep(0.2)
    return len(records)


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


def run_commands(world: World, seeds: Seeds, answers: Answers, folder: Path) -> None:
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
    assert answers.command("reference", "load", str(reference), *place) == 1
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
    assert answers.command("person", "erase", "--from", str(mine), "--yes", *place) == 0
    mine.unlink()
    answers.command("explain", SOURCE, seeds.id(), *url, *place)
    answers.command("case", seeds.mobile(), *url, *place)
    answers.command("kpi", "--by", seeds.id(), *url, *place)
    assert answers.command("keys", "add", "--source", seeds.id(), *place) == 2


class Needles:
    """Finds any of many texts; a look for their few beginnings first, since most places hold none of them."""

    def __init__(self, texts: set[str]) -> None:
        self.texts = sorted(texts)
        self._bytes = [text.encode() for text in self.texts]
        stems = sorted({text[:4].encode() for text in texts})
        self._stems = re.compile(b"|".join(map(re.escape, stems)))

    def within(self, content: bytes | str) -> bool:
        raw = content.encode("utf-8", "replace") if isinstance(content, str) else content
        return self._stems.search(raw) is not None and any(needle in raw for needle in self._bytes)


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
        if b"arrow" not in (headers.get("content-type") or b"") or value.startswith(b"ARROW1"):
            continue
        blocks += 1
        text = f"{decode_block(value).to_dicts()} {headers} {message.key()!r}"
        if needles.within(text) or needles.within(value):
            bad.append(f"{message.partition()}/{message.offset()}")
    consumer.close()
    assert records > blocks > 10
    return len(partitions), blocks, bad


def search_store(client: Client, database: str, needles: Needles) -> tuple[int, int, list[str]]:
    """(tables, rows, tables that hold a needle): every column of every row, whatever its type."""
    tables = client.query(
        "SELECT name FROM system.tables WHERE database = {database:String} AND engine LIKE '%MergeTree'",
        {"database": database},
    ).result_rows
    rows, bad = 0, []
    for (table,) in tables:
        texts = client.query(f"SELECT toString(tuple(*)) FROM {table}").result_rows
        rows += len(texts)
        if any(needles.within(text) for (text,) in texts):
            bad.append(table)
    return len(tables), rows, bad


def test_no_personal_number_is_left_anywhere(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seeds, answers = Seeds(), Answers()
    send_by_http(world, seeds, answers)
    direct = send_to_kafka(world, seeds)
    run_commands(world, seeds, answers, tmp_path)
    _until_taken(world)
    metrics = world.client.get("/metrics").text
    needles = Needles(seeds.spellings)
    assert {202, 400, 401, 404, 413, 415, 422} <= answers.statuses

    # the search itself finds what is there
    probe = tmp_path / "probe"
    probe.mkdir()
    (probe / "file").write_text(f"…{needles.texts[-1]}…")
    assert search_files(probe, needles) == (1, [str(probe / "file")])

    with world.store() as client:
        assert client.query("SELECT count() FROM events").result_rows[0][0] > 5
        assert client.query("SELECT count() FROM rejections").result_rows[0][0] >= 3
        assert client.query("SELECT count() FROM quarantine").result_rows[0][0] >= 6
        tables, rows, bad_tables = search_store(client, world.settings.database, needles)
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
    files, bad_files = search_files(world.settings.data_dir, needles)
    temporary, bad_temporary = search_files(world.settings.data_dir.parents[1] / "temporary", needles)
    environment = [
        str(process.pid)
        for process in world.service.children().values()
        if needles.within(f"{process.environ()} {process.cmdline()}")
    ]
    places = rows + partitions + blocks + len(answers.texts) + 1 + files + temporary
    with capsys.disabled():
        print(
            f"\npersonal data: {seeds.taken} fake numbers in {len(needles.texts)} spellings by {direct} "
            f"direct records and {len(answers.texts)} calls; {places} places searched ({rows} rows of "
            f"{tables} tables, {blocks} blocks in {partitions} partitions, {len(answers.texts)} answers, "
            f"{files + temporary} files, metrics): "
            f"{len(bad_tables + bad_records + bad_answers + bad_files + bad_temporary + bad_metrics)} leaks"
        )
    assert bad_tables == []
    assert bad_records == []
    assert bad_answers == []
    assert bad_metrics == []
    assert bad_files == []
    assert bad_temporary == []
    assert environment == []


def test_no_core_dump_would_hold_them(world: World) -> None:
    for role, process in world.service.children().items():
        if role != "tansu":
            assert process.rlimit(4) == (0, 0), role  # RLIMIT_CORE
