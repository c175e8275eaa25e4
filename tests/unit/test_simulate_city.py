"""The simulated city: cardinalities of the sources, geometry, ids that belong to nobody, determinism."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import shapely
from polars.testing import assert_frame_equal

from pipeline.contract.privacy import is_id_number
from pipeline.errors import ConfigurationError
from pipeline.simulate.city import ensure_city, generate_city, read_manifest
from pipeline.simulate.geography import allocate
from pipeline.simulate.numbers import credit_codes, id_number_is_valid, id_numbers
from pipeline.simulate.persons import PERSONS, settle
from pipeline.simulate.published import DISTRICTS
from tests.unit.simulate_world import CATALOGUE

FILES = ("grids", "units", "staff", "persons", "organisations", "modes")


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("city")
    generate_city(out, catalogue_dir=CATALOGUE, seed=20221001, persons=20_000)
    return out


def read(city: Path, name: str) -> pl.DataFrame:
    return pl.read_parquet(city / f"{name}.parquet")


def test_hierarchy_has_the_published_and_assumed_sizes(city: Path) -> None:
    grids = read(city, "grids")
    sizes = {
        facts.code: (facts.villages, facts.grids, facts.units, facts.party_organisations)
        for facts in DISTRICTS
    }
    found = {
        district: (
            rows["grid_code"].str.head(12).n_unique(),
            len(rows),
            int(rows["unit_count"].sum()),
            len(rows) - rows["party_org_code"].null_count(),
        )
        for (district,), rows in grids.with_columns(d=pl.col("grid_code").str.head(6)).group_by("d")
    }
    assert found == sizes
    assert grids["grid_code"].str.head(9).n_unique() == 73
    assert (len(grids), grids["grid_code"].n_unique(), int(grids["unit_count"].sum())) == (
        2_756,
        2_756,
        37_560,
    )


def test_jianghai_has_120_grids_of_14_units_and_70_of_13(city: Path) -> None:
    units = read(city, "grids").filter(pl.col("grid_code").str.starts_with("440704"))["unit_count"]
    assert dict(units.value_counts().iter_rows()) == {14: 120, 13: 70}


def test_units_file_lists_every_unit_of_every_grid_once(city: Path) -> None:
    units, grids = read(city, "units"), read(city, "grids")
    assert units["unit_code"].n_unique() == len(units) == 37_560
    assert units["unit_code"].str.contains(r"^\d{15}-U\d{3}$").all()
    per_grid = units.group_by(grid_code=pl.col("unit_code").str.head(15)).len()
    joined = grids.join(per_grid, on="grid_code", how="left")
    assert (joined["unit_count"] == joined["len"]).all()
    assert units["unit_head_key"].is_in(read(city, "staff")["worker_key"].to_list()).all()


def test_village_digits_follow_the_kind(city: Path) -> None:
    grids = read(city, "grids").with_columns(digits=pl.col("grid_code").str.slice(9, 3).cast(pl.Int64))
    communities = grids.filter(pl.col("village_kind") == "community")["digits"]
    villages = grids.filter(pl.col("village_kind") == "village")["digits"]
    assert communities.is_between(1, 199).all()
    assert villages.is_between(200, 399).all()


@pytest.mark.parametrize(
    ("district", "kind", "count"),
    [
        ("440703", "full_time", 900), ("440703", "part_time", 7_300), ("440703", "professional", 700),
        ("440704", "full_time", 383), ("440704", "part_time", 2_259), ("440704", "leader", 18),
        ("440784", "full_time", 528), ("440784", "part_time", 1_315), ("440784", "professional", 360),
        ("440784", "police_deputy", 328), ("440785", "full_time", 485), ("440785", "part_time", 3_551),
        ("440785", "professional", 1_011),
    ],
)  # fmt: skip
def test_staff_of_described_districts_is_exact(city: Path, district: str, kind: str, count: int) -> None:
    staff = read(city, "staff")
    assert len(staff.filter((pl.col("district_code") == district) & (pl.col("kind") == kind))) == count


def test_staff_city_wide(city: Path) -> None:
    staff = read(city, "staff")
    assert staff["worker_key"].n_unique() == len(staff)
    assert 29_000 <= len(staff) <= 33_000
    assert len(staff.filter(pl.col("kind") == "full_time")) == 3_800
    assert len(staff.filter(pl.col("kind") == "part_time")) == 24_000
    riders = staff.filter(pl.col("channel_rights").list.contains("rider_qrcode"))
    assert len(riders.filter(pl.col("district_code") == "440784")) == 510
    # loans lead to another grid of the same town
    loans = staff.filter(pl.col("loans").list.len() > 0).select(
        "grid_code", pl.col("loans").list.first().struct.field("grid_code").alias("lent_to")
    )
    assert len(loans) > 50
    assert (loans["grid_code"] != loans["lent_to"]).all()
    assert (loans["grid_code"].str.head(9) == loans["lent_to"].str.head(9)).all()


def test_every_grid_has_a_full_time_lead(city: Path) -> None:
    grids, staff = read(city, "grids"), read(city, "staff")
    leads = grids.join(staff, left_on="lead_worker_key", right_on="worker_key", how="left", suffix="_of_lead")
    assert (leads["kind"] == "full_time").all()
    assert (leads["grid_code"] == leads["grid_code_of_lead"]).all()


def test_grids_tile_without_overlap_inside_the_map_box(city: Path) -> None:
    boundaries = shapely.from_wkt(read(city, "grids")["boundary"].to_numpy())
    assert shapely.is_valid(boundaries).all()
    west, south, east, north = shapely.total_bounds(boundaries)
    assert (west >= 111.98, east <= 113.25, south >= 21.45, north <= 22.86) == (True,) * 4
    tree = shapely.STRtree(boundaries)
    left, right = tree.query(boundaries, predicate="overlaps")
    assert len(left) == len(right) == 0
    districts = sum((facts.box[2] - facts.box[0]) * (facts.box[3] - facts.box[1]) for facts in DISTRICTS)
    assert shapely.area(boundaries).sum() == pytest.approx(districts, rel=1e-9)


def test_persons_carry_numbers_that_belong_to_nobody(city: Path) -> None:
    persons = read(city, "persons")
    assert len(persons) == persons["id_number"].n_unique() == 20_000
    assert persons["id_number"].str.starts_with("999999").all()
    sample = persons.head(2_000)
    assert all(is_id_number(number) for number in sample["id_number"])
    assert (sample["id_number"].str.slice(6, 8) == sample["birth_date"].dt.to_string("%Y%m%d")).all()
    male = sample["id_number"].str.slice(16, 1).cast(pl.Int64) % 2 == 1
    assert (male == (sample["gender"] == "male")).all()


def test_names_are_masked_everywhere(city: Path) -> None:
    mask = re.compile(r"^.\*{1,2}$")
    for name in ("persons", "staff"):
        assert all(mask.match(value) for value in read(city, name)["name_masked"].unique())
    phones = read(city, "persons")["phone_masked"].drop_nulls()
    assert phones.str.contains(r"^154\*{4}\d{4}$").all()


def test_age_and_care_groups_have_the_published_shares(city: Path) -> None:
    persons = read(city, "persons").with_columns(
        age=(pl.date(2025, 1, 1) - pl.col("birth_date")).dt.total_days() / 365.2425
    )
    assert (persons["age"] < 15).mean() == pytest.approx(0.161, abs=0.01)
    assert (persons["age"] >= 60).mean() == pytest.approx(0.187, abs=0.01)
    for flag, share in (("elderly_alone_flag", 0.015), ("disability_flag", 0.025), ("hardship_flag", 0.012)):
        assert persons[flag].mean() == pytest.approx(share, abs=0.004)
    assert persons.filter("elderly_alone_flag")["age"].min() >= 60  # type: ignore[operator]


def test_modes_repeat_the_real_patterns_and_say_that_they_are_simulated(city: Path) -> None:
    modes = read(city, "modes").with_columns(local=pl.col("valid_from").dt.convert_time_zone("Asia/Shanghai"))
    assert modes["authority"].str.contains("simulated").all()
    raised = modes.filter(
        (pl.col("mode") == "typhoon") & (pl.col("level") == "III") & (pl.col("local").dt.year() == 2025)
    )
    assert raised["local"].dt.to_string("%m-%d %H:%M").to_list() == ["09-06 23:30"]
    before = modes.filter(pl.col("valid_to") == raised["valid_from"][0])
    assert before["level"].to_list() == ["IV"]


def test_same_seed_gives_the_same_city_and_another_seed_another(city: Path, tmp_path: Path) -> None:
    generate_city(tmp_path / "again", catalogue_dir=CATALOGUE, seed=20221001, persons=20_000)
    generate_city(tmp_path / "other", catalogue_dir=CATALOGUE, seed=1, persons=500)
    for name in FILES:
        assert_frame_equal(read(city, name), read(tmp_path / "again", name))
    assert not read(city, "grids")["boundary"].equals(read(tmp_path / "other", "grids")["boundary"])


def test_cached_city_is_kept_until_its_parameters_change(tmp_path: Path) -> None:
    out = ensure_city(tmp_path / "city", catalogue_dir=CATALOGUE, seed=1, persons=100)
    written = (out / "persons.parquet").stat().st_mtime_ns
    ensure_city(out, catalogue_dir=CATALOGUE, seed=1, persons=100)
    assert (out / "persons.parquet").stat().st_mtime_ns == written
    ensure_city(out, catalogue_dir=CATALOGUE, seed=1, persons=101)
    assert len(read(out, "persons")) == 101
    assert (read_manifest(out) or {})["rows"]["persons"] == 101


def test_interrupted_generation_leaves_no_city(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr("pipeline.simulate.city._write_persons", fail)
    with pytest.raises(ConfigurationError, match="no space"):
        generate_city(tmp_path / "city", catalogue_dir=CATALOGUE, seed=1, persons=100)
    assert read_manifest(tmp_path / "city") is None


def test_ids_stay_unique_across_slices(city: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.simulate.persons.SLICE_ROWS", 1_000)
    slices = list(settle(read(city, "grids"), 7, 5_500))
    assert [len(part) for part in slices] == [1_000] * 5 + [500]
    assert slices[0].schema == pl.Schema(PERSONS)
    assert pl.concat(slices)["id_number"].n_unique() == 5_500


def test_id_checksum_is_that_of_the_standard() -> None:
    # the worked example of GB 11643: 11010519491231002X
    assert id_number_is_valid("11010519491231002X")
    assert not id_number_is_valid("110105194912310021")
    made = id_numbers(pl.Series(["1949-12-31"]).str.to_date(), np.array([2]))
    assert made.to_list()[0][:17] == "99999919491231002"
    assert id_number_is_valid(made.to_list()[0])


def test_credit_codes_have_letters_and_are_unique() -> None:
    codes = credit_codes(np.arange(5_000))
    assert codes.n_unique() == 5_000
    assert codes.str.contains(r"^91999999MA[0-9A-Z]{8}$").all()


def test_allocation_adds_up_and_respects_the_minimum() -> None:
    parts = allocate(2_590, np.random.default_rng(1).uniform(0.1, 5, 190), minimum=3)
    assert parts.sum() == 2_590
    assert parts.min() >= 3
    with pytest.raises(ValueError, match="at least 5"):
        allocate(9, [1, 1], minimum=5)
