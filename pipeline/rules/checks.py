"""Checks across the entries of the catalogue: every code that one names must exist in another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pipeline.rules.files import Document, Problems, did_you_mean
from pipeline.rules.model import Matter, MatterListHead, Referral

VersionFile = tuple[Document, MatterListHead, Mapping[str, Matter]]


@dataclass(frozen=True)
class KnownCodes:
    """Codes that the other files list; None where a file could not be read, which is told already."""

    categories: frozenset[str] | None
    departments: frozenset[str] | None
    channels: frozenset[str] | None
    modes: frozenset[str] | None


def listed(document: Document | None, key: str) -> frozenset[str] | None:
    """Every code in a list, those of broken entries too, so that one mistake is told once."""
    entries = document.values[key] if document else None
    if not isinstance(entries, list):
        return None
    return frozenset(str(entry.get("code")) for entry in entries if isinstance(entry, dict))


def check_matters(
    document: Document, key: str, matters: Mapping[str, Matter], known: KnownCodes, problems: Problems
) -> None:
    """References to other files, and fields of one matter that must agree."""
    for index, matter in _positions(document, key, matters):
        names = _References(document, (key, index), matter, problems)
        names.check("category", [matter.category], known.categories)
        names.check("lead_department", [matter.lead_department], known.departments)
        names.check("supporting_departments", matter.supporting_departments, known.departments)
        names.check("allowed_channels", matter.allowed_channels, known.channels)
        names.check("emergency_modes", matter.prioritised_in, known.modes)
        names.check("active_only_in_modes", matter.active_only_in_modes, known.modes)
        if "none" in matter.emergency_modes and len(matter.emergency_modes) > 1:
            names.wrong("emergency_modes", "[none] stands alone; remove it or the modes beside it")
        if not set(matter.active_only_in_modes) <= set(matter.prioritised_in):
            names.wrong("active_only_in_modes", "must be among emergency_modes")
        if matter.needs_person and "person" not in matter.required_fields:
            names.wrong("needs_person", "person must be among required_fields")
        if matter.effective_to is not None and matter.effective_to <= matter.effective_from:
            names.wrong("effective_to", f"must be after effective_from {matter.effective_from}")
        if matter.approved_on > matter.effective_from:
            names.wrong("approved_on", f"must not be after effective_from {matter.effective_from}")


def check_head(
    document: Document, head: MatterListHead, matters: Mapping[str, Matter], problems: Problems
) -> None:
    """`meta` must count what the file holds, and regular matters must look like regular ones."""
    if document.path.stem != head.effective_from.isoformat():
        line = document.line("meta", "effective_from")
        problems.add(document.path, line, f"the file must be named {head.effective_from}.yaml after its day")
    entries = document.values["matters"]
    found = len(entries) if isinstance(entries, list) else 0
    if head.matter_count != found:
        line = document.line("meta", "matter_count")
        problems.add(document.path, line, f"matter_count is {head.matter_count}, but {found} matters follow")
    by_category = Counter(matter.category for matter in matters.values())
    for category in sorted(by_category.keys() | head.category_counts.keys()):
        stated, counted = head.category_counts.get(category, 0), by_category[category]
        if stated != counted and len(matters) == found:
            line = document.line("meta", "category_counts", category)
            text = f"category {category} is stated to have {stated} matters, but has {counted}"
            problems.add(document.path, line, text)
    by_batch = Counter(matter.batch for matter in matters.values())
    for number, batch in enumerate(head.batches):
        counted = by_batch[batch.batch]
        if batch.count != counted and len(matters) == found:
            line = document.line("meta", "batches", number)
            text = f"batch {batch.batch} is stated to have {batch.count} matters, but has {counted}"
            problems.add(document.path, line, text)
    batches = {batch.batch for batch in head.batches}
    for index, matter in _positions(document, "matters", matters):
        names = _References(document, ("matters", index), matter, problems)
        if matter.temporary:
            names.wrong("code", "temporary matters belong into temporary.yaml")
        elif not matter.code.startswith(f"{matter.category}-"):
            names.wrong("code", f"must begin with its category {matter.category}-")
        if matter.batch not in batches:
            names.wrong("batch", f"{matter.batch} is not among meta.batches")


def check_temporary(
    document: Document,
    temporary: Mapping[str, Matter],
    lists: Sequence[Mapping[str, Matter]],
    problems: Problems,
) -> None:
    """A temporary matter has an approval and an expiry, and stands beside a regular one."""
    regular = set().union(*lists)
    for index, matter in _positions(document, "temporary_matters", temporary):
        names = _References(document, ("temporary_matters", index), matter, problems)
        if not matter.temporary:
            names.wrong("code", 'codes of temporary matters begin with "TMP-"')
        if matter.effective_to is None:
            names.wrong("effective_to", "is missing; a temporary matter must expire")
        if matter.approval_reference is None:
            names.wrong(
                "approval_reference", "is missing; a temporary matter needs the grid office's consent"
            )
        if matter.batch is not None:
            names.wrong("batch", "temporary matters belong to no batch")
        if matter.base_matter is not None and lists:
            names.check("base_matter", [matter.base_matter], regular)


def check_versions(lists: Sequence[VersionFile], problems: Problems) -> None:
    """Versions are told apart, and none loses a code: a withdrawn matter stays with its effective_to."""
    seen: dict[str, Document] = {}
    for document, head, _ in lists:
        if head.version in seen:
            text = f"version {head.version} is also that of {seen[head.version].path.name}; give it another"
            problems.add(document.path, document.line("meta", "version"), text)
        seen[head.version] = document
    for (_, earlier, old), (document, _, new) in pairwise(lists):
        for code in sorted(old.keys() - new.keys()):
            text = f"{code} of version {earlier.version} is missing; repeat it with effective_to set"
            problems.add(document.path, document.line("matters"), text)


def check_referrals(
    document: Document, referrals: Mapping[str, Referral], reasons: Sequence[str], problems: Problems
) -> None:
    for index, entry in enumerate(document.values["referrals"] or ()):
        code = str(entry.get("code")) if isinstance(entry, dict) else ""
        if code in referrals and referrals[code].reason not in reasons:
            line = document.line("referrals", index, "reason")
            text = f"{code}: reason {referrals[code].reason} is none of rule 13's: {', '.join(reasons)}"
            problems.add(document.path, line, text)


@dataclass(frozen=True)
class _References:
    """The fields of one matter, with its place in the file."""

    document: Document
    place: tuple[str, int]
    matter: Matter
    problems: Problems

    def check(self, field: str, codes: Sequence[str], known: Collection[str] | None) -> None:
        for code in codes:
            if known is not None and code not in known:
                self.wrong(field, f"{code} is unknown{did_you_mean(code, known)}")
        if len(set(codes)) < len(codes):
            self.wrong(field, "names a code twice")

    def wrong(self, field: str, text: str) -> None:
        line = self.document.line(*self.place, field)
        self.problems.add(self.document.path, line, f"{self.matter.code}: {field}: {text}")


def _positions(document: Document, key: str, matters: Mapping[str, Matter]) -> Iterable[tuple[int, Matter]]:
    """Index in the file of every matter that could be read; of a repeated code the first."""
    entries = document.values[key]
    waiting = dict(matters)
    for index, entry in enumerate(entries if isinstance(entries, list) else ()):
        matter = waiting.pop(str(entry.get("code")), None) if isinstance(entry, dict) else None
        if matter is not None:
            yield index, matter
