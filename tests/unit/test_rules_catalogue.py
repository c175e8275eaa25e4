"""The shipped catalogue is sound and versions decide by occurred_at; a broken one names file and line."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest

from pipeline.errors import ConfigurationError
from pipeline.read.matters import former_matters
from pipeline.rules.catalogue import load_catalogues
from tests.unit.admit_rows import CATALOGUE, MORNING, PHOTO, catalogues, copy_catalogue, edit, judge, report

MATTERS = "matters/2022-04-01.yaml"
NEXT = "matters/2026-05-01.yaml"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return copy_catalogue(tmp_path / "catalogue")


def problems(directory: Path) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load_catalogues(directory)
    return list(caught.value.problems)


def test_the_list_holds_65_matters_in_two_batches_and_says_that_it_is_not_official() -> None:
    version = catalogues().versions[0]
    regular = [matter for matter in version.matters.values() if not matter.temporary]
    assert len(regular) == 65
    assert sorted({matter.batch for matter in regular if matter.batch}) == [1, 2]
    assert version.head.status == "reference_not_official"
    header = (CATALOGUE / MATTERS).read_text(encoding="utf-8").split("meta:")[0]
    assert "REFERENCE ONLY" in header
    assert "MUST be replaced" in header


def test_matters_come_into_force_at_local_midnight_of_their_batch() -> None:
    first = datetime(2022, 3, 31, 16, tzinfo=UTC)
    second = datetime(2022, 7, 31, 16, tzinfo=UTC)
    before = timedelta(milliseconds=1)
    counts = [len(catalogues().matters(at)) for at in (first - before, first, second - before, second)]
    assert counts == [0, 40, 40, 65]


def test_a_temporary_matter_is_listed_during_its_days_only() -> None:
    def listed(at: datetime) -> bool:
        return "TMP-2022-EPI-01" in {matter.code for matter in catalogues().matters(at)}

    assert not listed(datetime(2022, 10, 28, 15, 59, tzinfo=UTC))
    assert listed(datetime(2022, 10, 28, 16, tzinfo=UTC))
    assert not listed(datetime(2022, 11, 11, 16, tzinfo=UTC))


def test_a_matter_is_a_former_one_for_as_long_as_its_last_days_are_looked_at() -> None:
    def former(at: datetime) -> list[str]:
        return [matter["code"] for matter in former_matters(catalogues(), at - timedelta(days=30), at)]

    end, hour = datetime(2022, 11, 11, 16, tzinfo=UTC), timedelta(hours=1)
    assert former(end - hour) == []  # in force
    assert former(end) == ["TMP-2022-EPI-01"]
    assert former(end + timedelta(days=30) - hour) == ["TMP-2022-EPI-01"]
    assert former(end + timedelta(days=30)) == []
    # before it began, which the list already told
    assert former(datetime(2022, 10, 1, tzinfo=UTC)) == []


def test_a_withdrawn_matter_is_a_former_one_with_its_limits(directory: Path) -> None:
    file = add_version(directory)
    head, matter = file.read_text(encoding="utf-8").split("  - code: SA-07\n", 1)
    matter = matter.replace("effective_to: null", "effective_to: 2026-05-01", 1)
    file.write_text(f"{head}  - code: SA-07\n{matter}", encoding="utf-8")
    rules, last = load_catalogues(directory), datetime(2026, 4, 30, 16, tzinfo=UTC)
    month = timedelta(days=30)
    assert former_matters(rules, last - timedelta(hours=1) - month, last - timedelta(hours=1)) == []
    (former,) = former_matters(rules, last - month, last)
    assert (former["code"], former["response_minutes"]) == ("SA-07", 30)
    assert former_matters(rules, last, last + month) == []


def test_names_and_kinds_can_be_looked_up() -> None:
    rules = catalogues()
    assert rules.matter_names_zh["SA-07"] == "高空坠物及外墙悬挂物隐患"
    assert rules.matter_names_zh["REF-110"] == "公安110警情"
    assert rules.category_names_zh["SA"] == "安全隐患排查"
    assert rules.department_names_zh["public_security"] == "公安局"
    assert rules.channel_names_zh["pingantong"] == "平安通"
    assert rules.reason_names_zh["GRID_UNKNOWN"] == "网格不存在"
    assert set(rules.channel_kind.values()) == {
        "staff",
        "public",
        "care",
        "desk",
        "device",
        "system",
    }


def test_the_digest_follows_the_values_and_not_the_comments(directory: Path) -> None:
    before = load_catalogues(directory).digest
    assert before == catalogues().digest
    edit(directory / MATTERS, "# assumed", "# assumed, to be confirmed")
    assert load_catalogues(directory).digest == before
    edit(directory / MATTERS, "response_minutes: 1440", "response_minutes: 1441")
    assert load_catalogues(directory).digest != before


def add_version(directory: Path) -> Path:
    """A second version from 1 May 2026, in which SA-07 must be answered within half an hour."""
    text = (directory / MATTERS).read_text(encoding="utf-8")
    text = text.replace('version: "0.1"', 'version: "0.2"', 1)
    text = text.replace("  effective_from: 2022-04-01   # 00:00", "  effective_from: 2026-05-01   # 00:00", 1)
    head, tail = text.split("  - code: SA-07\n", 1)
    tail = tail.replace("response_minutes: 60", "response_minutes: 30", 1)
    file = directory / NEXT
    file.write_text(head + "  - code: SA-07\n" + tail, encoding="utf-8")
    return file


def test_a_report_is_judged_by_the_version_in_force_when_it_happened(directory: Path) -> None:
    add_version(directory)
    rules = load_catalogues(directory)
    assert [version.version for version in rules.versions] == ["0.1", "0.2"]
    midnight = datetime(2026, 4, 30, 16, tzinfo=UTC)
    decided = [
        judge(report(occurred_at=at, photos=[PHOTO | {"taken_at": None}]), rules=rules)
        for at in (midnight - timedelta(milliseconds=1), midnight, datetime(2021, 1, 1, tzinfo=UTC))
    ]
    assert [(row["catalogue_version"], row["response_limit_seconds"]) for row in decided] == [
        ("0.1", 3600), ("0.2", 1800), ("0.1", 3600),
    ]  # fmt: skip
    assert decided[2]["reasons"] == ["MATTER_NOT_YET_IN_FORCE"]
    assert rules.version_at(MORNING).version == "0.2"


def test_a_new_version_must_repeat_every_code(directory: Path) -> None:
    file = add_version(directory)
    text = file.read_text(encoding="utf-8")
    start, end = text.index("  - code: SA-12\n"), text.index("  - code: SA-13\n")
    file.write_text(text[:start] + text[end:], encoding="utf-8")
    edit(file, "matter_count: 65", "matter_count: 64")
    edit(file, "SA: 13", "SA: 12")
    edit(file, "count: 40" if "batch: 1" in text[start:end] else "count: 25",
         "count: 39" if "batch: 1" in text[start:end] else "count: 24")  # fmt: skip
    line = file.read_text(encoding="utf-8").split("\nmatters:")[0].count("\n") + 2
    assert problems(directory) == [
        f"{file}:{line}: SA-12 of version 0.1 is missing; repeat it with effective_to set"
    ]


def test_two_versions_need_two_names(directory: Path) -> None:
    file = add_version(directory)
    line = edit(file, 'version: "0.2"', 'version: "0.1"')
    expected = f"{file}:{line}: version 0.1 is also that of 2022-04-01.yaml; give it another"
    assert problems(directory) == [expected]


class Mistake(NamedTuple):
    """A text of a file, what it is replaced by, and what the problem must say."""

    file: str
    old: str
    new: str
    says: str


MISTAKES = {
    "unknown category": Mistake(
        MATTERS,
        "category: DM",
        "category: DX",
        "DM-01: category: DX is unknown",
    ),
    "unknown department": Mistake(
        MATTERS,
        "lead_department: justice",
        "lead_department: justise",
        "lead_department: justise is unknown; did you mean justice?",
    ),
    "unknown supporting department": Mistake(
        MATTERS,
        "supporting_departments: [petition_office",
        "supporting_departments: [petition_ofice",
        "petition_ofice is unknown; did you mean petition_office?",
    ),
    "unknown channel": Mistake(
        MATTERS,
        "allowed_channels: [pingantong]",
        "allowed_channels: [pingantung]",
        "PS-02: allowed_channels: pingantung is unknown; did you mean pingantong?",
    ),
    "channel twice": Mistake(
        MATTERS,
        "allowed_channels: [pingantong]",
        "allowed_channels: [pingantong, pingantong]",
        "PS-02: allowed_channels: names a code twice",
    ),
    "unknown mode": Mistake(
        MATTERS,
        "emergency_modes: [epidemic]",
        "emergency_modes: [epidemik]",
        "BI-01: emergency_modes: epidemik is unknown; did you mean epidemic?",
    ),
    "none beside a mode": Mistake(
        MATTERS,
        "emergency_modes: [none]",
        "emergency_modes: [none, heat]",
        "BI-04: emergency_modes: [none] stands alone",
    ),
    "only mode not prioritised": Mistake(
        "temporary.yaml",
        "active_only_in_modes: [epidemic]",
        "active_only_in_modes: [flood]",
        "active_only_in_modes: must be among emergency_modes",
    ),
    "unknown required field": Mistake(
        MATTERS,
        "required_fields: [location, person]",
        "required_fields: [location, sound]",
        "BI-01: required_fields: Invalid enum value 'sound'",
    ),
    "person not required": Mistake(
        MATTERS,
        "needs_person: false",
        "needs_person: true",
        "BI-03: needs_person: person must be among required_fields",
    ),
    "wrong type": Mistake(
        MATTERS,
        "response_minutes: 1440",
        "response_minutes: soon",
        "BI-01: response_minutes: Expected `int`, got `str`",
    ),
    "limit of nought": Mistake(
        MATTERS,
        "resolution_hours: 168",
        "resolution_hours: 0",
        "BI-01: resolution_hours: Expected `int` >= 1",
    ),
    "no such urgency": Mistake(
        MATTERS,
        "urgency: routine",
        "urgency: lazy",
        "BI-01: urgency: Invalid enum value 'lazy'",
    ),
    "code out of shape": Mistake(
        MATTERS,
        "- code: BI-02",
        "- code: bi 02",
        "code: Expected `str` matching regex",
    ),
    "code of another category": Mistake(
        MATTERS,
        "- code: BI-02",
        "- code: SA-92",
        "SA-92: code: must begin with its category BI-",
    ),
    "code twice": Mistake(
        MATTERS,
        "- code: BI-02",
        "- code: BI-01",
        "BI-01 appears twice, first in line",
    ),
    "misspelt key": Mistake(
        MATTERS,
        "needs_person: true",
        "need_person: true",
        "BI-01: need_person: unknown key; did you mean needs_person?",
    ),
    "ends before it begins": Mistake(
        MATTERS,
        "effective_to: null",
        "effective_to: 2022-04-01",
        "BI-01: effective_to: must be after effective_from 2022-04-01",
    ),
    "approved too late": Mistake(
        MATTERS,
        "    approved_on: 2022-03-15",
        "    approved_on: 2022-04-02",
        "BI-01: approved_on: must not be after effective_from 2022-04-01",
    ),
    "no such batch": Mistake(
        MATTERS,
        "    batch: 1",
        "    batch: 3",
        "BI-01: batch: 3 is not among meta.batches",
    ),
    "wrong number of matters": Mistake(
        MATTERS,
        "matter_count: 65",
        "matter_count: 66",
        "matter_count is 66, but 65 matters follow",
    ),
    "wrong number in a batch": Mistake(
        MATTERS,
        "count: 25",
        "count: 26",
        "batch 2 is stated to have 26 matters, but has 25",
    ),
    "wrong number in a category": Mistake(
        MATTERS,
        "category_counts: {BI: 7",
        "category_counts: {BI: 8",
        "category BI is stated to have 8 matters, but has 7",
    ),
    "day not the file's": Mistake(
        MATTERS,
        "  effective_from: 2022-04-01   # 00:00",
        "  effective_from: 2022-04-02   # 00:00",
        "the file must be named 2022-04-02.yaml after its day",
    ),
    "temporary without expiry": Mistake(
        "temporary.yaml",
        "effective_to: 2022-11-12",
        "effective_to: null",
        "TMP-2022-EPI-01: effective_to: is missing; a temporary matter must expire",
    ),
    "regular code among temporary": Mistake(
        "temporary.yaml",
        "- code: TMP-2022-EPI-01",
        "- code: ER-91",
        'ER-91: code: codes of temporary matters begin with "TMP-"',
    ),
    "unknown base matter": Mistake(
        "temporary.yaml",
        "base_matter: ER-06",
        "base_matter: ER-60",
        "TMP-2022-EPI-01: base_matter: ER-60 is unknown",
    ),
    "temporary among regular": Mistake(
        MATTERS,
        "- code: BI-02",
        "- code: TMP-BI-02",
        "TMP-BI-02: code: temporary matters belong into temporary.yaml",
    ),
    "unknown channel kind": Mistake(
        "channels.yaml",
        "kind: desk",
        "kind: table",
        "petition_market: kind: Invalid enum value",
    ),
    "referral to nowhere": Mistake(
        "referrals.yaml",
        "reason: OUT_OF_ADMIN_SCOPE",
        "reason: GRID_UNKNOWN",
        "REF-COURT: reason GRID_UNKNOWN is none of rule 13's: REFER_EMERGENCY_SERVICE, OUT_OF_ADMIN_SCOPE",
    ),
    "factor above one": Mistake(
        "modes.yaml",
        "response_factor: 0.75",
        "response_factor: 1.75",
        "III: response_factor: Expected `float` <= 1.0",
    ),
    "levels out of order": Mistake(
        "modes.yaml",
        "response_factor: 0.75",
        "response_factor: 0.4",
        "levels must run from the weakest to the strongest",
    ),
    "floor no number": Mistake(
        "modes.yaml",
        "response_floor_minutes: 10",
        "response_floor_minutes: ten",
        "response_floor_minutes must be whole minutes, found 'ten'",
    ),
    "not YAML": Mistake(
        "departments.yaml",
        "departments:\n  - {",
        "departments:\n  - {{",
        "not valid YAML: ",
    ),
    "key twice": Mistake(
        "modes.yaml",
        "response_floor_minutes: 10",
        "levels: []",
        "levels appears twice; keep one",
    ),
    "unknown top-level key": Mistake(
        "categories.yaml",
        "categories:",
        "extra: 1\ncategories:",
        "extra: unknown key",
    ),
}

#: Mistakes that are not told at the line of the text changed: a list in disorder, a bracket never closed.
ELSEWHERE = {"levels out of order", "not YAML"}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_with_its_file_and_line(directory: Path, name: str) -> None:
    mistake = MISTAKES[name]
    line = edit(directory / mistake.file, mistake.old, mistake.new)
    found = problems(directory)
    told = [problem for problem in found if mistake.says in problem]
    assert told, found
    path, number, _ = told[0].split(":", 2)
    assert Path(path) == directory / mistake.file
    assert int(number) == line or name in ELSEWHERE


def test_an_alias_is_refused_because_its_line_is_not_where_the_value_stands(directory: Path) -> None:
    line = edit(
        directory / "modes.yaml", "response_floor_minutes: 10", "response_floor_minutes: &m 10\nmore: *m"
    )
    expected = f"{directory / 'modes.yaml'}:{line}: aliases (*name) are not taken; write the value out"
    assert expected in problems(directory)


def test_a_day_that_does_not_exist_is_named(directory: Path) -> None:
    line = edit(directory / MATTERS, "approved_on: 2022-03-15      #", "approved_on: 2022-13-15      #")
    assert problems(directory) == [f"{directory / MATTERS}:{line}: 2022-13-15: month must be in 1..12"]


def test_all_mistakes_are_told_at_once(directory: Path) -> None:
    edits = [
        (MATTERS, "lead_department: justice", "lead_department: nobody"),
        (MATTERS, "response_minutes: 1440", "response_minutes: soon"),
        ("channels.yaml", "kind: desk", "kind: table"),
    ]
    for file, old, new in edits:
        edit(directory / file, old, new)
    found = problems(directory)
    assert any("nobody is unknown" in problem for problem in found)
    assert any("response_minutes: Expected" in problem for problem in found)
    assert any("kind: Invalid enum value" in problem for problem in found)


def test_one_mistake_is_told_once_not_wherever_its_code_is_used(directory: Path) -> None:
    line = edit(directory / "channels.yaml", "kind: desk", "kind: table")
    found = problems(directory)
    assert len(found) == 1
    assert found[0].startswith(f"{directory / 'channels.yaml'}:{line}: petition_market: kind: ")


def test_more_channels_than_a_bit_set_holds_are_refused(directory: Path) -> None:
    terms = "name_zh: 渠道, name_en: channel, kind: desk, carries_photo: true, reporter: anyone"
    more = "".join(f"  - {{code: c{number}, {terms}}}\n" for number in range(60))
    file = directory / "channels.yaml"
    file.write_text(file.read_text(encoding="utf-8") + more, encoding="utf-8")
    assert any("channels: 69 entries, at most 60 fit" in problem for problem in problems(directory))


def drop_temporary(directory: Path) -> None:
    (directory / "temporary.yaml").unlink()


def drop_matters(directory: Path) -> None:
    (directory / MATTERS).unlink()


def not_text(directory: Path) -> None:
    (directory / "modes.yaml").write_bytes(b"modes: \xff\xfe")


def a_list(directory: Path) -> None:
    (directory / "modes.yaml").write_text("- 1\n", encoding="utf-8")


def no_expiry_key(directory: Path) -> None:
    line = "    effective_to: 2023-09-05\n"
    edit(directory / "temporary.yaml", line, "")


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (drop_temporary, "temporary.yaml:1: the file is missing"),
        (drop_matters, "matters:1: no version of the matters"),
        (not_text, "modes.yaml:1: cannot be read as UTF-8"),
        (a_list, "modes.yaml:1: must be a mapping with the keys modes, levels"),
        (no_expiry_key, "TMP-2023-TYP-01: effective_to: is missing"),
    ],
)
def test_half_a_catalogue_is_not_loaded(directory: Path, spoil: Callable[[Path], None], text: str) -> None:
    spoil(directory)
    assert any(text in problem for problem in problems(directory))


def test_a_missing_directory_says_so(tmp_path: Path) -> None:
    assert problems(tmp_path / "nowhere") == [
        f"{tmp_path / 'nowhere'}: no such catalogue directory; see GRIDPIPE_SCHEMAS_DIR"
    ]
