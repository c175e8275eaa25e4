"""The README's table: `python -m tests.hostile.listing` prints it, a test compares."""

from __future__ import annotations

from tests.hostile.rows import Batch, Records, Row, Whole, Wire
from tests.hostile.table import TABLE


def expected(row: Row) -> str:
    """What must come back, in a few words."""
    if isinstance(row, Whole):
        return f"{row.status} `{row.code}`"
    if isinstance(row, Batch):
        codes = dict.fromkeys(f"`{bad.code}`" if bad.code else "taken" for bad in row.bads)
        return "202; " + ", ".join(codes)
    if isinstance(row, Wire):
        return " or ".join(map(str, sorted(row.statuses))) + (", closed" if row.closes else "")
    if isinstance(row, Records):
        reasons = dict.fromkeys(f"`{bad.reason}`" if bad.reason else "taken" for bad in row.bads)
        return "quarantined or taken: " + ", ".join(reasons)
    return "as named"


def listing() -> str:
    lines = ["| | input | sent by | answer |", "|---|---|---|---|"]
    for row in sorted(TABLE, key=lambda row: row.number):
        name = row.name.replace("|", "\\|")
        lines.append(f"| {row.number} | {name} | {row.how} | {expected(row)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(listing(), end="")
