"""README.md lists every trap test, and both sides of each trap are tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
SAME = "the same test"


def names_in(folder: Path) -> set[str]:
    found: set[str] = set()
    for path in folder.rglob("test_*.py"):
        found |= set(re.findall(r"^(?:async )?def (test_\w+)\(", path.read_text(), re.MULTILINE))
    return found


def rows() -> list[list[str]]:
    lines = (HERE / "README.md").read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][
        1:
    ]


def test_each_trap_has_two_sides_that_are_tests() -> None:
    known = names_in(HERE.parent)
    assert len(rows()) >= 20
    for trap, bare, ours in rows():
        assert set(re.findall(r"`(test_\w+)`", bare + ours)) <= known, trap
        assert "`test_" in bare, trap
        assert "`test_" in ours or ours == SAME, trap


def test_every_trap_of_the_review_is_told_of() -> None:
    text = (HERE / "README.md").read_text()
    numbers = {"F": 17, "A": 6, "C": 14, "D": 6, "T": 9}
    wanted = {f"{kind}{number}" for kind, last in numbers.items() for number in range(1, last + 1)}
    assert wanted - set(re.findall(r"\b[FACDT]\d+\b", text)) == set()


def test_every_test_that_the_list_names_is_there() -> None:
    """Those beside the table, too."""
    named = set(re.findall(r"`(test_\w+)`", (HERE / "README.md").read_text()))
    assert named - names_in(HERE.parent) == set()


def test_every_trap_test_is_listed() -> None:
    listed = set(re.findall(r"`(test_\w+)`", (HERE / "README.md").read_text()))
    assert names_in(HERE) - listed == {
        "test_each_trap_has_two_sides_that_are_tests",
        "test_every_trap_of_the_review_is_told_of",
        "test_every_test_that_the_list_names_is_there",
        "test_every_trap_test_is_listed",
    }
