"""Broken admission rules are refused while loading, with file and line; sound ones carry their proof."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import polars as pl
import pytest

from pipeline.rules.admission import Admission, read_admission
from pipeline.rules.conditions import COLUMNS, ConditionError, compile_condition
from pipeline.rules.files import Problems, read_document
from tests.unit.admit_rows import CATALOGUE, catalogues, edit

KEYS = ("version", "derived", "rules", "report_flags", "event_flags")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    copy = tmp_path / "admission.yaml"
    copy.write_text((CATALOGUE / "admission.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    return copy


def read(file: Path) -> tuple[Admission | None, list[str]]:
    problems = Problems()
    document = read_document(file, problems, keys=KEYS)
    admission = None if document is None else read_admission(document, problems)
    return admission, problems.lines


def test_there_are_thirteen_rules_and_every_reason_belongs_to_one() -> None:
    admission = catalogues().admission
    assert [rule.number for rule in admission.rules] == list(range(1, 14))
    assert admission.reason_codes() == (
        "MALFORMED", "TIME_IN_FUTURE", "TOO_OLD", "UNKNOWN_MATTER", "MATTER_NOT_YET_IN_FORCE",
        "MATTER_WITHDRAWN", "TEMP_MATTER_EXPIRED", "MODE_NOT_ACTIVE", "CHANNEL_NOT_ALLOWED",
        "REPORTER_NOT_AUTHORISED", "GRID_UNKNOWN", "GRID_INACTIVE", "GRID_OUT_OF_SCOPE",
        "LOCATION_GRID_MISMATCH", "REQUIRED_FIELD_MISSING", "EVIDENCE_INVALID", "PERSON_UNRESOLVED",
        "REFER_EMERGENCY_SERVICE", "OUT_OF_ADMIN_SCOPE",
    )  # fmt: skip


class Mistake(NamedTuple):
    """A text of the file, what it is replaced by, and what the problem at its line must say."""

    old: str
    new: str
    says: str


FUTURE = "fails_when: age_seconds < -300"

MISTAKES = {
    "unknown column": Mistake(
        FUTURE,
        "fails_when: age_second < -300",
        "rule 2, TIME_IN_FUTURE: condition unknown column age_second; did you mean age_seconds?",
    ),
    "number against text": Mistake(
        FUTURE,
        "fails_when: channel < -300",
        "condition cannot be evaluated: cannot compare string with numeric",
    ),
    "no truth value": Mistake(
        FUTURE, "fails_when: age_seconds + 300", "condition gives Float64, must give true"
    ),
    "no expression": Mistake(FUTURE, "fails_when: age_seconds <", "condition is no SQL expression"),
    "two statements": Mistake(FUTURE, 'fails_when: "backfill; backfill"', "condition is no SQL expression"),
    "aggregate": Mistake(FUTURE, "fails_when: age_seconds < AVG(age_seconds)", "must look at one row only"),
    "first of the block": Mistake(
        FUTURE, "fails_when: age_seconds < FIRST(age_seconds)", "must look at one row"
    ),
    "window": Mistake(
        FUTURE, "fails_when: ROW_NUMBER() OVER (ORDER BY age_seconds) > 1", "must look at one row only"
    ),
    "counting rows": Mistake(FUTURE, "fails_when: COUNT(*) > 1", "must look at one row only"),
    "pattern that is none": Mistake(
        FUTURE, "fails_when: channel ~ '(a'", "condition cannot be evaluated: regex error"
    ),
    "pattern that explodes": Mistake(
        FUTURE, "fails_when: channel ~ '((a{1000}){1000}){1000}'", "condition cannot be evaluated"
    ),
    "pattern without bounds": Mistake(
        FUTURE, f"fails_when: channel ~ '{'a?' * 101}'", "a pattern or text is longer than 200 characters"
    ),
    "endless condition": Mistake(
        FUTURE, f"fails_when: {' OR '.join(['backfill'] * 200)}", "is longer than 2000 characters"
    ),
    "need that is no truth value": Mistake(
        "needs: [matter_known, grid_found]",
        "needs: [matter_known, grid_code]",
        "rule 5: needs grid_code, which is no",
    ),
    "field that does not exist": Mistake(
        "          photo: requires_photo", "          sound: requires_photo", "Invalid enum value 'sound'"
    ),
    "condition of a field": Mistake(
        "          person: requires_person AND", "          person: requires_persons AND", "unknown column"
    ),
    "reason twice": Mistake("code: TOO_OLD", "code: TIME_IN_FUTURE", "reason TIME_IN_FUTURE appears twice"),
    "reason of another rule": Mistake("code: TOO_OLD", "code: MALFORMED", "reason MALFORMED appears twice"),
    "example that fails": Mistake(
        "{given: {age_seconds: -300, backfill: false}, result: true}",
        "{given: {age_seconds: -301, backfill: false}, result: true}",
        "rule 2: the example must give true, but the conditions give false (TIME_IN_FUTURE)",
    ),
    "example with another reason": Mistake(
        "result: false, reasons: [GRID_UNKNOWN, GRID_OUT_OF_SCOPE]",
        "result: false, reasons: [GRID_UNKNOWN]",
        "rule 8: the example must give false (GRID_UNKNOWN), but the conditions give false (GRID_UNKNOWN, G",
    ),
    "example that is unknown": Mistake(
        "{given: {matter_known: false, occurred_at: 2024-01-01T00:00:00Z}, result: unknown}",
        "{given: {matter_known: false, occurred_at: 2024-01-01T00:00:00Z}, result: true}",
        "rule 4: the example must give true, but the conditions give unknown",
    ),
    "example naming other fields": Mistake(
        "missing_fields: [person]", "missing_fields: [photo]", "naming person)"
    ),
    "example of a column not looked at": Mistake(
        "{given: {channel_reporter: anyone}, result: true}",
        "{given: {channel_reporter: anyone, lon: 1.0}, result: true}",
        "rule 7: the example gives lon, which is not looked at",
    ),
    "flag example that fails": Mistake(
        "{given: {event_type: CLOSED, age_seconds: -300}, result: false}",
        "{given: {event_type: CLOSED, age_seconds: -300}, result: true}",
        "time_adjusted: the example must give true, but the condition gives false",
    ),
    "shared condition that is unknown": Mistake(
        "{given: {mode_prioritises: false}, result: unknown}",
        "{given: {mode_prioritises: false}, result: false}",
        "photo_waived: the example must give false, but the condition gives unknown",
    ),
    "flag of another name": Mistake("event_flags:", "event_flags:\n  - {name: odd}", "odd: is is missing"),
    "rule number out of range": Mistake("number: 13", "number: 14", "rule 14: number: Expected `int` <= 13"),
    "text for a number": Mistake("number: 13", "number: last", "number: Expected `int`, got `str`"),
    "unknown key": Mistake(
        "    needs: [grid_found]", "    need: [grid_found]", "need: unknown key; did you mean needs?"
    ),
}
#: Told at a line near the text changed, not at it.
NEARBY = {"flag of another name": 1, "field that does not exist": -2}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_with_its_line(file: Path, name: str) -> None:
    mistake = MISTAKES[name]
    line = edit(file, mistake.old, mistake.new)
    admission, problems = read(file)
    assert admission is None
    told = [problem for problem in problems if mistake.says in problem]
    assert told, problems
    assert told[0].startswith(f"{file}:{line + NEARBY.get(name, 0)}: "), told


def test_a_value_that_does_not_fit_its_column_is_named(file: Path) -> None:
    edit(file, "{given: {age_seconds: -300, backfill: false}", "{given: {age_seconds: soon, backfill: false}")
    _, problems = read(file)
    assert any("rule 2: given age_seconds does not fit its type Float64" in problem for problem in problems)


def test_every_rule_must_be_there(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    start, end = text.index("  - number: 6\n"), text.index("  - number: 7\n")
    file.write_text(text[:start] + text[end:], encoding="utf-8")
    admission, problems = read(file)
    assert admission is None
    assert any("rule 6 needs exactly one entry without effective_from" in problem for problem in problems)


def test_rules_stand_in_their_order(file: Path) -> None:
    edit(file, "number: 6\n", "number: 66\n")
    edit(file, "number: 7\n", "number: 6\n")
    edit(file, "number: 66\n", "number: 7\n")
    admission, problems = read(file)
    assert admission is None
    assert any("rule 6 stands behind rule 7; keep the order" in problem for problem in problems)


@pytest.mark.parametrize(
    ("drop", "says"),
    [
        (
            "{given: {age_seconds: 2592000.001, backfill: false}, result: false, reasons: [TOO_OLD]}",
            "TOO_OLD fires",
        ),
        ("{given: {}, result: true}", "rule 13: no example that passes"),
    ],
)
def test_a_rule_without_its_proof_is_refused(file: Path, drop: str, says: str) -> None:
    edit(file, f"      - {drop}\n", "")
    admission, problems = read(file)
    assert admission is None
    assert any(says in problem for problem in problems), problems


def test_ten_thousand_rules_are_refused_at_once(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    start, end = text.index("  - number: 13\n"), text.index("# What a decision says")
    entry = (
        text[start:end].rstrip().replace("number: 13", "number: 13\n    effective_from: 2026-01-01") + "\n"
    )
    file.write_text(text[:end] + entry * 100 + "\n" + text[end:], encoding="utf-8")
    admission, problems = read(file)
    assert admission is None
    assert len(problems) == 1
    assert "113 rule entries, at most 100 are taken" in problems[0]


def test_two_entries_of_a_rule_may_not_begin_on_one_day(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    start, end = text.index("  - number: 13\n"), text.index("# What a decision says")
    entry = (
        text[start:end].rstrip().replace("number: 13", "number: 13\n    effective_from: 2026-01-01") + "\n"
    )
    file.write_text(text[:end] + entry * 2 + "\n" + text[end:], encoding="utf-8")
    admission, problems = read(file)
    assert admission is None
    assert any("rule 13 has two entries for one effective_from" in problem for problem in problems)


def test_a_flag_may_not_be_left_out(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    start = text.index("  - name: life_safety")
    file.write_text(text[:start] + text[text.index("event_flags:") :], encoding="utf-8")
    admission, problems = read(file)
    assert admission is None
    assert any("report_flags must define exactly evidence_pending, life_safety" in line for line in problems)


def test_every_column_of_the_conditions_exists_with_its_type_in_the_features() -> None:
    """What the loader proves conditions against is what `admit` computes."""
    from pipeline.rules.features import Terms, add_features, add_terms
    from tests.unit.admit_rows import DISTRICTS, NO_MODES, SCHEMA, frame, report

    terms = Terms(catalogues())
    computed = add_features(add_terms(frame([report()]), terms), terms, NO_MODES, DISTRICTS)
    assert {name: computed.schema[name] for name in COLUMNS} == COLUMNS
    assert set(SCHEMA) < set(COLUMNS)


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("has_photo AND photo_hash_valid", [None, None, False]),
        ("has_photo OR photo_hash_valid", [True, None, None]),
        ("NOT has_photo", [False, None, True]),
        ("channel IN ('a', 'b')", [True, None, False]),
        ("channel IS NULL", [False, True, False]),
    ],
)
def test_conditions_are_three_valued(sql: str, expected: list[bool | None]) -> None:
    rows = pl.DataFrame(
        {
            "has_photo": [True, None, False],
            "photo_hash_valid": [None, None, None],
            "channel": ["a", None, "z"],
        },
        schema={name: COLUMNS[name] for name in ("has_photo", "photo_hash_valid", "channel")},
    )
    assert rows.select(compile_condition(sql, COLUMNS).alias("result"))["result"].to_list() == expected


def test_a_condition_without_columns_is_allowed() -> None:
    assert compile_condition("FALSE", COLUMNS).meta.root_names() == []


def test_a_subquery_is_no_condition() -> None:
    with pytest.raises(ConditionError):
        compile_condition("channel IN (SELECT 'a')", COLUMNS)
