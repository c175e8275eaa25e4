"""Admission (入格审查): judges every report by the thirteen rules in force when it happened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

import numpy as np
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
    expect(events, {**DECODED, **FEATURES}, "events to admit")
    expect(modes, MODE, "modes")
    terms = _terms(catalogues)
    judged = add_terms(events.select([*DECODED, *FEATURES]), terms)
    is_report = (judged["event_type"] == "REPORTED").fill_null(value=False)
    reports = _decide_reports(judged.filter(is_report), terms, modes, districts)
    decided = _common(judged, terms, catalogues)
    where = is_report.arg_true()
    if len(where) < events.height:
        others = _recorded(events.height - len(where))
        # one chunk: gathering across chunks costs ten times as much
        reports = pl.concat([reports, others], rechunk=True)
        # position of every event's decision: reports come first, then the others, both in order
        order = np.empty(events.height, np.uint32)
        order[np.concatenate([where.to_numpy(), (~is_report).arg_true().to_numpy()])] = np.arange(
            events.height, dtype=np.uint32
        )
        reports = reports[order]
    decision = pl.concat([reports, decided], how="horizontal").select(list(DECISION))
    return pl.concat([events, expect(decision, DECISION, "decision")], how="horizontal")


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


@lru_cache(maxsize=4)
def _terms(catalogues: Catalogues) -> Terms:
    return Terms(catalogues)


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
    reports: pl.DataFrame, terms: Terms, modes: pl.DataFrame, districts: Sequence[str]
) -> pl.DataFrame:
    """The decision on REPORTED events, but for the columns of `_common`."""
    admission = terms.catalogues.admission
    features = add_features(reports, terms, modes, districts)
    features = features.with_columns(
        condition.holds.fill_null(value=False).alias(condition.name) for condition in admission.derived
    )
    reasons, fields = _conditions(admission.rules)
    fails = features.select(expr.alias(code) for code, expr in reasons.items())
    results = np.full((reports.height, RULE_COUNT), PASSED, np.uint8)
    for number in range(1, RULE_COUNT + 1):
        codes = admission.reason_codes(number)
        failed = fails.select(pl.any_horizontal(codes).alias("failed"))["failed"]
        results[failed.is_null().to_numpy(), number - 1] = UNKNOWN
        results[failed.fill_null(value=False).to_numpy(), number - 1] = FAILED
    rejected = pl.Series("rejected", (results == FAILED).any(axis=1))
    missing = features.select(expr.alias(name) for name, expr in fields.items())
    decision = pl.DataFrame(
        {
            "outcome": rejected.replace_strict(
                {True: "rejected", False: "admitted"}, return_dtype=pl.String()
            ),
            "reasons": _names_of_true(fails),
            "missing_fields": _names_of_true(missing),
            "rule_results": pl.Series(results).cast(pl.List(pl.UInt8())),
        }
    )
    flags = pl.concat([features, decision.select("outcome")], how="horizontal").select(
        flag.holds.fill_null(value=False).alias(flag.name) for flag in admission.report_flags
    )
    limits = features.select(
        _response_limit(terms).alias("response_limit_seconds"),
        pl.col("matter_resolution_seconds").alias("resolution_limit_seconds"),
        "mode",
        "mode_level",
    )
    return pl.concat([decision, flags, limits], how="horizontal")


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


def _names_of_true(flags: pl.DataFrame) -> pl.Series:
    """Per row the names of the columns that are true, in column order; (n,) List(String).

    Few combinations occur: each is named once, and rows pick theirs.
    """
    names = flags.columns
    combination = np.zeros(flags.height, np.uint64)
    for bit, name in enumerate(names):
        combination |= flags[name].fill_null(value=False).to_numpy().astype(np.uint64) << np.uint64(bit)
    distinct, position = np.unique(combination, return_inverse=True)
    lists = [[name for bit, name in enumerate(names) if int(mask) >> bit & 1] for mask in distinct]
    return pl.Series(lists, dtype=pl.List(pl.String())).gather(position.astype(np.uint32))


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
