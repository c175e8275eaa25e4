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

from pipeline.frames import DECISION, DECODED, FEATURES, MODE, TIMESTAMP, expect
from pipeline.rules.admission import CompiledRule
from pipeline.rules.catalogue import Catalogues
from pipeline.rules.features import Terms, add_features, add_terms, matter_terms
from pipeline.rules.model import RULE_COUNT

PASSED, FAILED, UNKNOWN = 1, 0, 2
_RESULT_WORDS: Final = {PASSED: "true", FAILED: "false", UNKNOWN: "unknown"}


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
    judged = add_terms(expect(events, {**DECODED, **FEATURES}, "events to admit"), judge.terms)
    is_report = judged.select(pl.col("event_type").eq_missing("REPORTED")).to_series()
    reports = _decide_reports(judged.filter(is_report), judge, modes, districts)
    decided = _common(judged, judge.terms, catalogues)
    if reports.height < events.height:
        others = _recorded(events.height - reports.height)
        # one chunk: gathering across chunks costs ten times as much
        reports = pl.concat([reports, others], rechunk=True)
        # position of every event's decision: reports come first, then the others, both in order
        mask = is_report.to_numpy()
        order = np.empty(events.height, np.uint32)
        order[np.concatenate([np.flatnonzero(mask), np.flatnonzero(~mask)])] = np.arange(
            events.height, dtype=np.uint32
        )
        reports = reports[order]
    decision = pl.concat([reports, decided], how="horizontal")
    return pl.concat([events, expect(decision, DECISION, "decision")], how="horizontal")


def matter_facts(events: pl.DataFrame, catalogues: Catalogues) -> pl.DataFrame:
    """{category, lead_department} of each event's matter at its time, null where the matter is unknown.

    events : (n, k) with matter_code, occurred_at and ingested_at; nothing is decided about them.
    """
    terms = _judge(catalogues).terms
    known = add_terms(events.select("matter_code", "occurred_at", "ingested_at"), terms)
    return matter_terms(known, terms, ("matter_category", "matter_lead_department")).rename(
        {"matter_category": "category", "matter_lead_department": "lead_department"}
    )


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
    verdict: tuple[pl.Expr, ...]  # a column per reason and per missing field: true, false or null
    bits: tuple[pl.Expr, ...]  # these as numbers: failed, unknown, missing
    rule_bits: npt.NDArray[np.uint64]  # per rule the bits of its reasons


@lru_cache(maxsize=4)
def _judge(catalogues: Catalogues) -> _Judge:
    reasons, fields = _conditions(catalogues.admission.rules)
    bit = {code: 1 << position for position, code in enumerate(reasons)}
    rule_bits = [
        sum(bit[code] for code in catalogues.admission.reason_codes(number))
        for number in range(1, RULE_COUNT + 1)
    ]
    return _Judge(
        terms=Terms(catalogues),
        reasons=tuple(reasons),
        fields=tuple(fields),
        verdict=tuple(condition.alias(name) for name, condition in (reasons | fields).items()),
        bits=(
            _bits([pl.col(code) for code in reasons]).alias("failed"),
            _bits([pl.col(code).is_null() for code in reasons]).alias("unknown"),
            _bits([pl.col(name) for name in fields]).alias("missing"),
        ),
        rule_bits=np.array(rule_bits, np.uint64),
    )


def _common(judged: pl.DataFrame, terms: Terms, catalogues: Catalogues) -> pl.DataFrame:
    """What is said of every event: the matter's terms, the catalogue's version, lateness."""
    columns = ("matter_category", "matter_urgency", "matter_lead_department")
    return pl.concat([judged, matter_terms(judged, terms, columns)], how="horizontal").select(
        pl.col("matter_category").alias("category"),
        pl.col("matter_urgency").alias("urgency"),
        pl.col("matter_lead_department").alias("lead_department"),
        terms.version_names.gather(judged["_version"]).alias("catalogue_version"),
        *(flag.holds.fill_null(value=False).alias(flag.name) for flag in catalogues.admission.event_flags),
    )


def _decide_reports(
    reports: pl.DataFrame, judge: _Judge, modes: pl.DataFrame, districts: Sequence[str]
) -> pl.DataFrame:
    """The decision on REPORTED events, but for the columns of `_common`."""
    admission = judge.terms.catalogues.admission
    features = add_features(reports, judge.terms, modes, districts).with_columns(
        # an unknown channel leaves open whether it carries photos: a rule that needs to know is unknown, too
        condition.holds.alias(condition.name)
        for condition in admission.derived
    )
    bits = features.select(judge.verdict).select(judge.bits)
    failed, unknown, missing = (bits[name].to_numpy() for name in bits.columns)
    results = np.full((reports.height, RULE_COUNT), PASSED, np.uint8)
    results[(unknown[:, None] & judge.rule_bits) != 0] = UNKNOWN
    results[(failed[:, None] & judge.rule_bits) != 0] = FAILED
    judged = features.with_columns(
        pl.Series("outcome", ["admitted", "rejected"])
        .gather((failed != 0).astype(np.uint32))
        .alias("outcome")
    )
    return judged.select(
        "outcome",
        _names(failed, judge.reasons).alias("reasons"),
        _names(missing, judge.fields).alias("missing_fields"),
        pl.Series("rule_results", results).cast(pl.List(pl.UInt8())),
        *(flag.holds.fill_null(value=False).alias(flag.name) for flag in admission.report_flags),
        _response_limit(judge.terms).alias("response_limit_seconds"),
        pl.col("matter_resolution_seconds").alias("resolution_limit_seconds"),
        "mode",
        "mode_level",
    )


def _bits(conditions: Sequence[pl.Expr]) -> pl.Expr:
    """One number per row: bit i is set where condition i is true. Unknown is not set."""
    return pl.sum_horizontal(
        pl.when(condition).then(pl.lit(1 << position, pl.UInt64())).otherwise(pl.lit(0, pl.UInt64()))
        for position, condition in enumerate(conditions)
    )


def _names(bits: npt.NDArray[np.uint64], names: Sequence[str]) -> pl.Series:
    """Per row the names whose bit is set, in order; (n,) List(String).

    Few combinations occur: each is named once, and rows pick theirs.
    """
    distinct, position = np.unique(bits, return_inverse=True)
    lists = [[name for bit, name in enumerate(names) if int(mask) >> bit & 1] for mask in distinct]
    return pl.Series(lists, dtype=pl.List(pl.String())).gather(position.astype(np.uint32))


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


def _recorded(height: int) -> pl.DataFrame:
    """The decision on events that are not reports."""
    values: dict[str, Any] = {
        "outcome": "recorded",
        "reasons": [],
        "missing_fields": [],
        "rule_results": [],
        "evidence_pending": False,
        "life_safety": False,
        "response_limit_seconds": None,
        "resolution_limit_seconds": None,
        "mode": None,
        "mode_level": None,
    }
    row = pl.DataFrame({name: pl.Series([value], dtype=DECISION[name]) for name, value in values.items()})
    return row[np.zeros(height, np.uint32)]
