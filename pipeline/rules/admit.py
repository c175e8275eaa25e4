"""Admission (入格审查): judges every report by the thirteen rules in force when it happened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from pipeline.frames import DECISION, DECODED, FEATURES, MODE, TIMESTAMP, beside, expect
from pipeline.reference.keys import is_true
from pipeline.rules.admission import CompiledCondition, CompiledRule
from pipeline.rules.catalogue import Catalogues
from pipeline.rules.conditions import columns_used
from pipeline.rules.features import FEATURES_FROM, Terms, add_features, add_terms, matter_terms
from pipeline.rules.model import RULE_COUNT

PASSED, FAILED, UNKNOWN = 1, 0, 2
#: What a condition gives for a row, as a number; null, not known, is one of its own.
_HOLDS, _NOT_KNOWN = 1, 2
_RESULT_WORDS: Final = {PASSED: "true", FAILED: "false", UNKNOWN: "unknown"}
_OUTCOMES: Final = pl.Series("outcome", ["admitted", "rejected"])
#: The decision on an event that is no report.
_RECORDED: Final = pl.DataFrame(
    {
        "outcome": ["recorded"],
        "reasons": [[]],
        "missing_fields": [[]],
        "rule_results": [[]],
        "evidence_pending": [False],
        "life_safety": [False],
        "response_limit_seconds": [None],
        "resolution_limit_seconds": [None],
        "mode": [None],
        "mode_level": [None],
    },
    schema_overrides=DECISION,
)
_JUDGED_BY: Final = {**DECODED, **FEATURES}
#: What every event is told of its matter: names of the terms and of the decision.
_OF_MATTER: Final = {
    "matter_category": "category", "matter_urgency": "urgency", "matter_lead_department": "lead_department",
}  # fmt: skip


def admit(
    events: pl.DataFrame, catalogues: Catalogues, modes: pl.DataFrame, *, districts: Sequence[str]
) -> pl.DataFrame:
    """Decide on every event; the same rows in the same order with the columns of frames.DECISION appended.

    events : (n, k) with the columns of frames.DECODED and frames.FEATURES; others pass through.
    modes : rows of frames.MODE; districts : 6-digit codes of the districts that take part (rule 8).

    REPORTED events are admitted or rejected: all thirteen rules are judged together, reasons stand in rule
    order, and a rule whose input is missing is unknown and adds no reason. Other events are recorded.
    Null features mean that reference data has not spoken: the rules that need them are unknown.
    Time is the event's own (`occurred_at`, `ingested_at`), never the clock: a replay decides the same.

    Raises ContractError if a column is missing or has another dtype.
    Source: domain 7 and 8; design 9.13 to 9.17.
    """
    expect(modes, MODE, "modes")
    judge = _judge(catalogues)
    judged = add_terms(expect(events, _JUDGED_BY, "events to admit"), judge.terms)
    is_report = is_true(judged["event_type"] == "REPORTED")
    # a filter would copy every column
    reports = _decide_reports(judged[judge.looked_at][np.flatnonzero(is_report)], judge, modes, districts)
    if reports.height < events.height:
        # every event's decision: those of reports come first, then the one of all others
        place = np.where(is_report, is_report.cumsum() - 1, reports.height).astype(np.uint32)
        # one chunk: gathering across chunks costs ten times as much
        reports = pl.concat([reports, _RECORDED], rechunk=True)[place]
    decision = reports.hstack(_common(judged, judge))
    return events.hstack(expect(decision, DECISION, "decision"))


def matter_facts(events: pl.DataFrame, catalogues: Catalogues) -> pl.DataFrame:
    """{category, lead_department} of each event's matter at its time, null where the matter is unknown.

    events : (n, k) with matter_code, occurred_at and ingested_at; nothing is decided about them.
    """
    terms = _judge(catalogues).terms
    known = add_terms(events[["matter_code", "occurred_at", "ingested_at"]], terms)
    columns = ("matter_category", "matter_lead_department")
    category, department = matter_terms(known, terms, columns).get_columns()
    return pl.DataFrame([category.alias("category"), department.alias("lead_department")])


def explain_rules(row: Mapping[str, Any], catalogues: Catalogues) -> list[dict[str, Any]]:
    """Every rule with its result, from a stored row's `rule_results` and `reasons`.

    row : at least rule_results (13 numbers, none for an event that is not REPORTED) and reasons.
    Returns number, name_zh, name_en, result ("true", "false", "unknown") and reasons, in rule order; empty
    when the event was not judged.
    """
    results: Sequence[int] = row.get("rule_results") or ()
    reasons: Sequence[str] = row.get("reasons") or ()
    explained = []
    for number, result in enumerate(results, start=1):
        source = catalogues.admission.entries(number)[-1].source
        codes = catalogues.admission.reason_codes(number)
        explained.append(
            {
                "number": number,
                "name_zh": source.name_zh,
                "name_en": source.name_en,
                "result": _RESULT_WORDS[int(result)],
                "reasons": [reason for reason in reasons if reason in codes],
            }
        )
    return explained


@dataclass(frozen=True)
class _Judge:
    """The rules of one load, ready for blocks: building expressions costs as much as a small block."""

    terms: Terms
    reasons: tuple[str, ...]
    fields: tuple[str, ...]
    looked_at: tuple[str, ...]  # columns that a report is judged by
    derived: tuple[pl.Expr, ...]
    verdict: tuple[pl.Expr, ...]  # a column per reason, then one per missing field, as a number
    rule_bits: npt.NDArray[np.uint64]  # per rule the bits of its reasons
    of_report: tuple[pl.Expr, ...]  # what is said of a report beside its verdict
    of_event: tuple[pl.Expr, ...]  # the matter's terms, and flags


@lru_cache(maxsize=4)
def _judge(catalogues: Catalogues) -> _Judge:
    reasons, fields = _conditions(catalogues.admission.rules)
    bit = {code: 1 << position for position, code in enumerate(reasons)}
    rule_bits = [
        sum(bit[code] for code in catalogues.admission.reason_codes(number))
        for number in range(1, RULE_COUNT + 1)
    ]
    terms, admission = Terms(catalogues), catalogues.admission
    conditions = {**reasons, **fields}
    # an unknown channel leaves open whether it carries photos: a rule that needs to know is unknown, too
    derived = tuple(condition.holds.alias(condition.name) for condition in admission.derived)
    of_report = (*_flags(admission.report_flags), _response_limit(terms).alias("response_limit_seconds"))
    used = FEATURES_FROM.union(*map(columns_used, (*conditions.values(), *derived, *of_report)))
    return _Judge(
        terms=terms,
        reasons=tuple(reasons),
        fields=tuple(fields),
        looked_at=tuple(name for name in (*_JUDGED_BY, "age_seconds", "_row") if name in used),
        derived=derived,
        verdict=tuple(
            condition.cast(pl.UInt8).fill_null(_NOT_KNOWN).alias(name)
            for name, condition in conditions.items()
        ),
        rule_bits=np.array(rule_bits, np.uint64),
        of_report=of_report,
        of_event=(
            *(pl.col(term).alias(name) for term, name in _OF_MATTER.items()),
            *_flags(admission.event_flags),
        ),
    )


def _flags(conditions: Sequence[CompiledCondition]) -> tuple[pl.Expr, ...]:
    return tuple(flag.holds.fill_null(value=False).alias(flag.name) for flag in conditions)


def _common(judged: pl.DataFrame, judge: _Judge) -> pl.DataFrame:
    """What is said of every event: the matter's terms, the catalogue's version, lateness."""
    known = judged.hstack(matter_terms(judged, judge.terms, list(_OF_MATTER)))
    version = judge.terms.version_names[judged["_version"]].alias("catalogue_version")
    return known.select(judge.of_event).hstack([version])


def _decide_reports(
    reports: pl.DataFrame, judge: _Judge, modes: pl.DataFrame, districts: Sequence[str]
) -> pl.DataFrame:
    """The decision on REPORTED events, but for the columns of `_common`."""
    features = add_features(reports, judge.terms, modes, districts).with_columns(judge.derived)
    verdict, reasons = features.select(judge.verdict).to_numpy(), len(judge.reasons)
    failed, missing = _bits(verdict[:, :reasons] == _HOLDS), _bits(verdict[:, reasons:] == _HOLDS)
    unknown = _bits(verdict[:, :reasons] == _NOT_KNOWN)
    results = np.full((reports.height, RULE_COUNT), PASSED, np.uint8)
    results[(unknown[:, None] & judge.rule_bits) != 0] = UNKNOWN
    results[(failed[:, None] & judge.rule_bits) != 0] = FAILED
    outcome = _OUTCOMES[(failed != 0).astype(np.uint32)]
    return beside(
        [
            outcome,
            _names(failed, judge.reasons).alias("reasons"),
            _names(missing, judge.fields).alias("missing_fields"),
            pl.Series("rule_results", results).cast(pl.List(pl.UInt8())),
            *features.hstack([outcome]).select(judge.of_report).get_columns(),
            features["matter_resolution_seconds"].alias("resolution_limit_seconds"),
            features["mode"],
            features["mode_level"],
        ]
    )


def _bits(conditions: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint64]:
    """One number per row, (n,): bit i is set where condition i of (n, k) is true."""
    numbers: npt.NDArray[np.uint64] = conditions @ (1 << np.arange(conditions.shape[1], dtype=np.uint64))
    return numbers


def _names(bits: npt.NDArray[np.uint64], names: Sequence[str]) -> pl.Series:
    """Per row the names whose bit is set, in order; (n,) List(String).

    Few combinations occur: each is named once, and rows pick theirs.
    """
    distinct, position = np.unique(bits, return_inverse=True)
    lists = [[name for bit, name in enumerate(names) if int(mask) >> bit & 1] for mask in distinct]
    return pl.Series(lists, dtype=pl.List(pl.String()))[position.astype(np.uint32)]


def _conditions(rules: Sequence[CompiledRule]) -> tuple[dict[str, pl.Expr], dict[str, pl.Expr]]:
    """Condition per reason code and per missing field, each by the rule's entry in force at occurred_at."""
    reasons: dict[str, pl.Expr] = {}
    fields: dict[str, pl.Expr] = {}
    for number in range(1, RULE_COUNT + 1):
        entries = [rule for rule in rules if rule.number == number]
        for position, entry in enumerate(entries):
            until = entries[position + 1].effective_from if position + 1 < len(entries) else None
            for reason in entry.reasons:
                _add(reasons, reason.code, _while(entry, until, reason.fails))
                for name, expr in reason.fields.items():
                    _add(fields, name, _while(entry, until, expr))
    return reasons, fields


def _while(entry: CompiledRule, until: datetime | None, fails: pl.Expr) -> pl.Expr:
    """The condition while the entry is in force, false outside."""
    if entry.effective_from is not None:
        start = pl.lit(entry.effective_from, dtype=TIMESTAMP)
        fails = pl.when(pl.col("occurred_at") >= start).then(fails).otherwise(False)
    if until is not None:
        end = pl.lit(until, dtype=TIMESTAMP)
        fails = pl.when(pl.col("occurred_at") < end).then(fails).otherwise(False)
    return fails


def _add(conditions: dict[str, pl.Expr], name: str, condition: pl.Expr) -> None:
    conditions[name] = conditions[name] | condition if name in conditions else condition


def _response_limit(terms: Terms) -> pl.Expr:
    """The matter's response limit, seconds, times the factor of the level that acts, not under the floor."""
    floor = terms.catalogues.modes.response_floor_seconds
    base, factor = pl.col("matter_response_seconds"), pl.col("_response_factor")
    # a matter whose own limit lies under the floor keeps it: a mode never makes a limit longer
    shortened = pl.min_horizontal((base * factor).round().clip(lower_bound=floor), base)
    return pl.when(factor.is_not_null()).then(shortened).otherwise(base).cast(pl.UInt32())
