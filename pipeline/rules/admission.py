"""Reads, compiles and proves the admission rules of `admission.yaml`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Final

import polars as pl

from pipeline.frames import Schema
from pipeline.rules.conditions import COLUMNS, ConditionError, columns_used, compile_condition, example_frame
from pipeline.rules.files import Document, Place, Problems, read_items
from pipeline.rules.model import RULE_COUNT, Condition, Example, Reason, Rule, local_midnight

#: The flags of a decision that the file must define, no more and no fewer.
REPORT_FLAGS: Final = ("evidence_pending", "life_safety")
#: Reasons of a row are a bit set of 64 bits; every entry costs time on every block.
MAX_REASONS: Final = 60
MAX_ENTRIES: Final = 100
EVENT_FLAGS: Final = ("late_beyond_horizon", "time_adjusted")


@dataclass(frozen=True)
class CompiledReason:
    """`fails` is true, false or null (unknown); `fields` are the same per missing field that it names."""

    code: str
    fails: pl.Expr
    fields: Mapping[str, pl.Expr]


@dataclass(frozen=True)
class CompiledRule:
    source: Rule
    reasons: tuple[CompiledReason, ...]
    effective_from: datetime | None  # None: since ever

    @property
    def number(self) -> int:
        return self.source.number


@dataclass(frozen=True)
class CompiledCondition:
    name: str
    holds: pl.Expr


@dataclass(frozen=True)
class Admission:
    """The compiled rules, by number and then by the day from which they hold."""

    version: str
    derived: tuple[CompiledCondition, ...]
    rules: tuple[CompiledRule, ...]
    report_flags: tuple[CompiledCondition, ...]
    event_flags: tuple[CompiledCondition, ...]

    def entries(self, number: int) -> tuple[CompiledRule, ...]:
        """Every entry of a rule, oldest first; the last one in force at occurred_at judges a report."""
        return tuple(rule for rule in self.rules if rule.number == number)

    def reason_codes(self, number: int | None = None) -> tuple[str, ...]:
        """Reason codes in rule order, of one rule or of all."""
        codes = [
            reason.code
            for rule in self.rules
            if number is None or rule.number == number
            for reason in rule.reasons
        ]
        return tuple(dict.fromkeys(codes))


def read_admission(document: Document, problems: Problems) -> Admission | None:
    """Compile every rule and evaluate every example; None when a mistake was noted."""
    before = len(problems.lines)
    version = document.values["version"]
    if not isinstance(version, str) or not version:
        problems.add(document.path, document.line("version"), 'version must be a text, for example "1"')
    derived = _conditions(document, "derived", COLUMNS, problems)
    columns: Schema = {**COLUMNS, **{condition.name: pl.Boolean() for condition in derived}}
    rules = _rules(document, columns, problems)
    with_outcome: Schema = {**columns, "outcome": pl.String()}
    report_flags = _conditions(document, "report_flags", with_outcome, problems, REPORT_FLAGS)
    event_flags = _conditions(document, "event_flags", COLUMNS, problems, EVENT_FLAGS)
    if len(problems.lines) > before:
        return None
    return Admission(version, derived, rules, report_flags, event_flags)


def _rules(document: Document, columns: Schema, problems: Problems) -> tuple[CompiledRule, ...]:
    compiled: list[CompiledRule] = []
    lines: dict[int, list[int]] = {}
    owner: dict[str, int] = {}
    broken = len(problems.lines)
    entries = document.values["rules"]
    if isinstance(entries, list) and len(entries) > MAX_ENTRIES:
        text = f"{len(entries)} rule entries, at most {MAX_ENTRIES} are taken; drop entries long replaced"
        problems.add(document.path, document.line("rules"), text)
        return ()
    for index, rule in read_items(document, "rules", Rule, problems):
        place: Place = ("rules", index)
        lines.setdefault(rule.number, []).append(document.line(*place))
        codes_sound = _check_codes(document, place, rule, owner, problems)
        needs_sound = _check_needs(document, place, rule, columns, problems)
        reasons = [
            _reason(document, (*place, "reasons", number), rule, reason, columns=columns, problems=problems)
            for number, reason in enumerate(rule.reasons)
        ]
        if not needs_sound or not codes_sound or any(reason is None for reason in reasons):
            continue
        start = None if rule.effective_from is None else local_midnight(rule.effective_from)
        entry = CompiledRule(rule, tuple(reason for reason in reasons if reason), start)
        _prove_rule(document, place, entry, columns, problems)
        compiled.append(entry)
    if len(owner) > MAX_REASONS:
        text = f"{len(owner)} reason codes, at most {MAX_REASONS} are taken"
        problems.add(document.path, document.line("rules"), text)
    if len(problems.lines) == broken:
        _check_numbers(document, compiled, lines, problems)
    return tuple(
        sorted(compiled, key=lambda rule: (rule.number, rule.effective_from is not None, rule.effective_from))
    )


def _check_codes(
    document: Document, place: Place, rule: Rule, owner: dict[str, int], problems: Problems
) -> bool:
    """A reason code stands once in a rule, and in one rule only; `owner` remembers which."""
    before = len(problems.lines)
    seen: set[str] = set()
    for number, reason in enumerate(rule.reasons):
        if owner.setdefault(reason.code, rule.number) != rule.number or reason.code in seen:
            line = document.line(*place, "reasons", number, "code")
            problems.add(document.path, line, f"reason {reason.code} appears twice; codes are used once")
        seen.add(reason.code)
    return len(problems.lines) == before


def _check_needs(document: Document, place: Place, rule: Rule, columns: Schema, problems: Problems) -> bool:
    wrong = [name for name in rule.needs if columns.get(name) != pl.Boolean()]
    for name in wrong:
        problems.add(
            document.path,
            document.line(*place, "needs"),
            f"rule {rule.number}: needs {name}, which is no true/false column",
        )
    return not wrong


def _reason(
    document: Document, place: Place, rule: Rule, reason: Reason, *, columns: Schema, problems: Problems
) -> CompiledReason | None:
    fields: dict[str, pl.Expr] = {}
    for field, sql in reason.conditions.items():
        try:
            condition = compile_condition(sql, columns)
        except ConditionError as error:
            line = document.line(*place, "fails_when", *([field] if field else []))
            problems.add(document.path, line, f"rule {rule.number}, {reason.code}: condition {error}")
            continue
        if rule.needs:
            known = pl.all_horizontal(pl.col(name).fill_null(value=False) for name in rule.needs)
            condition = pl.when(known).then(condition)
        fields[field] = condition
    if len(fields) < len(reason.conditions):
        return None
    fails = pl.any_horizontal(fields.values()) if len(fields) > 1 else next(iter(fields.values()))
    return CompiledReason(reason.code, fails, {name: expr for name, expr in fields.items() if name})


def _check_numbers(
    document: Document, rules: Sequence[CompiledRule], lines: Mapping[int, list[int]], problems: Problems
) -> None:
    """Every rule has one entry since ever, and at most one more for each later day."""
    for number in range(1, RULE_COUNT + 1):
        starts = [rule.effective_from for rule in rules if rule.number == number]
        line = lines.get(number, [document.line("rules")])[-1]
        if starts.count(None) != 1:
            text = "needs exactly one entry without effective_from (the first)"
            problems.add(document.path, line, f"rule {number} {text}")
        elif len(set(starts)) < len(starts):
            problems.add(document.path, line, f"rule {number} has two entries for one effective_from")
    numbers = [rule.number for rule in rules]
    for earlier, later in pairwise(numbers):
        if later < earlier:
            line = lines[later][0]
            problems.add(document.path, line, f"rule {later} stands behind rule {earlier}; keep the order")


def _prove_rule(
    document: Document, place: Place, rule: CompiledRule, columns: Schema, problems: Problems
) -> None:
    """Evaluate the rule's examples; every reason must fire in one, and one must pass."""
    examples = rule.source.examples
    used = frozenset(rule.source.needs).union(*(columns_used(reason.fails) for reason in rule.reasons))
    label = f"rule {rule.number}"
    frame = _examples(document, place, examples, used, label=label, columns=columns, problems=problems)
    if frame is None:
        return
    verdicts = frame.select(reason.fails.alias(reason.code) for reason in rule.reasons).to_dicts()
    fields = {name: expr for reason in rule.reasons for name, expr in reason.fields.items()}
    missing = frame.select(expr.alias(name) for name, expr in fields.items()).to_dicts() if fields else None
    fired: set[str] = set()
    for number, (example, verdict) in enumerate(zip(examples, verdicts, strict=True)):
        reasons = tuple(code for code, fails in verdict.items() if fails)
        result: bool | str = False if reasons else "unknown" if None in verdict.values() else True
        named = tuple(name for name, absent in missing[number].items() if absent) if missing else ()
        fired.update(reasons)
        if (result, reasons, named) != (example.result, example.reasons, example.missing_fields):
            expected = _outcome(example.result, example.reasons, example.missing_fields)
            problems.add(
                document.path,
                document.line(*place, "examples", number),
                f"rule {rule.number}: the example must give {expected}, "
                f"but the conditions give {_outcome(result, reasons, named)}",
            )
    for number, reason in enumerate(rule.reasons):
        if reason.code not in fired:
            line = document.line(*place, "reasons", number)
            problems.add(document.path, line, f"rule {rule.number}: no example in which {reason.code} fires")
    if not any(example.result is True for example in examples):
        line = document.line(*place, "examples")
        problems.add(document.path, line, f"rule {rule.number}: no example that passes")


def _conditions(
    document: Document,
    key: str,
    columns: Schema,
    problems: Problems,
    expected: Sequence[str] | None = None,
) -> tuple[CompiledCondition, ...]:
    """Compile and prove a list of named conditions, which must be `expected` if given."""
    compiled: dict[str, CompiledCondition] = {}
    broken = len(problems.lines)
    for index, condition in read_items(document, key, Condition, problems):
        place: Place = (key, index)
        if condition.name in compiled or (expected is None and condition.name in columns):
            problems.add(document.path, document.line(*place), f"{condition.name} is defined twice")
            continue
        try:
            holds = compile_condition(condition.sql, columns)
        except ConditionError as error:
            problems.add(document.path, document.line(*place, "is"), f"{condition.name}: condition {error}")
            continue
        # a flag says yes or no; what several rules share may be unknown, and then they are
        proven = holds if expected is None else holds.fill_null(value=False)
        _prove_condition(document, place, condition, proven, columns=columns, problems=problems)
        compiled[condition.name] = CompiledCondition(condition.name, holds)
    if expected is not None and len(problems.lines) == broken and set(compiled) != set(expected):
        text = f"{key} must define exactly {', '.join(expected)}"
        problems.add(document.path, document.line(key), text)
    return tuple(compiled.values())


def _prove_condition(
    document: Document,
    place: Place,
    condition: Condition,
    holds: pl.Expr,
    *,
    columns: Schema,
    problems: Problems,
) -> None:
    examples = condition.examples
    frame = _examples(
        document,
        place,
        examples,
        columns_used(holds),
        label=condition.name,
        columns=columns,
        problems=problems,
    )
    if frame is None:
        return
    found = frame.select(holds.alias("holds"))["holds"]
    results: list[bool | str] = ["unknown" if value is None else value for value in found]
    for number, (example, result) in enumerate(zip(examples, results, strict=True)):
        if result != example.result:
            line = document.line(*place, "examples", number)
            text = f"the example must give {_word(example.result)}, but the condition gives {_word(result)}"
            problems.add(document.path, line, f"{condition.name}: {text}")


def _examples(
    document: Document,
    place: Place,
    examples: Sequence[Example],
    used: frozenset[str],
    *,
    label: str,
    columns: Schema,
    problems: Problems,
) -> pl.DataFrame | None:
    """The examples as rows of the columns looked at; giving any other column is a slip of the pen."""
    sound = True
    for number, example in enumerate(examples):
        for name in sorted(set(example.given) - used):
            line = document.line(*place, "examples", number, "given", name)
            problems.add(document.path, line, f"{label}: the example gives {name}, which is not looked at")
            sound = False
    if not sound:
        return None
    try:
        # without any column polars cannot tell how many rows there are
        names = sorted(used) or ["age_seconds"]
        return example_frame([example.given for example in examples], names, columns)
    except ConditionError as error:
        problems.add(document.path, document.line(*place, "examples"), f"{label}: {error}")
        return None


def _outcome(result: bool | str, reasons: Sequence[str], missing: Sequence[str]) -> str:
    named = f" naming {', '.join(missing)}" if missing else ""
    return f"{_word(result)} ({', '.join(reasons)}{named})" if reasons else _word(result)


def _word(result: bool | str) -> str:
    return str(result).lower()
