"""Loads the catalogue directory: the approved matters in all their versions, and the admission rules.

Everything is checked before anything is used: a catalogue with one mistake is not loaded at all, and every
mistake is told at once as "file:line: what is wrong".
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeVar

import orjson

from pipeline.errors import ConfigurationError
from pipeline.rules import checks
from pipeline.rules.admission import Admission, read_admission
from pipeline.rules.files import Document, Problems, read_document, read_item, read_items
from pipeline.rules.model import (
    Channel,
    Level,
    Matter,
    MatterListHead,
    Named,
    Referral,
    local_midnight,
)

DIGEST_CHARACTERS: Final = 16
#: Modes and channels of a matter are bit sets of 64 bits.
MAX_CODES: Final = 60
Coded = TypeVar("Coded", Named, Channel, Referral, Level, Matter)


@dataclass(frozen=True)
class CatalogueVersion:
    """One version of the list. `matters` holds the regular ones and, behind them, the temporary ones."""

    version: str
    effective_from: datetime  # decides on reports from here to the next version's instant
    matters: Mapping[str, Matter]
    head: MatterListHead


@dataclass(frozen=True)
class Modes:
    """Emergency modes. Levels are ordered from the weakest."""

    names: Mapping[str, Named]
    levels: tuple[Level, ...]
    response_floor_seconds: int


@dataclass(frozen=True, eq=False)  # compared and hashed by identity: two loads are two objects
class Catalogues:
    """Everything that decides on admission, immutable. `digest` identifies the whole of it; `files` are the
    texts that it was read from, by their path in the directory."""

    digest: str
    files: Mapping[str, str]
    versions: tuple[CatalogueVersion, ...]
    categories: Mapping[str, Named]
    departments: Mapping[str, Named]
    channels: Mapping[str, Channel]
    modes: Modes
    referrals: Mapping[str, Referral]
    admission: Admission

    def version_at(self, at: datetime) -> CatalogueVersion:
        """The version that decides on what happened at `at`; the first one on everything before it."""
        chosen = self.versions[0]
        for version in self.versions[1:]:
            if version.effective_from <= at:
                chosen = version
        return chosen

    def matters(self, at: datetime) -> tuple[Matter, ...]:
        """The matters in force at `at`, temporary ones last."""
        return tuple(matter for matter in self.version_at(at).matters.values() if matter.in_force(at))

    @cached_property
    def matter_names_zh(self) -> Mapping[str, str]:
        """Name of every matter of any version (the newest name wins) and of every referral code."""
        names = {code: referral.name_zh for code, referral in self.referrals.items()}
        for version in self.versions:
            names |= {code: matter.name_zh for code, matter in version.matters.items()}
        return MappingProxyType(names)

    @cached_property
    def matter_categories(self) -> Mapping[str, str]:
        """Category of every matter of any version (the newest says which)."""
        categories: dict[str, str] = {}
        for version in self.versions:
            categories |= {code: matter.category for code, matter in version.matters.items()}
        return MappingProxyType(categories)

    @cached_property
    def about_people(self) -> frozenset[str]:
        """Codes of the matters that are about a person in any version, in force or not."""
        return frozenset(
            code
            for version in self.versions
            for code, matter in version.matters.items()
            if matter.needs_person
        )

    @cached_property
    def category_names_zh(self) -> Mapping[str, str]:
        return _names_zh(self.categories)

    @cached_property
    def department_names_zh(self) -> Mapping[str, str]:
        return _names_zh(self.departments)

    @cached_property
    def channel_names_zh(self) -> Mapping[str, str]:
        return _names_zh(self.channels)

    @cached_property
    def channel_kind(self) -> Mapping[str, str]:
        """staff, public, care, desk, device or system, by channel."""
        return MappingProxyType({code: channel.kind for code, channel in self.channels.items()})

    @cached_property
    def reason_names_zh(self) -> Mapping[str, str]:
        """Every reason code, in rule order."""
        rules = self.admission.rules
        return MappingProxyType(
            {reason.code: reason.name_zh for rule in rules for reason in rule.source.reasons}
        )


def load_catalogues(directory: Path) -> Catalogues:
    """Read, check and compile the catalogue in `directory`.

    Files: `matters/<day>.yaml` (one per version), `temporary.yaml`, `categories.yaml`, `departments.yaml`,
    `channels.yaml`, `modes.yaml`, `referrals.yaml`, `admission.yaml`.
    Raises ConfigurationError with every problem as "file:line: what is wrong".
    """
    problems = Problems()
    if not directory.is_dir():
        raise ConfigurationError(f"{directory}: no such catalogue directory; see GRIDPIPE_SCHEMAS_DIR")
    documents: dict[str, Document] = {}

    def document(name: str, *keys: str) -> Document | None:
        found = read_document(directory / name, problems, keys=keys)
        if found is not None:
            documents[name] = found
        return found

    categories_file = document("categories.yaml", "categories")
    categories = _codes(categories_file, "categories", Named, problems)
    departments_file = document("departments.yaml", "departments")
    departments = _codes(departments_file, "departments", Named, problems)
    channels_file = document("channels.yaml", "channels")
    channels = _codes(channels_file, "channels", Channel, problems, at_most=MAX_CODES)
    modes_file = document("modes.yaml", "modes", "levels", "response_floor_minutes")
    modes = _modes(modes_file, problems)
    admission_file = document("admission.yaml", "version", "derived", "rules", "report_flags", "event_flags")
    admission = read_admission(admission_file, problems) if admission_file else None
    referrals = _codes(document("referrals.yaml", "referrals"), "referrals", Referral, problems)
    known = checks.KnownCodes(
        checks.listed(categories_file, "categories"),
        checks.listed(departments_file, "departments"),
        checks.listed(channels_file, "channels"),
        checks.listed(modes_file, "modes"),
    )
    if admission and "referrals.yaml" in documents:
        checks.check_referrals(documents["referrals.yaml"], referrals, admission.reason_codes(13), problems)

    lists: list[tuple[Document, MatterListHead, dict[str, Matter]]] = []
    files = sorted((directory / "matters").glob("*.yaml"))
    if not files:
        problems.add(directory / "matters", 1, "no version of the matters; add matters/<day>.yaml")
    for file in files:
        found = document(f"matters/{file.name}", "meta", "matters")
        if found is None:
            continue
        head = read_item(found, ("meta",), found.values["meta"], MatterListHead, problems)
        matters = _codes(found, "matters", Matter, problems)
        checks.check_matters(found, "matters", matters, known, problems)
        if head is not None:
            checks.check_head(found, head, matters, problems)
            lists.append((found, head, matters))
    checks.check_versions(lists, problems)

    temporary_file = document("temporary.yaml", "temporary_matters")
    temporary = _codes(temporary_file, "temporary_matters", Matter, problems)
    if temporary_file is not None:
        checks.check_matters(temporary_file, "temporary_matters", temporary, known, problems)
        checks.check_temporary(temporary_file, temporary, [matters for _, _, matters in lists], problems)

    if problems.lines or admission is None:
        raise ConfigurationError(problems.lines)
    versions = tuple(
        CatalogueVersion(
            head.version,
            local_midnight(head.effective_from),
            MappingProxyType({**matters, **temporary}),
            head,
        )
        for _, head, matters in lists
    )
    return Catalogues(
        digest=_digest(documents),
        files=MappingProxyType({name: document.text for name, document in documents.items()}),
        versions=versions,
        categories=MappingProxyType(categories),
        departments=MappingProxyType(departments),
        channels=MappingProxyType(channels),
        modes=modes,
        referrals=MappingProxyType(referrals),
        admission=admission,
    )


def _codes(
    document: Document | None, key: str, kind: type[Coded], problems: Problems, at_most: int = 10_000
) -> dict[str, Coded]:
    """The entries of a list by their code; a code that appears twice is a problem."""
    found: dict[str, Coded] = {}
    first_line: dict[str, int] = {}
    for number, item in read_items(document, key, kind, problems) if document else ():
        assert document is not None
        line = document.line(key, number)
        if item.code in found:
            problems.add(
                document.path, line, f"{item.code} appears twice, first in line {first_line[item.code]}"
            )
            continue
        found[item.code], first_line[item.code] = item, line
    if document and len(found) > at_most:
        problems.add(document.path, document.line(key), f"{key}: {len(found)} entries, at most {at_most} fit")
    return found


def _modes(document: Document | None, problems: Problems) -> Modes:
    names = _codes(document, "modes", Named, problems, at_most=MAX_CODES)
    levels = _codes(document, "levels", Level, problems)
    minutes = document.values["response_floor_minutes"] if document else 0
    if document and (not isinstance(minutes, int) or isinstance(minutes, bool) or minutes < 0):
        line = document.line("response_floor_minutes")
        problems.add(document.path, line, f"response_floor_minutes must be whole minutes, found {minutes!r}")
        minutes = 0
    factors = [level.response_factor for level in levels.values()]
    if document and factors != sorted(factors, reverse=True):
        problems.add(
            document.path, document.line("levels"), "levels must run from the weakest to the strongest"
        )
    return Modes(MappingProxyType(names), tuple(levels.values()), minutes * 60)


def _names_zh(items: Mapping[str, Named]) -> Mapping[str, str]:
    return MappingProxyType({code: item.name_zh for code, item in items.items()})


def _digest(documents: Mapping[str, Document]) -> str:
    """Of the values, not of the text: comments and layout do not change a decision."""
    values = {name: documents[name].values for name in sorted(documents)}
    canonical = orjson.dumps(values, option=orjson.OPT_SORT_KEYS | orjson.OPT_UTC_Z)
    return hashlib.sha256(canonical).hexdigest()[:DIGEST_CHARACTERS]
