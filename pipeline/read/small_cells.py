"""Small cells: below the town, figures of fewer than k reports may tell of a person, and are left out.

Official figures stay exact: city, district and town are never touched, nor is what the operator reads on the
machine itself or with an admin key. Source: domain 9 (cells under 5 persons below town level).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
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

    A report stands for a person; a row without one tells of cases of an earlier time, and is small, too. A
    parent's figures are exact, so that what its hidden rows have together can be had by subtraction: they
    must be two or more, and not small together. A village that is hidden is hidden grid by grid as well.
    """
    digits = _PARENT_DIGITS.get(by)
    if digits is None or k <= 0:
        return answer
    rows: list[dict[str, Any]] = answer["rows"]
    sizes = {str(row["key"]): _Size.of(row) for row in rows}
    hidden = _hidden(sizes, digits, k)
    if by == "grid":
        villages: dict[str, _Size] = defaultdict(_Size)
        for key, size in sizes.items():
            villages[key[:digits]] += size
        of_village = _hidden(villages, _PARENT_DIGITS["village"], k)
        hidden |= {key for key in sizes if key[:digits] in of_village}
    return answer | {"rows": [_blank(row) if str(row["key"]) in hidden else row for row in rows]}


@dataclass(frozen=True)
class _Size:
    """Reports and cases of a row. Apart, since those of several rows are added."""

    reports: int = 0
    cases: int = 0

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> _Size:
        """Without copies: somebody who sends a report five times is one person."""
        copies = row.get("duplicates") or {}
        reports = (row.get("reports") or 0) - (copies.get("L1") or 0) - (copies.get("L2") or 0)
        return cls(reports, row.get("cases") or 0)

    def __add__(self, other: _Size) -> _Size:
        return _Size(self.reports + other.reports, self.cases + other.cases)

    @property
    def persons(self) -> int:
        return max(self.reports, self.cases)


def _hidden(sizes: Mapping[str, _Size], parent_digits: int, k: int) -> set[str]:
    """Keys to hide: of each parent those below `k`, and the next smallest until two or more are hidden that
    have `k` together, or none is left."""
    by_parent: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for key, size in sizes.items():
        by_parent[key[:parent_digits]].append((size.persons, key))
    hidden: set[str] = set()
    for cells in by_parent.values():
        count, together = 0, _Size()
        for persons, key in sorted(cells):
            if persons >= k and (count == 0 or (count > 1 and together.persons >= k)):
                break
            hidden.add(key)
            count, together = count + 1, together + sizes[key]
    return hidden


def _blank(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value if name in _NAMES else _none(value) for name, value in row.items()} | {
        "suppressed": True
    }


def _none(value: Any) -> Any:
    return {name: _none(inner) for name, inner in value.items()} if isinstance(value, dict) else None
