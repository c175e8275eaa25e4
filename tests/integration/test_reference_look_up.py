"""What a worker sees of the reference data: versions at occurred_at, loans, persons, flags, changes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest
from clickhouse_connect.driver.client import Client
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import frames
from pipeline.contract.privacy import Privacy
from pipeline.process.flow import Block, PartitionState, Rules, process_block
from pipeline.reference.enrich import enrich
from pipeline.reference.geo import wgs84_to_gcj02
from pipeline.reference.load import load_directory
from pipeline.reference.snapshot import Reference
from pipeline.settings import Settings
from pipeline.store.migrate import migrate
from tests.integration.worker_world import catalogues, event, record

PRIVACY = Privacy(b"a key for tests, 32 bytes or more")
CODE, OTHER, RETIRED = "440704001001003", "440704001001004", "440703002001001"
#: About 1,030 m wide and 1,107 m high.
BOX = "POLYGON((113 22.5, 113.01 22.5, 113.01 22.51, 113 22.51, 113 22.5))"
GRID: dict[str, Any] = {"valid_from": "2022-04-01", "grid_type": "rural", "status": "active", "boundary": BOX}
GRIDS: list[dict[str, Any]] = [
    GRID | {"grid_code": CODE, "grid_name": "旧", "valid_from": "2022-04-01", "risk_tags": ["forest"]},
    GRID | {"grid_code": CODE, "grid_name": "新", "valid_from": "2024-01-01T00:00:00Z",
            "department_route": {"SA": "fire_rescue"}},
    GRID | {"grid_code": OTHER, "grid_name": "停", "status": "inactive", "boundary": None},
    GRID | {"grid_code": RETIRED, "grid_name": "撤", "valid_to": "2023-01-01T00:00:00Z"},
]  # fmt: skip
WORKER: dict[str, Any] = {
    "kind": "full_time",
    "district_code": "440704",
    "grid_code": CODE,
    "active_from": "2022-04-01",
}
STAFF: list[dict[str, Any]] = [
    WORKER | {"worker_key": "W1", "channel_rights": ["grid_patrol"], "department": "health"},
    WORKER | {"worker_key": "LENT", "grid_code": OTHER, "loans": [
        {"grid_code": CODE, "valid_from": "2024-09-06T00:00:00Z", "valid_to": "2024-09-08T08:00:00Z"},
        {"grid_code": CODE, "valid_from": "2025-09-06T08:00:00+08:00", "valid_to": None}]},
    WORKER | {"worker_key": "LEFT", "active_to": "2024-01-01"},
    WORKER | {"worker_key": "DESK", "kind": "clerk", "grid_code": None},
]  # fmt: skip
KEY, OTHER_KEY = "ab" * 32, "cd" * 32
#: Of the matters of these tests, as the catalogue has them.
CATEGORIES = {
    **{
        code: code[:2]
        for code in ("PS-01", "PS-02", "PS-05", "ER-05", "PO-05", "PO-06", "PO-09", "SA-01", "SA-07", "UE-01")
    },
    "TMP-2022-EPI-01": "ER",
    "TMP-2023-TYP-01": "SA",
}
UNJUDGED = dict.fromkeys(("mode", "category"), pl.lit(None, pl.String))
PERSON: dict[str, Any] = {
    "person_key": KEY, "key_version": 1, "age_band": "80+", "gender": "female",
    "residence_kind": "registered", "home_grid_code": CODE, "elderly_alone_flag": True,
    "disability_flag": True, "hardship_flag": True,
    "child_care_flag": True, "health_care_flag": True, "pingantong_user_flag": True,
}  # fmt: skip
MODE: dict[str, Any] = {
    "mode": "flood", "level": "IV", "area_code": "440704", "valid_from": "2025-07-22T13:00:00+08:00",
    "authority": "水利局",
}  # fmt: skip
FILES: dict[str, list[dict[str, Any]]] = {
    "grids": GRIDS,
    "units": [{"unit_code": f"{CODE}-U001", "valid_from": "2022-04-01"}],
    "staff": STAFF,
    "persons": [
        PERSON,
        {"person_key": OTHER_KEY, "key_version": 1, "deleted_at": "2024-01-01T00:00:00Z"},
        {"person_key": "12" * 32, "key_version": 1},
    ],
    "organisations": [{"org_code": "O1", "name": "商铺"}],
    "modes": [MODE],
}
AT = datetime(2024, 6, 1, tzinfo=UTC)

Load = Callable[..., None]


def load_files(client: Client, directory: Path, files: dict[str, list[dict[str, Any]]]) -> None:
    for path in directory.iterdir():
        path.unlink()
    for kind, rows in files.items():
        (directory / f"{kind}.ndjson").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    report = load_directory(client, directory, PRIVACY)
    assert report.fine, [line for file in report.files for line in file.lines()]


@pytest.fixture
def load(clickhouse: Client, tmp_path: Path) -> Load:
    return lambda **files: load_files(clickhouse, tmp_path, files)


@pytest.fixture(scope="module")
def reference(open_client: Client, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """The snapshot of FILES; it is never changed, so all tests may share it."""
    before = open_client.database
    migrate(open_client, "test_reference_look_up")
    load_files(open_client, tmp_path_factory.mktemp("reference"), FILES)
    snapshot = Reference.load(open_client, tolerance_m=200)
    open_client.command("DROP DATABASE test_reference_look_up")
    open_client.database = before
    return snapshot


def events(*rows: dict[str, Any]) -> pl.DataFrame:
    defaults = {"grid_code": CODE, "occurred_at": AT}
    frame = pl.DataFrame(
        [{name: (defaults | row).get(name) for name in frames.DECODED} for row in rows],
        schema=frames.DECODED,
        orient="row",
    )
    return frames.expect(frame, frames.DECODED, "events")


def look_up(reference: Reference, *rows: dict[str, Any]) -> list[dict[str, Any]]:
    return reference.look_up(events(*rows), CATEGORIES).to_dicts()


def test_the_grid_version_valid_at_the_event_counts(reference: Reference) -> None:
    before, at_change, after, too_early = look_up(
        reference,
        {"occurred_at": datetime(2023, 12, 31, 23, 59, 59, 999000, UTC)},
        {"occurred_at": datetime(2024, 1, 1, tzinfo=UTC)},
        {"occurred_at": AT},
        {"occurred_at": datetime(2022, 3, 31, 15, 59, tzinfo=UTC)},
    )
    assert [row["grid_name"] for row in (before, at_change, after, too_early)] == ["旧", "新", "新", None]
    assert [row["grid_version"] for row in (before, at_change, after, too_early)] == [1, 2, 2, None]
    assert before["grid_risk_tags"] == ["forest"]
    assert after["grid_risk_tags"] == []
    assert (too_early["grid_found"], too_early["grid_active"]) == (True, False)


def test_retired_inactive_and_unknown_grids_differ(reference: Reference) -> None:
    retired, in_its_time, inactive, unknown = look_up(
        reference,
        {"grid_code": RETIRED},
        {"grid_code": RETIRED, "occurred_at": datetime(2022, 12, 31, tzinfo=UTC)},
        {"grid_code": OTHER},
        {"grid_code": "440704001001999"},
    )
    assert (retired["grid_found"], retired["grid_active"], retired["grid_version"]) == (True, False, None)
    assert (in_its_time["grid_found"], in_its_time["grid_active"]) == (True, True)
    assert (inactive["grid_found"], inactive["grid_active"], inactive["grid_version"]) == (True, False, 1)
    assert (unknown["grid_found"], unknown["grid_active"]) == (False, False)


def test_points_are_measured_in_metres_and_in_the_right_system(reference: Reference) -> None:
    gcj_lon, gcj_lat = (
        float(value[0]) for value in wgs84_to_gcj02(*(pl.Series([v]).to_numpy() for v in (113.005, 22.505)))
    )
    inside, near, far, shifted, taken_for_wgs, no_point, no_boundary, no_grid = look_up(
        reference,
        {"lon": 113.005, "lat": 22.505, "crs": "wgs84"},
        {"lon": 113.0115, "lat": 22.505, "crs": "wgs84"},  # 154 m east
        {"lon": 113.0125, "lat": 22.505, "crs": "wgs84"},  # 257 m east
        {"lon": gcj_lon, "lat": gcj_lat, "crs": "gcj02"},
        {"lon": gcj_lon + 0.006, "lat": gcj_lat, "crs": "wgs84"},
        {},
        {"grid_code": OTHER, "lon": 113.005, "lat": 22.505, "crs": "wgs84"},
        {"grid_code": "440704001001999", "lon": 113.005, "lat": 22.505, "crs": "wgs84"},
    )
    assert (inside["point_in_grid"], inside["point_distance_m"]) == (True, 0)
    assert near["point_in_grid"] is True
    assert near["point_distance_m"] == pytest.approx(154, abs=2)
    assert far["point_in_grid"] is False
    assert far["point_distance_m"] == pytest.approx(257, abs=2)
    assert shifted["point_distance_m"] == 0
    assert taken_for_wgs["point_in_grid"] is False
    assert [row["point_in_grid"] for row in (no_point, no_boundary, no_grid)] == [None] * 3


def test_staff_rights_at_the_event(reference: Reference) -> None:
    own, left, still, clerk, citizen, nobody = look_up(
        reference,
        {"actor_key": "W1"},
        {"actor_key": "LEFT"},
        {"actor_key": "LEFT", "occurred_at": datetime(2023, 6, 1, tzinfo=UTC)},
        {"actor_key": "DESK", "grid_code": OTHER},
        {"actor_key": "w1"},
        {"actor_key": None},
    )
    assert own["staff_active"] is True
    assert (own["staff_kind"], own["staff_department"], own["staff_channel_rights"]) == (
        "full_time",
        "health",
        ["grid_patrol"],
    )
    assert (own["staff_in_grid"], own["staff_in_district"]) == (True, True)
    assert (left["staff_found"], left["staff_active"]) == (True, False)
    assert still["staff_active"] is True
    assert (clerk["staff_in_grid"], clerk["staff_in_district"]) == (False, True)
    for row in (citizen, nobody):
        assert row["staff_found"] is False
        assert row["staff_active"] is None
        assert row["staff_channel_rights"] == []


@pytest.mark.parametrize(
    ("at", "lent"),
    [
        (datetime(2024, 9, 5, 23, 59, tzinfo=UTC), False),
        (datetime(2024, 9, 6, tzinfo=UTC), True),
        (datetime(2024, 9, 8, 8, tzinfo=UTC), False),
        (datetime(2025, 9, 6, tzinfo=UTC), True),
        (datetime(2030, 1, 1, tzinfo=UTC), True),
    ],
)
def test_loans_count_while_they_last(reference: Reference, at: datetime, lent: bool) -> None:
    there, home, elsewhere = look_up(
        reference,
        {"actor_key": "LENT", "occurred_at": at},
        {"actor_key": "LENT", "occurred_at": at, "grid_code": OTHER},
        {"actor_key": "LENT", "occurred_at": at, "grid_code": RETIRED},
    )
    assert there["staff_in_grid"] is lent
    assert home["staff_in_grid"] is True
    assert elsewhere["staff_in_grid"] is False
    assert elsewhere["staff_in_district"] is False


def test_units_organisations_and_routes(reference: Reference) -> None:
    known, unknown, absent, other_category, temporary, not_listed = look_up(
        reference,
        {"unit_code": f"{CODE}-U001", "organisation_code": "O1", "matter_code": "SA-07"},
        {"unit_code": f"{CODE}-U999", "organisation_code": "O2", "matter_code": "SA-07",
         "occurred_at": datetime(2023, 1, 1, tzinfo=UTC)},
        {},
        {"matter_code": "UE-01"},
        {"matter_code": "TMP-2023-TYP-01"},
        {"matter_code": "TMP-2023-TYP-99"},
    )  # fmt: skip
    columns = ("unit_found", "organisation_found", "route_department")
    assert [known[column] for column in columns] == [True, True, "fire_rescue"]
    assert [unknown[column] for column in columns] == [False, False, None], "the old version names none"
    assert [absent[column] for column in columns] == [None] * 3
    assert other_category["route_department"] is None
    assert temporary["route_department"] == "fire_rescue", "by the catalogue's category, not by its code"
    assert not_listed["route_department"] is None


def test_a_temporary_matter_is_judged_as_one_of_its_category(reference: Reference) -> None:
    """Its code begins with TMP, which is no category."""
    rules = Rules(reference, catalogues(), PRIVACY, Settings())
    person: dict[str, Any] = {"grid_code": CODE, "persons": [{"key": KEY, "role": "subject"}]}
    records = [
        record(0, event(1, matter_code="TMP-2022-EPI-01", **person)),
        record(1, event(2, matter_code="TMP-2023-TYP-01", **person)),
    ]
    found = process_block(Block(0, records), PartitionState.empty(rules.settings), rules).rejections
    assert found["category"].to_list() == ["ER", "SA"]
    assert found["route_department"].to_list() == [None, "fire_rescue"]
    supplies, billboard = found["person_facts"].to_list()
    assert (set(supplies[0]["flags"]), billboard[0]["flags"]) == ({"elderly_alone", "disability"}, [])


def test_persons_are_counted_given_and_found(reference: Reference) -> None:
    persons = [
        {"key": key, "role": "party"} for key in (KEY, OTHER_KEY, None, KEY[:-1] + "0", "z" * 64, "short")
    ]
    rows = look_up(
        reference, {"persons": persons}, {"persons": []}, {"persons": None}, {"persons": persons[:1]}
    )
    assert [(row["persons_given"], row["persons_found"]) for row in rows] == [(6, 1), (0, 0), (0, 0), (1, 1)]


def test_who_withdraws_is_not_found_from_then_on(clickhouse: Client, load: Load) -> None:
    """By the time of the event, not of the snapshot: a report of the day before that comes late, too."""
    leaving = "78" * 32
    load(persons=[{"person_key": OTHER_KEY, "key_version": 1}])  # who comes withdrawn long ago is not stored
    load(persons=[FILES["persons"][1], {"person_key": leaving, "key_version": 1, "deleted_at": "2150-01-01"}])
    last = datetime(2023, 12, 31, 23, 59, 59, 999000, UTC)
    rows = events(
        *(
            {"persons": [{"key": key, "role": "party"}], "occurred_at": at, "matter_code": "PS-01"}
            for key, at in [
                (OTHER_KEY, last), (OTHER_KEY, datetime(2024, 1, 1, tzinfo=UTC)),
                (leaving, AT), (leaving, datetime(2150, 1, 1, tzinfo=UTC)), (KEY, AT),
            ]
        )
    )  # fmt: skip
    whole, some = (
        Reference.load(clickhouse, tolerance_m=200),
        Reference.for_events(clickhouse, rows, tolerance_m=200),
    )
    for snapshot in (whole, some):
        assert snapshot.look_up(rows, CATEGORIES)["persons_found"].to_list() == [1, 0, 1, 0, 0]
        judged = rows.with_columns(mode=pl.lit(None, pl.String), category=pl.lit("PS"))
        facts = enrich(judged, snapshot)["person_facts"]
        assert [fact[0]["found"] for fact in facts.to_list()] == [True, False, True, False, False]
    load(persons=[FILES["persons"][1] | {"deleted_at": None}])
    back = Reference.load(clickhouse, tolerance_m=200)
    assert back.look_up(rows, CATEGORIES)["persons_found"].to_list() == [1, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("matter", "mode", "flags"),
    [
        ("PS-01", None, {"elderly_alone", "disability", "hardship"}),
        ("PS-02", None, {"elderly_alone", "disability", "hardship", "pingantong_user"}),
        ("PS-05", None, {"elderly_alone", "disability", "hardship", "child_care"}),
        ("PS-01", "flood", {"elderly_alone", "disability", "hardship", "health_care"}),
        ("ER-05", None, {"elderly_alone", "disability"}),
        ("ER-05", "epidemic", {"elderly_alone", "disability", "health_care"}),
        ("PO-09", None, {"child_care"}),
        ("PO-05", "flood", set()),
        ("PO-06", None, set()),
        ("SA-07", "typhoon", set()),
        ("TMP-2022-EPI-01", None, {"elderly_alone", "disability"}),
        ("TMP-2022-EPI-01", "epidemic", {"elderly_alone", "disability", "health_care"}),
        (None, "flood", set()),
    ],
)
def test_a_matter_sees_only_its_flags(
    reference: Reference, matter: str | None, mode: str | None, flags: set[str]
) -> None:
    judged = events(
        {"persons": [{"key": KEY, "role": "subject"}], "matter_code": matter},
        {"persons": None},
        {
            "persons": [{"key": "12" * 32, "role": "party"}, {"key": "34" * 32, "role": "contact"}],
            "matter_code": matter,
        },
    ).with_columns(
        pl.lit(mode, dtype=pl.String).alias("mode"),
        pl.col("matter_code").replace_strict(CATEGORIES, return_dtype=pl.String).alias("category"),
    )
    enriched = enrich(judged, reference)
    frames.expect(enriched.select(list(frames.ENRICHMENT)), frames.ENRICHMENT, "enrichment")
    first, none, others = enriched["person_facts"].to_list()
    assert set(first[0].pop("flags")) == flags
    assert first == [
        {"key": KEY, "role": "subject", "found": True, "age_band": "80+", "gender": "female",
         "residence_kind": "registered", "home_grid_code": CODE}
    ]  # fmt: skip
    assert none == []
    assert [(fact["found"], fact["flags"], fact["age_band"]) for fact in others] == [
        (True, [], None),
        (False, [], None),
    ]
    assert enriched["district_code"].to_list() == ["440704"] * 3
    assert enriched["town_code"][0] == "440704001"
    assert enriched["village_code"][0] == "440704001001"


def test_workers_see_changes_and_keep_what_did_not_change(clickhouse: Client, load: Load) -> None:
    load(**FILES)
    first = Reference.load(clickhouse, tolerance_m=200)
    assert Reference.load(clickhouse, tolerance_m=200, previous=first) is first
    load(grids=[GRIDS[1] | {"grid_name": "再改", "updated_at": "2025-01-01T00:00:00Z"}])
    second = Reference.load(clickhouse, tolerance_m=200, previous=first)
    assert second.version != first.version
    assert second.people is first.people, "4.8 million persons are not read again for one grid"
    now = {"occurred_at": datetime(2025, 2, 1, tzinfo=UTC)}
    assert look_up(first, now)[0]["grid_name"] == "新", "a snapshot does not change under its reader"
    stale, fresh = look_up(second, {}, now)
    assert (stale["grid_name"], stale["grid_version"]) == ("新", 2), (
        "the record was stale when the event happened"
    )
    assert (fresh["grid_name"], fresh["grid_version"]) == ("再改", 3)


def test_a_moved_worker_keeps_the_old_grid_for_old_events(clickhouse: Client, load: Load) -> None:
    load(grids=GRIDS, staff=[STAFF[0]])
    load(staff=[STAFF[0] | {"grid_code": OTHER, "updated_at": "2024-05-01T00:00:00Z"}])
    reference = Reference.load(clickhouse, tolerance_m=200)
    before = {"actor_key": "W1", "occurred_at": datetime(2024, 4, 1, tzinfo=UTC)}
    assert [row["staff_in_grid"] for row in look_up(reference, before, {"actor_key": "W1"})] == [True, False]


def test_loans_and_service_hold_by_their_own_dates_however_late_they_are_recorded(
    clickhouse: Client, load: Load
) -> None:
    first = {**STAFF[0], "loans": [{"grid_code": OTHER, "valid_from": "2024-02-01T00:00:00Z",
                                    "valid_to": "2024-03-01T00:00:00Z"}]}  # fmt: skip
    lent = {"loans": [{"grid_code": OTHER, "valid_from": "2024-06-01T00:00:00Z", "valid_to": None}]}
    load(grids=GRIDS, staff=[first, STAFF[1]])
    load(staff=[first | lent | {"channel_rights": []}])
    load(staff=[first | lent | {"active_to": "2024-09-01T00:00:00Z"}])
    load(staff=[first | {"loans": [], "active_from": "2025-02-01T00:00:00Z"}])  # came back
    reference = Reference.load(clickhouse, tolerance_m=200)

    def at(year: int, month: int) -> dict[str, Any]:
        when = datetime(year, month, 15, tzinfo=UTC)
        (row,) = look_up(reference, {"actor_key": "W1", "grid_code": OTHER, "occurred_at": when})
        return row

    assert at(2024, 2)["staff_in_grid"] is True, "the loan that was known then"
    assert at(2024, 5)["staff_in_grid"] is False
    assert at(2024, 6)["staff_in_grid"] is True, "recorded two loads later, and dropped by the last"
    assert at(2024, 6)["staff_channel_rights"] == ["grid_patrol"], "rights are those of the version"
    served = {month: at(*month)["staff_active"] for month in [(2022, 3), (2024, 8), (2024, 9), (2025, 2)]}
    assert served == {(2022, 3): False, (2024, 8): True, (2024, 9): False, (2025, 2): True}


def test_counts_and_modes(reference: Reference) -> None:
    assert reference.counts == {
        "grids": 3, "units": 1, "staff": 4, "persons": 2, "organisations": 1, "modes": 1,
    }  # fmt: skip
    frames.expect(reference.modes, frames.MODE, "modes")
    assert reference.modes.to_dicts()[0] | MODE | {"valid_from": None} == {
        **MODE, "valid_from": None, "valid_to": None, "version": 1,
    }  # fmt: skip


def test_an_empty_store_answers_nothing_found(clickhouse: Client) -> None:
    reference = Reference.load(clickhouse, tolerance_m=200)
    rows = events(
        {"lon": 113.0, "lat": 22.5, "crs": "gcj02", "actor_key": "W1", "unit_code": f"{CODE}-U001",
         "organisation_code": "O1", "persons": [{"key": KEY, "role": "subject"}], "matter_code": "PS-02"}
    )  # fmt: skip
    row = reference.look_up(rows, CATEGORIES).to_dicts()[0]
    names = ("grid_found", "unit_found", "staff_found", "organisation_found")
    assert [row[name] for name in names] == [False] * 4
    facts = enrich(rows.with_columns(**UNJUDGED), reference)["person_facts"].to_list()
    assert facts[0][0]["found"] is False


def test_the_small_snapshot_of_some_events_agrees_with_the_whole(
    clickhouse: Client, load: Load, reference: Reference
) -> None:
    load(**FILES)
    some = events(
        {
            "actor_key": "LENT",
            "persons": [{"key": KEY, "role": "subject"}],
            "lon": 113.0,
            "lat": 22.5,
            "crs": "wgs84",
        },
        {
            "grid_code": RETIRED,
            "unit_code": f"{CODE}-U001",
            "organisation_code": "O1",
            "actor_key": "it's \\ me",
        },
        {"grid_code": "440704001001999", "matter_code": "SA-01"},
    )
    small = Reference.for_events(clickhouse, some, tolerance_m=200)
    assert small.counts | {"modes": 0} == {
        "grids": 2, "units": 1, "staff": 1, "persons": 1, "organisations": 1, "modes": 0,
    }  # fmt: skip
    assert small.look_up(some, CATEGORIES).equals(reference.look_up(some, CATEGORIES))
    assert small.modes.equals(reference.modes)
    nothing = Reference.for_events(clickhouse, some[:0], tolerance_m=200)
    assert nothing.look_up(some[:0], CATEGORIES).height == 0


ROW = st.fixed_dictionaries(
    {
        "grid_code": st.sampled_from([CODE, OTHER, RETIRED, "000000000000000"]),
        "occurred_at": st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
        "actor_key": st.sampled_from([None, "W1", "LENT", "LEFT", "DESK", "X"]),
        "unit_code": st.sampled_from([None, f"{CODE}-U001", f"{CODE}-U002"]),
        "organisation_code": st.sampled_from([None, "O1", "O2"]),
        "matter_code": st.sampled_from([None, "SA-01", "PS-02", "nonsense"]),
        "lon": st.none() | st.floats(112.99, 113.02),
        "lat": st.none() | st.floats(22.49, 22.52),
        "crs": st.sampled_from(["wgs84", "gcj02", None]),
        "persons": st.none()
        | st.lists(
            st.fixed_dictionaries(
                {"key": st.sampled_from([None, KEY, OTHER_KEY, "x"]), "role": st.just("party")}
            ),
            max_size=3,
        ),
    }
)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(ROW, max_size=12))
def test_every_row_is_answered_by_itself_and_in_order(
    reference: Reference, rows: list[dict[str, Any]]
) -> None:
    block = events(*rows)
    features = frames.expect(reference.look_up(block, CATEGORIES), frames.FEATURES, "features")
    enriched = enrich(block.with_columns(**UNJUDGED), reference)
    assert features.height == enriched.height == block.height
    for number in range(block.height):
        row = block[number : number + 1]
        assert reference.look_up(row, CATEGORIES).equals(features[number : number + 1])
        alone = enrich(row.with_columns(**UNJUDGED), reference)
        assert alone.equals(enriched[number : number + 1])
