"""Rights of a person: erased everywhere, proven, never back; keys rotated; retention by the tables."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import typer
from clickhouse_connect.driver.client import Client
from typer.testing import CliRunner

from pipeline.cli import person as person_commands
from pipeline.contract.privacy import Privacy, active_version, mask_phone, secret_versions
from pipeline.contract.rotation import activate, retire, rotate
from pipeline.errors import ConfigurationError, PermanentError
from pipeline.process.flow import Block, PartitionState, Rules, process_block
from pipeline.process.records import Record
from pipeline.read.cases import case
from pipeline.read.kpi import kpi
from pipeline.read.names import Areas, KpiNames
from pipeline.reference import load as load_module
from pipeline.reference import read
from pipeline.reference.erased import PERSONAL
from pipeline.reference.load import load_directory
from pipeline.reference.snapshot import Reference
from pipeline.settings import Settings
from pipeline.sink.tables import Extent, Sink
from pipeline.store import retention
from pipeline.store.cases import refresh_cases
from pipeline.store.erase import Evidence, entomb, erase, mark_of, scan
from pipeline.store.erasure_list import read_list, stored_erasures, write_list
from pipeline.store.retention import (
    DETAILS,
    LINKS,
    Retention,
    apply_retention,
    forget_emergency_facts,
    forget_ended,
)
from tests.conftest import new_client
from tests.integration.worker_world import GRID, NOON, WORKER, catalogues, event, load_reference, record
from tests.security.fakes import fake_id, fake_mobile

INC = 1_777_600_000_000
MINE, OTHERS, PHONE = fake_id(1), fake_id(2), fake_mobile(1)
PRIVACY = Privacy(bytes(range(1, 33)))
ERASED_AT = NOON + timedelta(days=2)
CITIZEN = {"type": "citizen", "name": "陈小明"}
#: The source has a key of its own for the person.
WITH_OWN_KEY: dict[str, Any] = {
    "actor": {**CITIZEN, "key": "wx_openid_1", "id_number": MINE, "phone": PHONE},
    "organisation": {"name": "陈小明小吃店"},
    "submission_id": "wx-77",
    "attributes": {"level": "报陈主任", "reason": "重复", "note": "x"},
}


def load_persons(client: Client, directory: Path, privacy: Privacy = PRIVACY) -> Any:
    load_reference(client, directory / "places")
    persons = directory / "persons"
    persons.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"id_number": number, "home_grid_code": GRID}) for number in (MINE, OTHERS)]
    (persons / "persons.ndjson").write_text("\n".join(lines) + "\n")
    return load_directory(client, persons, privacy)


def rules_of(client: Client, privacy: Privacy = PRIVACY) -> Rules:
    settings = Settings()
    return Rules(Reference.load(client, tolerance_m=200.0), catalogues(), privacy, settings)


def records() -> list[Record]:
    """Reports by the person, about it, by phone, rejected, under a key of the source beside the numbers; of
    somebody else; of staff."""
    hotline: dict[str, Any] = {"channel": "hotline_12345"}
    by_me = {"actor": {**CITIZEN, "id_number": MINE}, "description": "我家门口有积水"}
    about_me = {
        "persons": [{"id_number": MINE, "role": "subject"}, {"id_number": OTHERS, "role": "contact"}],
        "matter_code": "PS-02",
        "channel": "pingantong",
        "title": "独居老人",
    }
    return [
        record(0, event(1, **hotline, **by_me)),
        record(1, event(2, **about_me)),
        record(2, event(3, **hotline, actor={**CITIZEN, "phone": PHONE})),
        record(3, event(4, **{**hotline, **by_me}, minutes=1) | {"matter_code": "NO-SUCH"}),
        record(4, event(5, **hotline, actor={**CITIZEN, "id_number": OTHERS}, description="路灯坏了")),
        record(5, event(6)),
        record(6, event(7, event_type="ACCEPTED", case_id="c1", minutes=9, description="老人陈小明已送医")),
        record(7, event(9, **hotline, **WITH_OWN_KEY)),
        record(8, event(10, **hotline, actor={**CITIZEN, "key": "wx_openid_1", "phone": PHONE})),
    ]


def store(client: Client, rules: Rules, given: list[Record], inc: int = INC) -> None:
    block = Block(0, given)
    result = process_block(block, PartitionState.empty(rules.settings), rules)
    Sink(client, "grid.events").write(
        result, inc=inc, blocks=[Extent(0, block.lo, block.hi)], rules=rules.digest
    )
    refresh_cases(client, inc, [(0, block.lo, block.hi)])


def official(client: Client) -> Any:
    names = KpiNames(Areas.load(Settings().catalogue_dir), catalogues(), client)
    return [
        kpi(
            client,
            by=by,
            from_=NOON - timedelta(days=1),
            to=ERASED_AT,
            as_of=ERASED_AT,
            view="cohort",
            names=names,
        )
        for by in ("city", "grid", "matter")
    ]


def rows(client: Client, query: str) -> list[Any]:
    return [list(row) for row in client.query(query).result_rows]


def erase_me(client: Client, privacy: Privacy = PRIVACY) -> Evidence:
    keys = privacy.keys_of(id_numbers=[MINE], phones=[PHONE])
    return erase(client, str(client.database), keys, request_id="R-1", at=ERASED_AT)


# --- erasure


#: Raised by the person, of its own case that was accepted.
RAISED: dict[str, Any] = event(
    12,
    event_type="ESCALATED",
    case_id="c1",
    minutes=12,
    channel="hotline_12345",
    actor={**CITIZEN, "id_number": MINE},
    attributes={"level": "报陈主任"},
)


def test_person_is_gone_everywhere_and_figures_stay(clickhouse: Client, tmp_path: Path) -> None:
    load_persons(clickhouse, tmp_path)
    store(clickhouse, rules_of(clickhouse), [*records(), record(9, RAISED)])
    before, keys = official(clickhouse), list(PRIVACY.keys_of(id_numbers=[MINE], phones=[PHONE]))
    there = scan(clickhouse, str(clickhouse.database), keys)
    assert {table: count for table, count in there.items() if count} == {
        "events": 6, "rejections": 1, "ref_persons": 1,
    }  # fmt: skip
    evidence = erase_me(clickhouse)
    assert evidence.complete
    assert evidence.found == there
    assert set(evidence.mutations) == {"events", "rejections", "ref_persons"}
    assert len(evidence.tables_scanned) >= 15
    assert not any(evidence.left.values())
    assert not any(key in json.dumps(evidence.as_dict()) for key in [*keys, MINE, PHONE])
    assert official(clickhouse) == before
    for number in (1, 2, 3, 9, 10):
        (row,) = rows(
            clickhouse,
            "SELECT actor_name, actor_phone, title, description, address, photos, attributes, lon "
            f"FROM events FINAL WHERE event_id = 'e{number}'",
        )
        kept_name = number == 2  # the grid worker who reported is somebody else
        assert [value or None for value in row[2 if kept_name else 0 :]] == [None] * (6 if kept_name else 8)
    for trace in ("wx_openid_1", "wx-77", "陈小明", "报陈", "199****", "积水"):
        left = scan(clickhouse, str(clickhouse.database), [trace])
        assert not any(left.values()), (trace, left)
    (persons,) = rows(clickhouse, "SELECT persons.key FROM events FINAL WHERE event_id = 'e2'")
    assert persons == [[PRIVACY.person_key(OTHERS)]]
    (other,) = rows(clickhouse, "SELECT actor_key, description FROM events FINAL WHERE event_id = 'e5'")
    assert other == [PRIVACY.person_key(OTHERS), "路灯坏了"]
    (worker,) = rows(clickhouse, "SELECT actor_key FROM events FINAL WHERE event_id = 'e2'")
    assert worker == ["w-0001"]
    # what staff wrote of the case goes, who wrote it stays
    (told,) = rows(clickhouse, "SELECT actor_key, description, lon FROM events FINAL WHERE event_id = 'e7'")
    assert told == [WORKER, None, None]
    assert (evidence.cases, evidence.words) == (6, {"events": 7, "rejections": 1})
    (elsewhere,) = rows(clickhouse, "SELECT lon FROM events FINAL WHERE event_id = 'e6'")
    assert elsewhere != [None]


@pytest.mark.parametrize(("given", "kept"), [("报陈主任", None), ("district", "district"), (2, "2")])
def test_a_case_keeps_of_a_level_what_cannot_name_anybody(
    clickhouse: Client, tmp_path: Path, given: str | int, kept: str | None
) -> None:
    """Nothing is erased of a case, and nothing of it ends."""
    load_persons(clickhouse, tmp_path)
    raised = RAISED | {"attributes": {"level": given}}
    store(clickhouse, rules_of(clickhouse), [*records(), record(9, raised)])
    found = case(clickhouse, "c1", now=ERASED_AT)
    assert found is not None
    assert (found["state"], found["level"]) == ("ESCALATED", kept)
    assert [one["level"] for one in found["events"]] == [None, None, kept]
    assert rows(clickhouse, "SELECT level FROM events WHERE event_id = 'e12'") == [[str(given)]]


EVERYTHING = [
    f"SELECT * EXCEPT(_inc, _blk_lo, _blk_hi, stored_at) FROM {table} FINAL ORDER BY _part, _off, _idx"
    for table in ("events", "rejections", "duplicates")
]


def test_own_key_beside_a_number_hides_nobody(clickhouse: Client, tmp_path: Path) -> None:
    """A person who is known by the number alone is found under the key that the source gave, too."""
    load_persons(clickhouse, tmp_path)
    store(clickhouse, rules_of(clickhouse), [record(0, event(9, channel="hotline_12345", **WITH_OWN_KEY))])
    database, keys = str(clickhouse.database), PRIVACY.keys_of(id_numbers=[MINE])
    evidence = erase(clickhouse, database, keys, request_id="R-4", at=ERASED_AT)
    assert (evidence.found["events"], evidence.complete) == (1, True)
    (row,) = rows(clickhouse, "SELECT actor_key, actor_name, actor_phone, description FROM events FINAL")
    assert row == [None] * 4


def test_phone_alone_tells_what_it_cannot_find(clickhouse: Client, tmp_path: Path) -> None:
    """Rows under the identity number or a worker's key show the masked phone: they are told, not erased."""
    load_persons(clickhouse, tmp_path)
    staff = {"type": "full_time", "key": WORKER, "phone": PHONE}
    given = [*records(), record(9, event(11, actor=staff))]
    store(clickhouse, rules_of(clickhouse), given)
    database, keys = str(clickhouse.database), PRIVACY.keys_of(phones=[PHONE])
    masks = [mask_phone(PHONE)]
    evidence = erase(clickhouse, database, keys, request_id="R-5", at=ERASED_AT, masks=masks)
    assert (evidence.found["events"], evidence.complete) == (2, True)
    assert evidence.as_dict()["doubtful"] == {"events": 2}
    keys = PRIVACY.keys_of(id_numbers=[MINE], phones=[PHONE])
    evidence = erase(clickhouse, database, keys, request_id="R-6", at=ERASED_AT, masks=masks)
    assert evidence.doubtful == {"events": 1}
    (worker,) = rows(clickhouse, "SELECT actor_key, outcome FROM events FINAL WHERE event_id = 'e11'")
    assert worker == [WORKER, "admitted"]


def test_replay_brings_nothing_back(clickhouse: Client, tmp_path: Path) -> None:
    """The log still holds the records: a worker that reads them again writes them without the person."""
    load_persons(clickhouse, tmp_path)
    store(clickhouse, rules_of(clickhouse), records())
    decided = rows(clickhouse, "SELECT event_id, outcome, reasons FROM events FINAL ORDER BY event_id")
    figures = official(clickhouse)
    fingerprints = "SELECT count() FROM events FINAL WHERE l2_hi IS NOT NULL"
    reports = rows(clickhouse, fingerprints)[0][0]
    erase_me(clickhouse)
    erased = [rows(clickhouse, query) for query in EVERYTHING]
    for table in ("events", "rejections", "duplicates", "case_events", "cases"):
        clickhouse.command(f"TRUNCATE TABLE {table}")
    # what staff wrote comes in a block of its own, which names nobody
    state, rules = PartitionState.empty(Settings()), rules_of(clickhouse)
    for part in (records()[:6], records()[6:7], records()[7:]):
        block = Block(0, part)
        result = process_block(block, state, rules)
        Sink(clickhouse, "grid.events").write(
            result, inc=INC + 1, blocks=[Extent(0, block.lo, block.hi)], rules=rules.digest
        )
        refresh_cases(clickhouse, INC + 1, [(0, block.lo, block.hi)])
    assert [rows(clickhouse, query) for query in EVERYTHING] == erased
    assert rows(clickhouse, fingerprints)[0][0] == reports - 5
    assert official(clickhouse) == figures
    keys = list(PRIVACY.keys_of(id_numbers=[MINE], phones=[PHONE]))
    assert not any(scan(clickhouse, str(clickhouse.database), keys).values())
    assert (
        rows(clickhouse, "SELECT event_id, outcome, reasons FROM events FINAL ORDER BY event_id") == decided
    )
    (text,) = rows(clickhouse, "SELECT description, actor_name FROM events FINAL WHERE event_id = 'e1'")
    assert text == [None, None]
    (other,) = rows(clickhouse, "SELECT actor_key FROM events FINAL WHERE event_id = 'e5'")
    assert other == [PRIVACY.person_key(OTHERS)]


def test_copies_with_other_content_bring_nothing_back(clickhouse: Client, tmp_path: Path) -> None:
    """They were received before the erasure and are read after it: quarantine keeps them for a clerk."""
    load_persons(clickhouse, tmp_path)
    erase_me(clickhouse)
    rewritten = [
        event(1, channel="hotline_12345", **WITH_OWN_KEY)
        | {"description": "我家门口有积水", "title": "积水"},
        event(
            2,
            channel="pingantong",
            persons=[{"id_number": number, "role": "subject"} for number in (MINE, OTHERS)],
        )
        | {"matter_code": "PS-02", "title": "独居老人陈小明"},
        event(5, channel="hotline_12345", actor={**CITIZEN, "id_number": OTHERS}, description="路灯又坏了"),
    ]
    late = (ERASED_AT - NOON).total_seconds() / 60 + 60
    again = event(1, minutes=late, channel="hotline_12345", actor={**CITIZEN, "id_number": MINE})
    copies = [record(9 + at, document) for at, document in enumerate([*rewritten, again])]
    store(clickhouse, rules_of(clickhouse), [*records(), *copies])
    query = "SELECT event_id, reason, payload FROM quarantine FINAL ORDER BY _off"
    found = rows(clickhouse, query)
    assert [row[:2] for row in found] == [[f"e{number}", "ID_CONFLICT"] for number in (1, 2, 5, 1)]
    mine = set(PRIVACY.keys_of(id_numbers=[MINE], phones=[PHONE]))
    for _, _, payload in found[:2]:
        assert not any(key in payload for key in mine)
        assert not any(word in payload for word in ("陈", "积水", "199****", "wx_openid_1", "wx-77", "独居"))
    first, second, other, later = (json.loads(payload) for _, _, payload in found)
    assert (first["case_id"], first["grid_code"], first["photos"]) == ("c1", GRID, [])
    assert second["persons"] == [{"key": PRIVACY.person_key(OTHERS), "role": "subject"}]
    assert (second["actor_key"], second["title"]) == (WORKER, None)
    assert (other["actor_key"], other["description"]) == (PRIVACY.person_key(OTHERS), "路灯又坏了")
    assert later["actor_key"] == PRIVACY.person_key(MINE)  # what comes after the erasure is lawful again


def test_what_comes_after_the_erasure_is_lawful_again(clickhouse: Client, tmp_path: Path) -> None:
    load_persons(clickhouse, tmp_path)
    erase_me(clickhouse)
    late = (ERASED_AT - NOON).total_seconds() / 60 + 60
    again = event(8, minutes=late, actor={**CITIZEN, "id_number": MINE}, channel="hotline_12345")
    store(clickhouse, rules_of(clickhouse), [record(0, again)])
    (row,) = rows(clickhouse, "SELECT actor_key, description FROM events FINAL WHERE event_id = 'e8'")
    assert row[0] == PRIVACY.person_key(MINE)
    assert row[1]


#: By the person and by staff, of a case that nobody had heard of when the erasure began.
ON_ITS_WAY = [
    event(20, case_id="c20", channel="hotline_12345", actor={**CITIZEN, "id_number": MINE}),
    event(21, event_type="ACCEPTED", case_id="c20", minutes=9, description="老人陈小明已送医"),
]


def test_cases_that_came_in_until_workers_knew_lose_their_texts_too(
    clickhouse: Client, tmp_path: Path
) -> None:
    load_persons(clickhouse, tmp_path)
    rules, database = rules_of(clickhouse), str(clickhouse.database)
    store(clickhouse, rules, records())
    known: list[Reference] = []

    def settle() -> None:
        if not known:  # by a worker that does not know yet
            store(clickhouse, rules, [record(20, ON_ITS_WAY[0]), record(21, ON_ITS_WAY[1])], INC + 1)
        known.append(Reference.load(clickhouse, tolerance_m=200.0, previous=known[-1] if known else None))

    keys = PRIVACY.keys_of(id_numbers=[MINE], phones=[PHONE])
    evidence = erase(clickhouse, database, keys, request_id="R-1", at=ERASED_AT, settle=settle)
    assert (evidence.complete, evidence.cases) == (True, 7)
    assert not any(scan(clickhouse, database, ["陈小明"]).values())
    received = pl.Series([ERASED_AT], dtype=pl.Datetime("ms", "UTC"))
    told = [one.erased.of_cases(pl.Series(["c20"]), received).tolist() for one in known]
    assert told == [[False], [True]], "workers were told of the further case, and were waited for"


def test_what_staff_write_after_the_erasure_stays(clickhouse: Client, tmp_path: Path) -> None:
    load_persons(clickhouse, tmp_path)
    rules, database = rules_of(clickhouse), str(clickhouse.database)
    store(clickhouse, rules, records())
    minutes = (ERASED_AT - NOON).total_seconds() / 60 + 60
    later = event(22, event_type="ARRIVED", case_id="c1", minutes=minutes, description="已清理")

    def settle() -> None:
        store(clickhouse, rules, [record(22, later)], INC + 1)

    keys = PRIVACY.keys_of(id_numbers=[MINE], phones=[PHONE])
    evidence = erase(clickhouse, database, keys, request_id="R-1", at=ERASED_AT, settle=settle)
    assert evidence.complete
    assert rows(clickhouse, "SELECT description FROM events WHERE event_id = 'e22'") == [["已清理"]]
    assert rows(clickhouse, "SELECT description FROM events WHERE event_id = 'e7'") == [[None]]


def test_evidence_names_no_mutation_of_somebody_else(clickhouse: Client, tmp_path: Path) -> None:
    load_persons(clickhouse, tmp_path)
    store(clickhouse, rules_of(clickhouse), records())

    def change(title: str) -> None:
        statement = f"ALTER TABLE events UPDATE title = '{title}' WHERE event_id = 'e5'"
        clickhouse.command(statement, settings={"mutations_sync": 2})

    change("before")
    keys = PRIVACY.keys_of(id_numbers=[MINE])
    evidence = erase(
        clickhouse,
        str(clickhouse.database),
        keys,
        request_id="R-1",
        at=ERASED_AT,
        settle=lambda: change("meanwhile"),
    )
    (own,) = rows(
        clickhouse,
        "SELECT arraySort(groupUniqArray(mutation_id)) FROM system.mutations "
        "WHERE database = currentDatabase() AND table = 'events' AND position(command, 'event_id') = 0",
    )
    assert [evidence.mutations["events"]] == own
    assert len(own[0]) == 2, "texts of its cases, then the person"


def test_loads_do_not_bring_a_person_back(clickhouse: Client, tmp_path: Path) -> None:
    load_persons(clickhouse, tmp_path)
    erase_me(clickhouse)
    report = load_persons(clickhouse, tmp_path / "again")
    (file,) = [one for one in report.files if one.kind == "persons"]
    assert (file.rows, file.erased, file.unchanged, file.stored) == (2, 1, 1, 0)
    assert file.fine
    reference = Reference.load(clickhouse, tolerance_m=200.0)
    assert reference.counts["persons"] == 1
    (key,) = rows(clickhouse, "SELECT DISTINCT person_key FROM ref_persons")
    assert key == [PRIVACY.person_key(OTHERS)]


def test_a_load_that_runs_during_an_erasure_says_so_and_the_next_night_deletes(
    clickhouse: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_reference(clickhouse, tmp_path / "places")
    directory = tmp_path / "people"
    directory.mkdir()
    person = {"id_number": MINE, "home_grid_code": GRID}
    staff = {"worker_key": "W9", "kind": "full_time", "district_code": GRID[:6], "id_number": MINE,
             "active_from": "2022-04-01T00:00:00+08:00"}  # fmt: skip
    for kind, row in (("persons", person), ("staff", staff)):
        (directory / f"{kind}.ndjson").write_text(json.dumps(row) + "\n")
    insert = load_module._Load._insert

    def erased_meanwhile(self: Any, *arguments: Any) -> None:
        entomb(clickhouse, PRIVACY.keys_of(id_numbers=[MINE]), self.load_id, ERASED_AT)
        insert(self, *arguments)

    monkeypatch.setattr(load_module._Load, "_insert", erased_meanwhile)
    for kind in ("persons", "staff"):
        (report,) = load_directory(clickhouse, directory, PRIVACY, kinds={kind}).files
        assert "1 persons were erased while this ran" in str(report.problem)
        clickhouse.command("TRUNCATE TABLE ref_erasures")  # as it was when the next load began
    monkeypatch.undo()
    entomb(clickhouse, PRIVACY.keys_of(id_numbers=[MINE]), "R-1", ERASED_AT + timedelta(hours=1))
    assert forget_ended(clickhouse, datetime.now(UTC)) == ["ref_persons", "ref_staff"]
    wait_for_mutations(clickhouse)
    assert rows(clickhouse, "SELECT count() FROM ref_persons") == [[0]]
    (left,) = rows(clickhouse, "SELECT person_key, key_version FROM ref_staff WHERE worker_key = 'W9'")
    assert left == [None, None]
    assert forget_ended(clickhouse, datetime.now(UTC)) == []
    assert load_directory(clickhouse, directory, PRIVACY).fine


def test_running_workers_learn_of_it(clickhouse: Client, tmp_path: Path) -> None:
    load_persons(clickhouse, tmp_path)
    before = Reference.load(clickhouse, tolerance_m=200.0)
    erase_me(clickhouse)
    after = Reference.load(clickhouse, tolerance_m=200.0, previous=before)
    assert after is not before
    assert len(after.erased) == 2
    assert after.counts["persons"] == 1
    assert Reference.load(clickhouse, tolerance_m=200.0, previous=after) is after


def test_erasing_twice_and_a_stranger_is_safe(clickhouse: Client, tmp_path: Path) -> None:
    load_persons(clickhouse, tmp_path)
    store(clickhouse, rules_of(clickhouse), records())
    assert erase_me(clickhouse).complete
    again = erase_me(clickhouse)
    assert again.complete
    assert not any(again.found.values())
    stranger = erase(
        clickhouse,
        str(clickhouse.database),
        PRIVACY.keys_of(id_numbers=[fake_id(99)]),
        request_id="R-2",
        at=ERASED_AT,
    )
    assert stranger.complete
    assert stranger.mutations == {}


@pytest.mark.parametrize("later", [timedelta(0), timedelta(hours=1)])
def test_a_request_is_completed_under_the_same_id(
    clickhouse: Client, tmp_path: Path, later: timedelta
) -> None:
    """The phone first, then the identity number, as the command advises: both are on the list."""
    load_persons(clickhouse, tmp_path)
    database, by_phone = str(clickhouse.database), PRIVACY.keys_of(phones=[PHONE])
    assert erase(clickhouse, database, by_phone, request_id="R-1", at=ERASED_AT).complete
    before = Reference.load(clickhouse, tolerance_m=200.0)
    by_id = PRIVACY.keys_of(id_numbers=[MINE])
    assert erase(clickhouse, database, by_id, request_id="R-1", at=ERASED_AT + later).complete
    after = Reference.load(clickhouse, tolerance_m=200.0, previous=before)
    assert after.erased.holds(pl.Series([*by_phone, *by_id])).all()
    assert after.counts["persons"] == 1
    report = load_persons(clickhouse, tmp_path / "again")
    assert [file.erased for file in report.files if file.kind == "persons"] == [1]
    assert not scan(clickhouse, database, list(by_id))["ref_persons"]


def test_nothing_is_deleted_unless_the_list_holds_the_person(clickhouse: Client, tmp_path: Path) -> None:
    """The store takes an insert under a token that it knows for done, whatever the rows."""
    load_persons(clickhouse, tmp_path)
    keys = PRIVACY.keys_of(id_numbers=[MINE])
    token = f"erase:{mark_of(keys, ERASED_AT)}"
    clickhouse.insert(
        "ref_erasures",
        [["another", 1, ERASED_AT, "R-0"]],
        column_names=["person_key", "key_version", "erased_at", "request_id"],
        settings={"async_insert": 0, "insert_deduplicate": 1, "insert_deduplication_token": token},
    )
    with pytest.raises(PermanentError, match="0 of 1"):
        erase(clickhouse, str(clickhouse.database), keys, request_id="R-1", at=ERASED_AT)
    assert scan(clickhouse, str(clickhouse.database), list(keys))["ref_persons"] == 1


@pytest.fixture
def command(
    clickhouse: Client, engine_path: Path, tmp_path: Path, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """command("erase", …): `gridpipe person` on the test's database, with residents in it; erases `MINE`."""
    database = str(clickhouse.database)
    load_persons(clickhouse, tmp_path / "reference", Privacy.load(secret, create=False))
    (tmp_path / "clickhouse").mkdir()
    monkeypatch.setenv("GRIDPIPE_DATABASE", database)
    monkeypatch.setattr("pipeline.store.client.connect", lambda *_, **__: new_client(engine_path, database))
    numbers = tmp_path / "numbers"
    numbers.write_text(MINE)
    numbers.chmod(0o600)
    app = typer.Typer()
    person_commands.register(app)
    of_me = {"erase": ["--yes", "--from", str(numbers)]}

    def run(name: str, *more: str) -> Any:
        place = ["--data-dir", str(tmp_path)]
        return CliRunner().invoke(app, ["person", name, *of_me.get(name, []), *more, *place])

    return run


def test_a_request_is_named_by_no_number_and_no_path(
    clickhouse: Client, tmp_path: Path, command: Callable[..., Any]
) -> None:
    """Its id stays in clear in tables and names the evidence."""
    for given in (MINE, f"R-{PHONE}", f"{PHONE} a", "../../outside", "a/b", "", "a" * 65, "申请1", "R-1\n"):
        result = command("erase", "--request", given)
        assert isinstance(result.exception, ConfigurationError), given  # which ends a command with 2
        assert "--request must be" in str(result.exception)
        assert MINE not in str(result.exception)
        assert PHONE not in str(result.exception)
    assert not (tmp_path / "evidence").exists()
    assert not [*tmp_path.parent.glob("outside*"), *tmp_path.parent.parent.glob("outside*")]
    assert rows(clickhouse, "SELECT count() FROM ref_erasures") == [[0]]
    assert rows(clickhouse, "SELECT uniqExact(person_key) FROM ref_persons") == [[2]]
    assert command("erase", "--request", "2026-0117").exit_code == 0
    assert [path.name for path in (tmp_path / "evidence").iterdir()] == ["2026-0117.json"]


def test_it_waits_for_workers_between_the_list_and_the_deletion(
    clickhouse: Client, tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[Any] = []

    def sleep(seconds: float) -> None:
        listed = rows(clickhouse, "SELECT uniqExact(person_key) FROM ref_erasures")
        stored = rows(clickhouse, "SELECT uniqExact(person_key) FROM ref_persons")
        waits.append((seconds, listed[0][0], stored[0][0]))

    monkeypatch.setattr(person_commands, "time", SimpleNamespace(sleep=sleep))
    monkeypatch.setenv("GRIDPIPE_REFERENCE_REFRESH_SECONDS", "7")
    server = ("--clickhouse", "http://127.0.0.1:8123")
    result = command("erase", *server)
    assert result.exit_code == 0, repr(result.exception)
    assert waits == [(14.0, 1, 2)]
    assert rows(clickhouse, "SELECT uniqExact(person_key) FROM ref_persons") == [[1]]
    (erasure,) = stored_erasures(clickhouse)
    write_list(tmp_path / "list", [erasure._replace(erased_at=erasure.erased_at + timedelta(hours=1))])
    result = command("reapply", str(tmp_path / "list"), *server)
    assert result.exit_code == 0, repr(result.exception)
    assert waits[1:] == [(14.0, 1, 1)]
    # without a service there is nobody to wait for
    assert command("erase").exit_code == 0
    assert len(waits) == 2


def test_an_id_of_a_request_that_holds_a_number_goes_no_further(clickhouse: Client, tmp_path: Path) -> None:
    """Once any text was taken: such a list brings nobody back, and passes the number on to no other."""
    entomb(clickhouse, PRIVACY.keys_of(id_numbers=[MINE]), MINE, ERASED_AT)
    (stored,) = stored_erasures(clickhouse)
    assert stored.request_id == "withheld"
    path = tmp_path / "erasures"
    write_list(path, [stored._replace(request_id=MINE), stored._replace(request_id="R-1")])
    assert {erasure.request_id for erasure in read_list(path)} == {"withheld", "R-1"}


def test_evidence_of_a_request_that_is_repeated_stands_beside_the_first(
    clickhouse: Client, engine_path: Path, tmp_path: Path, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = str(clickhouse.database)
    load_persons(clickhouse, tmp_path / "reference", Privacy.load(secret, create=False))
    (tmp_path / "clickhouse").mkdir()
    monkeypatch.setenv("GRIDPIPE_DATABASE", database)
    monkeypatch.setattr("pipeline.store.client.connect", lambda *_, **__: new_client(engine_path, database))
    numbers, evidence = tmp_path / "numbers", tmp_path / "evidence"
    command = ["person", "erase", "--request", "R-1", "--yes", "--from", str(numbers)]
    app = typer.Typer()
    person_commands.register(app)
    for number in (PHONE, MINE, MINE):
        numbers.write_text(number)
        numbers.chmod(0o600)
        assert CliRunner().invoke(app, [*command, "--data-dir", str(tmp_path)]).exit_code == 0
    names = ["R-1.2.json", "R-1.3.json", "R-1.json"]
    assert sorted(path.name for path in evidence.iterdir()) == names
    found = [json.loads((evidence / name).read_text())["found"]["ref_persons"] for name in names]
    assert found == [1, 0, 0]
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in evidence.iterdir())


def as_it_was(client: Client) -> list[str]:
    """A backup of the database beside it: the tables' names."""
    database = client.database
    tables = [
        name
        for (name,) in client.query(
            "SELECT name FROM system.tables WHERE database = {d:String} AND engine LIKE '%MergeTree'",
            {"d": database},
        ).result_rows
        if name != "alembic_version"
    ]
    for table in tables:
        client.command(f"CREATE TABLE {database}_backup.{table} AS {table}")
        client.command(f"INSERT INTO {database}_backup.{table} SELECT * FROM {table}")
    return tables


def test_a_person_that_an_older_backup_brings_back_is_erased_again_by_the_exported_list(
    clickhouse: Client, engine_path: Path, tmp_path: Path, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, privacy = str(clickhouse.database), Privacy.load(secret, create=False)
    monkeypatch.setenv("GRIDPIPE_DATABASE", database)
    monkeypatch.setattr("pipeline.store.client.connect", lambda *_, **__: new_client(engine_path, database))
    app = typer.Typer()
    person_commands.register(app)

    def person(*command: str) -> Any:
        return CliRunner().invoke(app, ["person", *command, "--data-dir", str(tmp_path)])

    (tmp_path / "clickhouse").mkdir()
    load_persons(clickhouse, tmp_path / "reference", privacy)
    store(clickhouse, rules_of(clickhouse, privacy), records())
    keys, database = privacy.keys_of(id_numbers=[MINE], phones=[PHONE]), str(clickhouse.database)
    clickhouse.command(f"CREATE DATABASE {database}_backup")
    try:
        tables = as_it_was(clickhouse)
        assert erase(clickhouse, database, keys, request_id="R-1", at=ERASED_AT).complete
        after = [rows(clickhouse, query) for query in EVERYTHING]
        listed = tmp_path / "erasures.ndjson"
        assert person("export-erasures", str(listed)).exit_code == 0
        assert listed.stat().st_mode & 0o777 == 0o600
        for table in tables:
            clickhouse.command(f"EXCHANGE TABLES {database}_backup.{table} AND {table}")
    finally:
        clickhouse.command(f"DROP DATABASE {database}_backup")
    assert sum(scan(clickhouse, database, list(keys)).values()) == 7, "the backup brings the person back"
    assert person("export-erasures", str(listed)).exit_code == 0  # what the restored list lacks is kept
    assert len(listed.read_text().splitlines()) == len(keys)
    assert person("reapply", str(listed)).exit_code == 0
    assert not any(scan(clickhouse, database, list(keys)).values())
    assert [rows(clickhouse, query) for query in EVERYTHING] == after
    (evidence,) = (tmp_path / "evidence").iterdir()
    assert not any(key in evidence.read_text() for key in keys)
    assert json.loads(evidence.read_text())["cases"] == 6
    load_persons(clickhouse, tmp_path / "again", privacy)
    assert not any(scan(clickhouse, database, list(keys)).values()), "it is on the list again"
    # what staff wrote of a case after the erasure is lawful, though the list is lost again
    minutes = (ERASED_AT - NOON).total_seconds() / 60 + 60
    told = event(31, event_type="ARRIVED", case_id="c1", minutes=minutes, description="已清理")
    report = record(
        19, event(29, channel="hotline_12345", actor={**CITIZEN, "id_number": MINE}, case_id="c1")
    )
    store(clickhouse, rules_of(clickhouse, privacy), [record(18, told)])
    for table in ("ref_erasures", "ref_erased_cases"):
        clickhouse.command(f"TRUNCATE TABLE {table}")
    store(clickhouse, rules_of(clickhouse, privacy), [report], INC + 1)
    assert person("reapply", str(listed)).exit_code == 0
    assert rows(clickhouse, "SELECT description FROM events WHERE event_id = 'e31'") == [["已清理"]]
    assert not any(scan(clickhouse, database, list(keys)).values())
    # a report that came after the erasure is lawful: applying the list once more leaves it
    later = record(20, event(30, channel="hotline_12345", actor={**CITIZEN, "id_number": MINE}, minutes=4000))
    store(clickhouse, rules_of(clickhouse, privacy), [later])
    assert person("reapply", str(listed)).exit_code == 0
    assert scan(clickhouse, database, list(keys))["events"] == 1


def test_a_list_of_erasures_that_others_can_read_or_that_is_damaged_is_refused(tmp_path: Path) -> None:
    listed = tmp_path / "list"
    with pytest.raises(ConfigurationError, match="no such file"):
        read_list(listed)
    listed.write_text("{}\n")
    listed.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        read_list(listed)
    listed.chmod(0o600)
    with pytest.raises(ConfigurationError, match="line 1: not of a list"):
        read_list(listed)


# --- rotation


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secrets" / "pseudonym.v1"
    Privacy.load(path, create=True)
    return path


def test_versions_come_into_force_and_go(secret: Path) -> None:
    first = Privacy.load(secret, create=False)
    assert (first.key_version, first.versions) == (1, (1,))
    assert rotate(secret) == 2
    waiting = Privacy.load(secret, create=False)
    assert (waiting.key_version, waiting.versions) == (1, (1, 2))
    assert waiting.person_key(MINE) == first.person_key(MINE)
    with pytest.raises(ConfigurationError, match="waiting to be activated"):
        rotate(secret)
    with pytest.raises(ConfigurationError, match="is in force"):
        retire(secret, 1)
    activate(secret, 2)
    second = Privacy.load(secret, create=False)
    assert second.key_version == 2
    assert second.person_key(MINE) != first.person_key(MINE)
    assert second.under(1).person_key(MINE) == first.person_key(MINE)
    found = second.keys_of(id_numbers=[MINE], phones=[PHONE])
    assert sorted(found.values()) == [1, 1, 2, 2]
    assert found[first.person_key(MINE)] == 1
    retire(secret, 1)
    assert list(secret_versions(secret)) == [2]
    assert Privacy.load(secret, create=False).versions == (2,)
    assert active_version(secret) == 2
    assert all(path.stat().st_mode & 0o077 == 0 for path in secret.parent.iterdir())


def test_no_new_key_in_place_of_one_that_is_lost(secret: Path) -> None:
    rotate(secret)
    activate(secret, 2)
    secret.with_suffix(".v2").unlink()
    with pytest.raises(ConfigurationError, match=r"pseudonym\.v2"):
        Privacy.load(secret, create=True)
    for wrong in (activate, retire):
        with pytest.raises(ConfigurationError, match="no version 7"):
            wrong(secret, 7)


def test_residents_are_known_under_both_keys_while_they_change(
    clickhouse: Client, tmp_path: Path, secret: Path
) -> None:
    load_persons(clickhouse, tmp_path, Privacy.load(secret, create=False))
    rotate(secret)
    both = Privacy.load(secret, create=False)
    load_persons(clickhouse, tmp_path, both.under(2))
    reference = Reference.load(clickhouse, tolerance_m=200.0)
    keys = both.keys_of(id_numbers=[MINE, OTHERS])
    assert (reference.people.find(pl.Series(list(keys)), np.zeros(4, np.int64)) >= 0).tolist() == [True] * 4
    versions = rows(clickhouse, "SELECT key_version, count() FROM ref_persons GROUP BY 1 ORDER BY 1")
    assert versions == [[1, 2], [2, 2]]
    activate(secret, 2)
    store(clickhouse, rules_of(clickhouse, Privacy.load(secret, create=False)), records()[:3])
    assert rows(clickhouse, "SELECT DISTINCT key_version FROM events") == [[2]]
    (found,) = rows(clickhouse, "SELECT persons_found FROM events WHERE event_id = 'e2'")
    assert found == [2]
    assert erase(
        clickhouse,
        str(clickhouse.database),
        Privacy.load(secret, create=False).keys_of(id_numbers=[MINE]),
        request_id="R-3",
        at=ERASED_AT,
    ).complete
    assert rows(clickhouse, "SELECT key_version, count() FROM ref_persons GROUP BY 1 ORDER BY 1") == [
        [1, 1],
        [2, 1],
    ]


@pytest.mark.parametrize("strict", [False, True])
def test_a_new_key_brings_nobody_back_who_was_erased(
    clickhouse: Client, tmp_path: Path, secret: Path, strict: bool
) -> None:
    """The list holds pseudonyms under the keys of its day; a load that has the number tells who it is."""
    first = Privacy.load(secret, create=False)
    load_persons(clickhouse, tmp_path, first)
    database = str(clickhouse.database)
    keys = first.keys_of(id_numbers=[MINE])
    for request, days in (("R-3", 1), ("R-4", 0)):
        at = ERASED_AT - timedelta(days=days)
        assert erase(clickhouse, database, keys, request_id=request, at=at).complete
    rotate(secret)
    both = Privacy.load(secret, create=False)
    for version, other in ((2, 1), (1, 2)):
        report = load_directory(
            clickhouse, tmp_path / "persons", both.under(version), others=[both.under(other)], strict=strict
        )
        assert [file.erased for file in report.files] == [1]
    mine = both.under(2).person_key(MINE)
    assert rows(clickhouse, "SELECT key_version, count() FROM ref_persons GROUP BY 1 ORDER BY 1") == [
        [1, 1],
        [2, 1],
    ]
    assert rows(clickhouse, f"SELECT count() FROM ref_persons WHERE person_key = '{mine}'") == [[0]]
    listed = rows(clickhouse, "SELECT key_version, request_id, person_key FROM ref_erasures ORDER BY 1, 2")
    theirs = first.person_key(MINE)
    assert listed == [[1, "R-3", theirs], [1, "R-4", theirs], [2, "R-4", mine]], "the last of two counts"
    reference = Reference.load(clickhouse, tolerance_m=200.0)
    at = pl.Series([ERASED_AT - timedelta(hours=1)], dtype=pl.Datetime("ms", "UTC"))
    assert reference.erased.before(pl.Series([mine]), at).tolist() == [True], "what is replayed is held back"


def test_a_file_that_breaks_off_brings_nobody_back_either(
    clickhouse: Client, tmp_path: Path, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Privacy.load(secret, create=False)
    load_persons(clickhouse, tmp_path, first)
    keys = first.keys_of(id_numbers=[MINE])
    assert erase(clickhouse, str(clickhouse.database), keys, request_id="R-3", at=ERASED_AT).complete
    rotate(secret)
    both = Privacy.load(secret, create=False)
    monkeypatch.setattr(read, "_BLOCK_BYTES", 64)
    (tmp_path / "broken").mkdir()
    lines = [
        "id_number,home_grid_code",
        f"{MINE},{GRID}",
        f"{OTHERS},{GRID}",
        '"never closed',
        *"abcdefgh" * 20,
    ]
    (tmp_path / "broken" / "persons.csv").write_text("\n".join(lines))
    report = load_directory(clickhouse, tmp_path / "broken", both.under(2), others=[both.under(1)])
    (file,) = report.files
    assert "cannot be read" in str(file.problem)
    assert file.erased == 1
    mine = both.under(2).person_key(MINE)
    assert rows(clickhouse, f"SELECT request_id FROM ref_erasures WHERE person_key = '{mine}'") == [["R-3"]]


# --- retention


def test_residents_go_with_all_their_versions_when_they_were_withdrawn_long_ago(
    clickhouse: Client, tmp_path: Path
) -> None:
    """The hidden version ends with the visible ones behind it; a file that still names it changes nothing."""
    load_persons(clickhouse, tmp_path)
    now = datetime.now(UTC)
    ago = {MINE: timedelta(days=31), OTHERS: timedelta(days=29), fake_id(3): timedelta(days=400)}
    lines = [
        json.dumps({"id_number": number, "home_grid_code": GRID, "deleted_at": (now - past).isoformat()})
        for number, past in ago.items()
    ]
    (tmp_path / "persons" / "persons.ndjson").write_text("\n".join(lines) + "\n")
    for stored_rows, unchanged in ((2, 1), (0, 3)):
        (report,) = load_directory(clickhouse, tmp_path / "persons", PRIVACY).files
        assert (report.stored, report.unchanged) == (stored_rows, unchanged)
        assert forget_ended(clickhouse, now) == (["ref_persons"] if stored_rows else [])
        wait_for_mutations(clickhouse)
        left = rows(clickhouse, "SELECT person_key, count() FROM ref_persons FINAL GROUP BY 1")
        assert left == [[PRIVACY.person_key(OTHERS), 2]]
    # withdrawn by mistake: whoever comes back is known again
    (tmp_path / "persons" / "persons.ndjson").write_text(
        "\n".join(json.dumps({"id_number": number, "home_grid_code": GRID}) for number in (MINE, OTHERS))
    )
    load_directory(clickhouse, tmp_path / "persons", PRIVACY)
    assert forget_ended(clickhouse, now) == []
    known = Reference.load(clickhouse, tolerance_m=200.0).people
    keys = pl.Series([PRIVACY.person_key(MINE), PRIVACY.person_key(OTHERS)])
    at_ms = np.full(2, now.timestamp() * 1_000, np.int64)
    assert (known.find(keys, at_ms) >= 0).tolist() == [True, True]


def test_residents_go_whatever_part_holds_the_withdrawal(
    clickhouse: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts are changed one by one: what one of them held must not decide about the next."""
    monkeypatch.setattr(retention, "_KEYS_AT_ONCE", 2)
    now = datetime.now(UTC)
    columns = ["person_key", "key_version", "version", "valid_from", "deleted_at"]
    people = [f"{number:064x}" for number in range(5)]
    long_ago = now - timedelta(days=40)
    for version, deleted_at in ((2, long_ago), (1, None)):
        given = [[key, 1, version, long_ago + timedelta(version), deleted_at] for key in people]
        clickhouse.insert("ref_persons", given, column_names=columns)
    clickhouse.insert("ref_persons", [["f" * 64, 1, 1, long_ago, None]], column_names=columns)
    assert retention.forget_withdrawn(clickhouse, now)
    wait_for_mutations(clickhouse)
    assert rows(clickhouse, "SELECT person_key FROM ref_persons") == [["f" * 64]]
    commands = rows(
        clickhouse,
        "SELECT command FROM system.mutations WHERE database = currentDatabase() AND table = 'ref_persons'",
    )
    assert len(commands) == 3
    assert not any("SELECT" in command for (command,) in commands)
    assert not retention.forget_withdrawn(clickhouse, now)


def test_what_only_a_mode_makes_visible_goes_thirty_days_after_its_end(clickhouse: Client) -> None:
    now = datetime.now(UTC)

    def days(ago: int | None) -> datetime | None:
        return None if ago is None else now - timedelta(days=ago)

    modes = [
        ("typhoon", "4407", 60, 31, 1),
        ("flood", "440704", 60, None, 1),
        ("heat", "440704", 60, 29, 1),
        ("typhoon", "440703", 60, None, 1),
        ("typhoon", "440703", 60, 31, 2),  # it was closed by a later version
        ("typhoon", "440704", 5, None, 1),  # the next one
        ("epidemic", "4407", 90, 40, 1),
        ("epidemic", "440704", 40, None, 1),  # the level rose
    ]
    clickhouse.insert(
        "ref_modes",
        [[mode, area, days(since), version, "I", days(end)] for mode, area, since, end, version in modes],
        column_names=["mode", "area_code", "valid_from", "version", "level", "valid_to"],
    )
    reports = {
        "over": ("typhoon", "440704", 50), "closed": ("typhoon", "440703", 50),
        "open": ("flood", "440704", 50), "unknown": ("flood", "440703", 50),
        "just over": ("heat", "440704", 50), "next": ("typhoon", "440704", 4),
        "routine": (None, "440704", 50), "before the level rose": ("epidemic", "440704", 80),
        "where it did not": ("epidemic", "440703", 80),
    }  # fmt: skip
    fact = ("k", "subject", True, "70+", None, None, GRID, ["elderly_alone", "health_care"])
    for table in ("events", "rejections"):
        clickhouse.insert(
            table,
            [
                [name, number, mode, f"{area}001001003", days(ago), now, [fact, fact]]
                for number, (name, (mode, area, ago)) in enumerate(reports.items())
            ],
            column_names=[
                "event_id", "_off", "mode", "grid_code", "occurred_at", "ingested_at", "person_facts",
            ],
        )  # fmt: skip
    assert forget_emergency_facts(clickhouse, now) == ["events", "rejections"]
    wait_for_mutations(clickhouse)
    assert forget_emergency_facts(clickhouse, now) == []
    for table in ("events", "rejections"):
        kept = {
            name: [tuple(one.values()) for one in facts]
            for name, facts in rows(clickhouse, f"SELECT event_id, person_facts FROM {table}")
        }
        rest = (*fact[:-1], ["elderly_alone"])
        gone = {"over", "closed", "unknown", "where it did not"}
        assert kept == {name: [rest, rest] if name in gone else [fact, fact] for name in reports}


def test_a_change_of_level_ends_no_emergency() -> None:
    declared = [
        retention._Mode("flood", "4407", 100, 200),
        retention._Mode("flood", "440704", 200, 300),  # the level rose, in a district
        retention._Mode("flood", "4407", 300, None),
        retention._Mode("flood", "440703", 90, 100),  # it began in another
        retention._Mode("flood", "4407", 10, 50),  # the one before
        retention._Mode("heat", "4407", 50, 300),  # another mode
        retention._Mode("heat", "440701", 400, 450),
    ]
    assert retention._emergencies(declared, 320) == {
        ("flood", "4407", 300), ("flood", "440704", 200), ("flood", "440704", 100), ("heat", "440701", 400),
    }  # fmt: skip
    assert retention._emergencies(declared[:1] + declared[3:4], 150) == {
        ("flood", "4407", 100), ("flood", "440703", 90),
    }  # fmt: skip


def wait_for_mutations(client: Client) -> None:
    pending = "SELECT count() FROM system.mutations WHERE database = currentDatabase() AND NOT is_done"
    while rows(client, pending) != [[0]]:
        time.sleep(0.1)


def test_details_go_first_then_links_then_rows(clickhouse: Client, tmp_path: Path) -> None:
    """By receipt: what happened long ago and came today stays (a backfilled year)."""
    settings = Settings(event_retention_days=90, person_link_days=365, fact_retention_days=1_095)
    tables = ("events", "rejections", "duplicates", "quarantine")
    assert apply_retention(clickhouse, settings) == Retention(tables, {})
    assert apply_retention(clickhouse, settings) == Retention((), {})
    load_persons(clickhouse, tmp_path)
    now = datetime.now(UTC)
    about = {
        "persons": [{"id_number": MINE, "role": "subject"}],
        "matter_code": "PS-02",
        "channel": "pingantong",
        "title": "t",
    }
    ages = {"fresh": 0, "details": 91, "links": 366, "gone": 1_096}
    given = [
        record(number, event(name, **about), received=now - timedelta(days=age))
        for number, (name, age) in enumerate(ages.items())
    ]
    old = [
        one._replace(value=one.value.replace(b"2026-05-01", f"{now - timedelta(days=500):%Y-%m-%d}".encode()))
        for one in given[:1]
    ]
    store(clickhouse, rules_of(clickhouse), old + given[1:])
    clickhouse.command("OPTIMIZE TABLE events FINAL")
    clickhouse.command("OPTIMIZE TABLE rejections FINAL")
    asked = "SELECT event_id, title IS NOT NULL, notEmpty(persons), case_id FROM {} FINAL"
    found = rows(clickhouse, asked.format("events") + " UNION ALL " + asked.format("rejections"))
    assert sorted(found) == [
        ["edetails", 0, 1, "cdetails"],
        ["efresh", 1, 1, "cfresh"],
        ["elinks", 0, 0, "clinks"],
    ]
    cases = {case for (case,) in rows(clickhouse, "SELECT case_id FROM cases FINAL")}
    assert cases >= {"cdetails", "clinks"}


#: What stays of a report or event until its row goes: ids, codes, times, verdicts, and what was looked up of
#: places and posts. Whatever is not listed here must end with the details or the links.
KEPT_WITH_THE_ROW = {
    "_inc", "_part", "_off", "_idx", "_blk_lo", "_blk_hi", "_rules", "stored_at", "primary_reason",
    "event_id", "source", "event_type", "case_id", "occurred_at", "ingested_at", "channel", "matter_code",
    "grid_code", "actor_type", "crs", "organisation_code", "due_at", "primary_case_id", "rating",
    "department", "self_handled", "backfill", "key_version", "id_hi", "id_lo", "content_hash", "grid_found",
    "grid_active", "grid_version", "grid_name", "grid_type", "grid_risk_tags", "unit_found", "point_in_grid",
    "point_distance_m", "staff_found", "staff_active", "staff_kind", "staff_department", "staff_in_grid",
    "staff_in_district", "staff_channel_rights", "persons_given", "persons_found", "organisation_found",
    "route_department", "outcome", "reasons", "missing_fields", "rule_results", "evidence_pending",
    "life_safety", "category", "urgency", "lead_department", "response_limit_seconds",
    "resolution_limit_seconds", "mode", "mode_level", "catalogue_version", "late_beyond_horizon",
    "time_adjusted", "district_code", "town_code", "village_code",
}  # fmt: skip


@pytest.mark.parametrize("table", ["events", "rejections"])
def test_every_column_ends_in_time_or_is_known_to_stay(clickhouse: Client, table: str) -> None:
    apply_retention(clickhouse, Settings(event_retention_days=90, person_link_days=365))
    text = rows(clickhouse, f"SHOW CREATE TABLE {table}")[0][0].partition("\n)\nENGINE")[0]
    columns = dict(column.split("`", 1) for column in text.split("\n    `")[1:])
    assert columns.keys() == {name for name, *_ in rows(clickhouse, f"DESCRIBE TABLE {table}")}
    ends = {
        name: int(ttl[1]) for name, rest in columns.items() if (ttl := re.search(r"TTL .*Day\((\d+)\)", rest))
    }
    assert columns.keys() - ends.keys() == KEPT_WITH_THE_ROW & columns.keys()
    assert {name for name in ends if ends[name] > 90} == {
        "actor_key", "persons", "person_facts", "submission_id", "l2_hi", "l2_lo",
    }  # fmt: skip
    assert set(PERSONAL) <= ends.keys(), "what an erasure takes ends by itself, too"


def test_rows_of_every_table_with_a_retention_go_in_time(clickhouse: Client) -> None:
    apply_retention(clickhouse, Settings(event_retention_days=90, fact_retention_days=1_095))
    days = {"duplicates": 1_095, "events": 1_095, "quarantine": 90, "rejections": 1_095}
    with_ttl = rows(
        clickhouse,
        "SELECT name FROM system.tables WHERE database = currentDatabase() AND engine LIKE '%MergeTree' "
        "AND match(create_table_query, '\\) ENGINE .* TTL ') ORDER BY name",
    )
    assert [name for (name,) in with_ttl] == sorted(days), "a table whose retention nobody tests"
    now = datetime.now(UTC)
    for table, kept in days.items():
        since = "stored_at" if table == "quarantine" else "ingested_at"
        aged = [["young", 1, now - timedelta(days=kept - 1)], ["old", 2, now - timedelta(days=kept + 1)]]
        clickhouse.insert(table, aged, column_names=["event_id", "_off", since])
        clickhouse.command(f"OPTIMIZE TABLE {table} FINAL")
        assert rows(clickhouse, f"SELECT event_id FROM {table}") == [["young"]], table


def test_what_could_not_be_read_stays_whatever_its_writer_says_of_its_time(clickhouse: Client) -> None:
    """The row may be all that is left of the record."""
    apply_retention(clickhouse, Settings())
    times = [-1, 0, 10**18]
    store(
        clickhouse,
        rules_of(clickhouse),
        [Record(offset, received, None, b"{", None) for offset, received in enumerate(times)],
    )
    clickhouse.command("OPTIMIZE TABLE quarantine FINAL")
    assert rows(clickhouse, "SELECT _off FROM quarantine ORDER BY _off") == [[0], [1], [2]]


def test_settings_change_the_tables(clickhouse: Client) -> None:
    apply_retention(clickhouse, Settings())
    changed = apply_retention(clickhouse, Settings(event_retention_days=30)).changed
    assert changed == ("events", "rejections", "quarantine")
    statement = rows(clickhouse, "SHOW CREATE TABLE events")[0][0]
    assert statement.count("toIntervalDay(30)") == len(DETAILS)
    assert statement.count("toIntervalDay(365)") == len(LINKS)
    assert statement.count("toIntervalDay(1095)") == 1


def test_a_default_takes_the_place_of_no_retention_that_is_there(clickhouse: Client) -> None:
    """As where `migrate` runs in a shell without the site's settings: what is deleted is gone for good."""
    apply_retention(clickhouse, Settings(fact_retention_days=3_650, person_link_days=180))
    kept = {"fact_retention_days": 3_650, "person_link_days": 180}
    assert apply_retention(clickhouse, Settings()) == Retention((), kept)
    statement = rows(clickhouse, "SHOW CREATE TABLE events")[0][0]
    assert (statement.count("toIntervalDay(3650)"), statement.count("toIntervalDay(180)")) == (1, len(LINKS))
    found = apply_retention(clickhouse, Settings(fact_retention_days=1_095))
    assert found == Retention(("events", "rejections", "duplicates"), {"person_link_days": 180})


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, 3_650), ({"event_retention_days": 30}, 30), ({"person_link_days": 400}, 3_650)],
)
def test_a_column_that_gets_its_first_retention_ends_with_the_others(
    clickhouse: Client, given: dict[str, int], expected: int
) -> None:
    """As after an upgrade, in a shell without the site's settings."""
    apply_retention(clickhouse, Settings(event_retention_days=3_650, person_link_days=3_650))
    for table in ("events", "rejections"):
        for name in ("level", "l2_hi"):
            clickhouse.command(f"ALTER TABLE {table} MODIFY COLUMN {name} REMOVE TTL")
    clickhouse.command("ALTER TABLE quarantine REMOVE TTL")
    apply_retention(clickhouse, Settings(**given))
    for table, columns in {"events": len(DETAILS), "rejections": len(DETAILS), "quarantine": 1}.items():
        statement = rows(clickhouse, f"SHOW CREATE TABLE {table}")[0][0]
        links = 0 if table == "quarantine" else len(LINKS)
        days = re.findall(r"toIntervalDay\((\d+)\)", statement)
        wanted = [expected] * columns + [given.get("person_link_days", 3_650)] * links
        assert sorted(day for day in map(int, days) if day != 1_095) == sorted(wanted), table
