"""What the catalogue files hold, typed. Reading, checking and compiling them is the work of other modules."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from pipeline.clock import LOCAL_ZONE

#: What a matter may require of a report (design, the event).
REQUIRED_FIELDS: Final = ("location", "photo", "person", "organisation", "description")
RULE_COUNT: Final = 13

Code = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,40}$")]
MatterCode = Annotated[str, Meta(pattern=r"^[A-Z]{2,3}(-[A-Z0-9]{1,8}){1,4}$")]
ReasonCode = Annotated[str, Meta(pattern=r"^[A-Z][A-Z_]{2,39}$")]
ColumnName = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
Name = Annotated[str, Meta(min_length=1, max_length=200)]
Version = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,40}$")]
RequiredField = Literal["location", "photo", "person", "organisation", "description"]


class _Item(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An entry of a file; unknown keys are refused."""


class Named(_Item, frozen=True, kw_only=True):
    """A code with its names: category, department."""

    code: Code
    name_zh: Name
    name_en: Name


class Channel(Named, frozen=True, kw_only=True):
    kind: Literal["staff", "public", "care", "desk", "device", "system"]
    carries_photo: bool
    reporter: Literal["own_grid", "channel_right", "anyone"]


class Referral(Named, frozen=True, kw_only=True):
    """A known code that is no grid matter; `reason` is one of rule 13's."""

    reason: ReasonCode


class Level(_Item, frozen=True, kw_only=True):
    code: Code
    response_factor: Annotated[float, Meta(gt=0, le=1)]


class Matter(_Item, frozen=True, kw_only=True):
    """An approved matter (事项), regular or temporary. Days are local (Asia/Shanghai), limits natural."""

    code: MatterCode
    name_zh: Name
    name_en: Name
    category: Code
    approved_on: date
    effective_from: date
    lead_department: Code
    urgency: Literal["routine", "urgent", "emergency"]
    response_minutes: Annotated[int, Meta(ge=1, le=525_600)]
    resolution_hours: Annotated[int, Meta(ge=1, le=87_600)]
    allowed_channels: Annotated[tuple[Code, ...], Meta(min_length=1)]
    required_fields: Annotated[tuple[RequiredField, ...], Meta(min_length=1)]
    needs_person: bool
    incident_window_minutes: Annotated[int, Meta(ge=1, le=525_600)]
    incident_radius_m: Annotated[int, Meta(ge=1, le=100_000)]
    emergency_modes: Annotated[tuple[Code, ...], Meta(min_length=1)]
    effective_to: date | None = None
    supporting_departments: tuple[Code, ...] = ()
    active_only_in_modes: tuple[Code, ...] = ()
    batch: Annotated[int, Meta(ge=1)] | None = None
    base_matter: MatterCode | None = None
    approval_reference: Name | None = None

    @property
    def temporary(self) -> bool:
        return self.code.startswith("TMP-")

    @property
    def prioritised_in(self) -> tuple[str, ...]:
        """Modes that prioritise the matter; `[none]` in the file is an empty tuple here."""
        return tuple(mode for mode in self.emergency_modes if mode != "none")

    @property
    def effective_from_instant(self) -> datetime:
        return local_midnight(self.effective_from)

    @property
    def effective_to_instant(self) -> datetime | None:
        """Exclusive end, None while the matter is in force."""
        return None if self.effective_to is None else local_midnight(self.effective_to)

    def in_force(self, at: datetime) -> bool:
        end = self.effective_to_instant
        return self.effective_from_instant <= at and (end is None or at < end)


class Batch(_Item, frozen=True, kw_only=True):
    batch: Annotated[int, Meta(ge=1)]
    approved_on: date
    effective_from: date
    count: Annotated[int, Meta(ge=0)]
    dates_assumed: bool = False
    split_assumed: bool = False


class MatterListHead(_Item, frozen=True, kw_only=True):
    """`meta` of one version of the list; its counts must agree with what follows."""

    catalogue: Name
    version: Version
    effective_from: date
    status: Name
    timezone: Literal["Asia/Shanghai"]
    matter_count: Annotated[int, Meta(ge=1)]
    batches: tuple[Batch, ...]
    category_counts: dict[Code, Annotated[int, Meta(ge=0)]]


class Example(_Item, frozen=True, kw_only=True):
    """A row of columns and what must come out of it. Columns not given are null."""

    given: dict[str, Any]
    result: bool | Literal["unknown"]
    reasons: tuple[ReasonCode, ...] = ()
    missing_fields: tuple[RequiredField, ...] = ()


class Reason(_Item, frozen=True, kw_only=True):
    code: ReasonCode
    name_zh: Name
    name_en: Name
    fails_when: str | dict[RequiredField, str]

    @property
    def conditions(self) -> dict[str, str]:
        """Conditions by the field they name; the key is empty where the reason names none."""
        if isinstance(self.fails_when, str):
            return {"": self.fails_when}
        return {str(field): condition for field, condition in self.fails_when.items()}


class Rule(_Item, frozen=True, kw_only=True):
    number: Annotated[int, Meta(ge=1, le=RULE_COUNT)]
    name_zh: Name
    name_en: Name
    reasons: Annotated[tuple[Reason, ...], Meta(min_length=1)]
    examples: Annotated[tuple[Example, ...], Meta(min_length=1)]
    needs: tuple[ColumnName, ...] = ()
    effective_from: date | None = None


class Condition(_Item, frozen=True, kw_only=True):
    """A named condition: shared by rules (`derived`) or a flag of the decision. `is` in the file."""

    name: ColumnName
    sql: str = msgspec.field(name="is")
    examples: Annotated[tuple[Example, ...], Meta(min_length=1)]


def local_midnight(day: date) -> datetime:
    """The instant (UTC) at which a day starts in Shanghai."""
    return datetime(day.year, day.month, day.day, tzinfo=LOCAL_ZONE).astimezone(UTC)
