"""Answers of the service as tables: Chinese heads, rates in per cent, durations as people say them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import IntEnum
from typing import Any, Final

from rich import box
from rich.markup import escape
from rich.table import Table

from pipeline.cli.common import natural_width, out, print_table
from pipeline.read.percent import percent_text

DIMENSIONS_ZH: Final = {
    "city": "全市", "district": "区县", "town": "镇街", "village": "村居", "grid": "网格", "matter": "事项",
    "category": "类别", "department": "部门", "channel": "渠道",
}  # fmt: skip
RULE_RESULTS_ZH: Final = {"true": "[green]通过[/]", "false": "[red]不通过[/]", "unknown": "未知"}
OUTCOMES_ZH: Final = {
    "admitted": "准入",
    "rejected": "不予受理",
    "recorded": "已记录",
    "duplicate": "重复",
    "quarantined": "隔离",
}
_NONE: Final = "–"


def percent(rate: float | None) -> str:
    """0.98739 → "98.74 %"; a rate without a denominator is a dash."""
    return _NONE if rate is None else f"{percent_text(rate)} %"


def duration(seconds: float | None) -> str:
    """Whole seconds as people say them: 45 s, 12 min, 3 h 05 min, 2 d 4 h."""
    if seconds is None:
        return _NONE
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = whole // 60
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def count(number: int | None) -> str:
    return _NONE if number is None else f"{number:,}"


Cell = Callable[[Mapping[str, Any]], str]


class Shown(IntEnum):
    """Where a column of the KPI table is shown: everywhere, on a wide terminal, only where all are."""

    ALWAYS = 0
    WIDE = 1
    ALL = 2


def _durations(head: str, field: str, *shown: Shown) -> Iterator[tuple[str, Cell, Shown]]:
    def cell(percentile: str) -> Cell:
        return lambda row: duration(row[field][percentile])

    for percentile, where in zip(("p50", "p90", "p99"), shown, strict=True):
        yield f"{head} {percentile}", cell(percentile), where


#: Head, content, and where it is shown: every figure of a row of the KPI call.
_KPI_COLUMNS: Final[tuple[tuple[str, Cell, Shown], ...]] = (
    ("上报", lambda row: count(row["reports"]), Shown.WIDE),
    ("准入的上报", lambda row: count(row["admitted_reports"]), Shown.ALL),
    ("不予受理的上报", lambda row: count(row["rejected_reports"]), Shown.ALL),
    ("准入率", lambda row: percent(row["admission_rate"]), Shown.WIDE),
    ("重复投递", lambda row: count(row["duplicates"]["L1"]), Shown.ALL),
    ("重复提交", lambda row: count(row["duplicates"]["L2"]), Shown.ALL),
    ("重复件", lambda row: count(row["duplicates"]["L3"]), Shown.ALL),
    ("重复率", lambda row: percent(row["duplicate_rate"]), Shown.ALL),
    ("案件", lambda row: count(row["cases"]), Shown.ALWAYS),
    ("作废", lambda row: count(row["voided"]), Shown.ALL),
    ("作废率", lambda row: percent(row["void_rate"]), Shown.ALL),
    ("并案", lambda row: count(row["merged"]), Shown.ALL),
    ("办结", lambda row: count(row["closed"]), Shown.ALWAYS),
    ("办结率", lambda row: percent(row["closure_rate"]), Shown.ALWAYS),
    ("响应", lambda row: count(row["responded"]), Shown.ALL),
    ("响应率", lambda row: percent(row["response_rate"]), Shown.ALWAYS),
    ("按时响应率", lambda row: percent(row["timely_response_rate"]), Shown.WIDE),
    ("按期办结率", lambda row: percent(row["closure_on_time_rate"]), Shown.WIDE),
    ("按期处置率", lambda row: percent(row["handling_on_time_rate"]), Shown.ALL),
    ("返工率", lambda row: percent(row["rework_rate"]), Shown.ALL),
    ("延期率", lambda row: percent(row["extension_rate"]), Shown.ALL),
    ("退回率", lambda row: percent(row["return_rate"]), Shown.ALL),
    ("评价数", lambda row: count(row["ratings"]), Shown.ALL),
    ("满意率", lambda row: percent(row["satisfaction_rate"]), Shown.ALL),
    ("诉求化解率", lambda row: percent(row["demand_resolution_rate"]), Shown.ALL),
    ("未办结", lambda row: count(row["open"]), Shown.ALWAYS),
    ("超期", lambda row: count(row["overdue"]), Shown.ALWAYS),
    *_durations("响应", "response_seconds", Shown.ALWAYS, Shown.WIDE, Shown.ALL),
    *_durations("派单", "dispatch_seconds", Shown.ALL, Shown.ALL, Shown.ALL),
    *_durations("部门响应", "department_response_seconds", Shown.ALL, Shown.ALL, Shown.ALL),
    *_durations("办结时间", "resolution_seconds", Shown.WIDE, Shown.ALL, Shown.ALL),
    ("上报时未附照片", lambda row: count(row["unproven"]), Shown.ALL),
    ("无上报事件", lambda row: count(row["orphans"]), Shown.ALL),
    ("无上报超过7天", lambda row: count(row["orphans_overdue"]), Shown.ALL),
    ("不合法的事件", lambda row: count(row["illegal_events"]), Shown.ALL),
    ("迟到的事件", lambda row: count(row["late_events"]), Shown.ALL),
    ("时长为负", lambda row: count(row["negative_durations"]), Shown.ALL),
)


def kpi_table(answer: Mapping[str, Any], by: str, *, whole: bool = False) -> Table:
    """One row per key of a KPI answer, the figures that matter most: fewer on a narrow terminal.

    whole : every figure of the answer, however wide that is.
    """
    if whole:
        return _kpi_table(answer, by, Shown.ALL)
    table = _kpi_table(answer, by, Shown.WIDE)
    if out.is_terminal and natural_width(table) > out.width:
        table = _kpi_table(answer, by, Shown.ALWAYS)
    return table


def _kpi_table(answer: Mapping[str, Any], by: str, most: Shown) -> Table:
    columns = [(head, cell) for head, cell, shown in _KPI_COLUMNS if shown <= most]
    more = "" if most is Shown.ALL else "; --all: every figure"
    table = Table(
        title=f"{answer['view']} {answer['from']} – {answer['to']}",
        caption=f"as of {answer['as_of']}{more}",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column(DIMENSIONS_ZH.get(by, by), no_wrap=True)
    for head, _ in columns:
        table.add_column(head, justify="right", no_wrap=True)
    for row in answer["rows"]:
        name = f"{row['name_zh']} {row['key']}" if row["name_zh"] else str(row["key"])
        table.add_row(name, *(cell(row) for _, cell in columns))
    return table


def print_explained(found: Mapping[str, Any]) -> None:
    """An event: what became of it, the rules, what enriched it, where it lies."""
    outcome = str(found["outcome"])
    out.print(f"[bold]{found['source']}/{found['event_id']}[/]: {outcome} {OUTCOMES_ZH.get(outcome, '')}")
    position = found["position"]
    place = "partition {partition}, offset {offset}, index {index}".format_map(position)
    pairs = {
        "event_type": found.get("event_type"),
        "case": found.get("case_id"),
        "occurred": found.get("occurred_at"),
        "received": found.get("received_at"),
        "stored": found.get("stored_at"),
        "matter": found.get("matter_code"),
        "grid": found.get("grid_code"),
        "channel": found.get("channel"),
        "position": place,
        "rules": position["rules"],
        "copies": len(found["copies"]) or None,
    }
    if "duplicate_of" in found:
        original = found["duplicate_of"]
        pairs["duplicate of"] = f"{original['source']}/{original['event_id']} (case {original['case_id']})"
    if found.get("reasons"):
        pairs["reasons"] = ", ".join(found["reasons"])
    if found.get("missing_fields"):
        pairs["missing fields"] = ", ".join(found["missing_fields"])
    grid = (found.get("enrichment") or {}).get("grid") or {}
    if grid.get("name"):
        pairs["grid name"] = f"{grid['name']} (version {grid['version']})"
    _print_pairs(pairs)
    if found["rules"]:
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column("#", justify="right")
        table.add_column("规则")
        table.add_column("结果")
        table.add_column("原因")
        for rule in found["rules"]:
            table.add_row(
                str(rule["number"]),
                rule["name_zh"],
                RULE_RESULTS_ZH[rule["result"]],
                ", ".join(rule["reasons"]),
            )
        print_table(table)


def print_case(found: Mapping[str, Any]) -> None:
    """A case: its fields that hold something, then its events in fold order."""
    events = found.get("events", ())
    _print_pairs({name: value for name, value in found.items() if not isinstance(value, (list, dict))})
    for name, value in found.items():
        if isinstance(value, dict):
            out.print(f"[bold]{name}[/]")
            _print_pairs(value)
    table = Table(box=box.SIMPLE_HEAD, title="事件")
    for head in ("occurred_at", "event_type", "source/event_id", "ok"):
        table.add_column(head)
    for event in events:
        table.add_row(
            str(event.get("occurred_at")),
            str(event.get("event_type")),
            f"{event.get('source')}/{event.get('event_id')}",
            "[red]no[/]" if event.get("transition_ok") is False else "yes",
        )
    print_table(table)


def _print_pairs(pairs: Mapping[str, Any]) -> None:
    table = Table.grid(padding=(0, 2))
    for name, value in pairs.items():
        if value is not None and value != "":
            table.add_row(f"  {name}", escape(str(value)))
    print_table(table)
