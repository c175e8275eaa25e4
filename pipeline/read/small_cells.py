"""Small cells: below the town, figures of fewer than k reports may tell of a person, and are left out.

Official figures stay exact: city, district and town are never touched, nor is what the operator reads on the
machine itself or with an admin key. Source: domain 9 (cells under 5 persons below town level).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final

from starlette.requests import Request

#: Digits of the area that a key lies in, by the `by` values that are below the town.
_PARENT_DIGITS: Final = {"village": 9, "grid": 12}
_NAMES: Final = frozenset({"key", "name_zh"})
#: Set in the scope of requests whose answers must not hold small cells.
SMALL_CELLS: Final = "gridpipe.small_cells"


def for_reader(request: Request, answer: dict[str, Any], by: str, k: int) -> dict[str, Any]:
    """`answer` of the KPI call as the caller of `request` may see it."""
    return without_small_cells(answer, by, k) if request.scope.get(SMALL_CELLS) else answer


def without_small_cells(answer: dict[str, Any], by: str, k: int) -> dict[str, Any]:
    """The answer with every figure of small rows None and `suppressed` true; k : 0 changes nothing.

    A report stands for a person. Where a parent area has one small row only, its next smallest goes, too: the
    parent's figures, which are exact, would give the row away by subtraction.
    """
    digits = _PARENT_DIGITS.get(by)
    if digits is None or k <= 0:
        return answer
    rows: list[dict[str, Any]] = answer["rows"]
    by_parent: dict[str, list[int]] = defaultdict(list)
    for at, row in enumerate(rows):
        if _reports(row) > 0:
            by_parent[str(row["key"])[:digits]].append(at)
    hidden: set[int] = set()
    for places in by_parent.values():
        small = [at for at in places if _reports(rows[at]) < k]
        if len(small) == 1:
            others = [at for at in places if at != small[0]]
            small += sorted(others, key=lambda at: _reports(rows[at]))[:1]
        hidden.update(small)
    return answer | {"rows": [_blank(row) if at in hidden else row for at, row in enumerate(rows)]}


def _reports(row: Mapping[str, Any]) -> int:
    return max(row.get("reports") or 0, row.get("cases") or 0)


def _blank(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value if name in _NAMES else _none(value) for name, value in row.items()} | {
        "suppressed": True
    }


def _none(value: Any) -> Any:
    return {name: _none(inner) for name, inner in value.items()} if isinstance(value, dict) else None
