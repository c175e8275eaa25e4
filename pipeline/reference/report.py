"""What a load did, per file: for people, for --json, and for the log. Never a personal value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from pipeline.contract.privacy import PHONE_MARK
from pipeline.reference.validate import Example, Reason, Refusals, as_values

#: What to do, where the reason alone does not say it.
_ADVICE: Final[dict[Reason, str]] = {
    "personal_number": "an identity or mobile number must not stand there, give a key or code of your own",
}


@dataclass
class FileReport:
    """One file. rows = stored + unchanged + older + erased + refused, unless `problem` says why
    no more was read, and what became of the rows before.

    stored : rows written: new keys, new versions and corrections; older : records that an already stored,
    newer one outranks (`updated_at`, or the version number of a mode); erased : persons erased on request.
    """

    kind: str
    file: str
    place_word: str = "row"
    rows: int = 0
    stored: int = 0
    unchanged: int = 0
    older: int = 0
    erased: int = 0
    refusals: Refusals = field(default_factory=Refusals)
    problem: str | None = None
    held_back: bool = False  # --strict: rows were refused, so none was stored

    @property
    def refused(self) -> int:
        return self.refusals.rows

    @property
    def fine(self) -> bool:
        return self.problem is None and self.refused == 0

    def __str__(self) -> str:
        done = f"{self.stored} stored, {self.unchanged} unchanged, {self.refused} refused"
        return f"{self.kind}: {self.problem or done}"

    def as_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "file": self.file,
            "rows": self.rows,
            "stored": self.stored,
            "unchanged": self.unchanged,
            "older": self.older,
            "erased": self.erased,
            "refused": self.refused,
            "held_back": self.held_back,
            "problem": self.problem,
            "reasons": [
                {
                    "reason": reason,
                    "column": column,
                    "rows": count,
                    "examples": as_values(self.refusals.examples[reason, column], self.place_word),
                }
                for (reason, column), count in self.refusals.counts.items()
            ],
            "redacted": [
                {
                    "column": column,
                    "rows": marked.cells,
                    "examples": as_values(marked.examples, self.place_word),
                }
                for column, marked in self.refusals.marked.items()
            ],
        }

    def lines(self) -> list[str]:
        """The problem, and one line per reason: what, where; then what was redacted."""
        found = [self.problem] if self.problem is not None else []
        for (reason, column), count in self.refusals.counts.items():
            what = reason.replace("_", " ") + (f" {column}" if column else "")
            where = self._where(self.refusals.examples[reason, column])
            advice = f"; {_ADVICE[reason]}" if reason in _ADVICE else ""
            found.append(f"{self.file}: {what}: {count} rows, for example {where}{advice}")
        for column, marked in self.refusals.marked.items():
            found.append(
                f"{self.file}: personal number in {column}: {marked.cells} rows, for example "
                f"{self._where(marked.examples)}; a mark such as {PHONE_MARK} takes its place in what is "
                "stored, take the number out where the file comes from"
            )
        return found

    def _where(self, examples: list[Example]) -> str:
        return ", ".join(
            f"{self.place_word} {example.place}" + (f" ({example.value})" if example.value else "")
            for example in examples
        )


@dataclass
class LoadReport:
    """Every file of one load."""

    load_id: str
    files: list[FileReport] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def refused(self) -> int:
        return sum(file.refused for file in self.files)

    @property
    def stored(self) -> int:
        return sum(file.stored for file in self.files)

    @property
    def fine(self) -> bool:
        """Everything was taken: exit 0."""
        return all(file.fine for file in self.files)

    def as_dict(self) -> dict[str, Any]:
        return {
            "load_id": self.load_id,
            "files": [file.as_dict() for file in self.files],
            "stored": self.stored,
            "refused": self.refused,
            "seconds": round(self.seconds, 3),
        }

    def __str__(self) -> str:
        return "; ".join(map(str, self.files))
