"""The one definition of the reference files: columns, types, what may be stored, and who the parent is.

`schemas/reference/*.json`, the templates, the checks of `load` and the columns of the `ref_*` tables all come
from here. Source of the columns: docs/architecture.md, "Reference files".
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import orjson

ColumnType = Literal[
    "text", "integer", "number", "flag", "instant", "day", "list", "loans", "routes", "polygon"
]

GRID_CODE: Final = r"^\d{15}$"
UNIT_CODE: Final = r"^\d{15}-U\d{3}$"
KEY: Final = r"^[A-Za-z0-9._:@/+=-]{1,128}$"
PERSON_KEY: Final = r"^[0-9a-f]{64}$"
CODE: Final = r"^[A-Za-z0-9._:-]{1,64}$"

AGE_BANDS: Final = ("0-5", "6-13", "14-17", "18-59", "60-69", "70-79", "80+")
STAFF_KINDS: Final = (
    "full_time", "part_time", "professional", "unit_head", "leader", "police_deputy", "clerk", "volunteer",
)  # fmt: skip
CHANNELS: Final = (
    "grid_patrol", "yuepingan", "yueshengshi", "hotline_12345", "pingantong", "rider_qrcode",
    "petition_market", "iot_sensor", "dept_transfer",
)  # fmt: skip
RISK_TAGS: Final = (
    "flood_prone", "landslide", "waterfront", "forest", "old_buildings", "hazardous_source",
)  # fmt: skip
MODES: Final = ("flood", "typhoon", "epidemic", "heat")
LEVELS: Final = ("IV", "III", "II", "I")

#: Masks: the first character of a name is kept, the middle of a phone is hidden.
Mask = Literal["name", "phone"]

OnNumber = Literal["refused", "redacted"]


@dataclass(frozen=True)
class Column:
    """One column of a reference file.

    personal : its values never appear in a report or an error.
    stored : False for what only the loading process may see (id numbers, birth dates).
    """

    name: str
    type: ColumnType
    description: str
    required: bool = False
    pattern: str | None = None
    values: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    max_length: int = 200
    personal: bool = False
    stored: bool = True
    mask: Mask | None = None

    @property
    def on_number(self) -> OnNumber | None:
        """What an identity or mobile number in a cell leads to.

        A key, a code or a route with a mark in it would be another one, so the row is refused; in free text
        a mark takes the number's place. None where there is no room for a number, or nothing is stored.
        """
        if self.type == "routes" or self.pattern in (KEY, CODE):
            return "refused"
        free = self.type == "text" and not (self.pattern or self.values or self.mask)
        return "redacted" if free and self.stored else None


@dataclass(frozen=True)
class Kind:
    """One kind of reference data: a file, a table, a key.

    history : "dated": the file gives valid_from of each version; "numbered": it gives the version; "plain":
              one row per key, a changed row opens a version when it is loaded.
    parents : (column, kind): a value of the column must be a key of that kind.
    attributes are all stored columns but key, version, valid_from, valid_to, updated_at, source_system.
    """

    name: str
    title: str
    key: tuple[str, ...]
    history: Literal["dated", "numbered", "plain"]
    columns: tuple[Column, ...]
    parents: tuple[tuple[str, str], ...] = ()

    @property
    def table(self) -> str:
        return f"ref_{self.name}"

    def column(self, name: str) -> Column:
        return next(column for column in self.columns if column.name == name)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @property
    def attributes(self) -> tuple[str, ...]:
        """What makes two versions differ."""
        own = {*self.key, "version", "valid_from", "updated_at", "source_system"}
        if self.history == "dated":
            own.add("valid_to")
        return tuple(column.name for column in self.columns if column.stored and column.name not in own)


def _text(name: str, description: str, **extra: Any) -> Column:
    return Column(name, "text", description, **extra)


def _count(name: str, description: str) -> Column:
    return Column(name, "integer", description, minimum=0, maximum=10_000_000)


def _flag(name: str, description: str) -> Column:
    return Column(name, "flag", description, personal=True)


def _version() -> Column:
    return Column(
        "version",
        "integer",
        "Number of this version, from 1; assigned when absent or taken.",
        minimum=1,
        maximum=1_000_000,
    )


def _origin() -> tuple[Column, ...]:
    return (
        Column(
            "updated_at",
            "instant",
            "When the source last changed the record; an older record never replaces it.",
        ),
        _text("source_system", "System that the record comes from."),
    )


def _identity() -> tuple[Column, ...]:
    return (
        _text(
            "id_number",
            "Resident id number (18 characters, or the old 15); becomes person_key, never stored.",
            personal=True,
            stored=False,
            max_length=40,
        ),
        _text(
            "person_key",
            "HMAC-SHA-256 of the normalised id number, 64 hex digits; instead of id_number.",
            pattern=PERSON_KEY,
            personal=True,
        ),
        Column(
            "key_version",
            "integer",
            "Version of the pseudonym key that made person_key.",
            minimum=1,
            maximum=65_535,
        ),
    )


GRIDS = Kind(
    name="grids",
    title="Grids (网格), one row per version",
    key=("grid_code",),
    history="dated",
    columns=(
        _text(
            "grid_code", "15 digits: county 6, town 3, village 3, grid 3.", required=True, pattern=GRID_CODE
        ),
        _version(),
        Column("valid_from", "instant", "First instant of this version.", required=True),
        Column("valid_to", "instant", "End of this version, exclusive; empty: open."),
        _text("grid_name", "Name of the grid.", required=True),
        _text(
            "grid_type",
            "Main use.",
            required=True,
            values=("residential", "rural", "commercial", "industrial", "special"),
        ),
        _text("village_kind", "Residents' community or village.", values=("community", "village")),
        Column("boundary", "polygon", "WKT POLYGON or MULTIPOLYGON, WGS84 lon lat.", max_length=1_000_000),
        Column("centroid_lon", "number", "Degrees, WGS84.", minimum=73, maximum=136),
        Column("centroid_lat", "number", "Degrees, WGS84.", minimum=3, maximum=54),
        Column("area_km2", "number", "Square kilometres.", minimum=0, maximum=10_000),
        _count("unit_count", "Minimal units."),
        _count("building_count", "Buildings."),
        _count("dwelling_count", "Dwellings."),
        _count("rental_count", "Rental dwellings."),
        _count("household_count", "Households."),
        _count("population_registered", "Registered residents."),
        _count("population_floating", "Floating residents."),
        _count("elderly_60_count", "Residents of 60 and over."),
        _count("elderly_alone_count", "Elderly living alone."),
        _count("disabled_count", "Residents with a disability."),
        _count("hardship_count", "Residents in hardship."),
        _count("children_care_count", "Children in care."),
        _count("enterprise_count", "Enterprises."),
        _count("shop_count", "Shops and sole traders."),
        _count("school_count", "Schools and kindergartens."),
        _count("medical_count", "Medical institutions."),
        Column("risk_tags", "list", "Known risks.", values=RISK_TAGS),
        _text("shelter_code", "Nearest refuge point.", pattern=CODE),
        _text("party_org_code", "Party organisation of the grid.", pattern=CODE),
        _text("lead_worker_key", "worker_key of the lead grid worker.", pattern=KEY),
        Column("worker_keys", "list", "worker_keys of the grid's workers.", pattern=KEY),
        _text("leader_in_residence_key", "worker_key of the leader in residence.", pattern=KEY),
        _text("police_deputy_key", "worker_key of the deputy grid head (police).", pattern=KEY),
        Column("department_route", "routes", "Object: matter category to department."),
        _text("status", "Whether the grid takes reports.", required=True, values=("active", "inactive")),
        *_origin(),
    ),
)

UNITS = Kind(
    name="units",
    title="Minimal units (最小单元), one row per version",
    key=("unit_code",),
    history="dated",
    columns=(
        _text("unit_code", "Grid code, -U, 3 digits.", required=True, pattern=UNIT_CODE),
        _version(),
        Column("valid_from", "instant", "First instant of this version.", required=True),
        Column("valid_to", "instant", "End of this version, exclusive; empty: open."),
        _text("unit_name", "Name of the unit."),
        _text("unit_head_key", "worker_key of the unit head.", pattern=KEY),
        *_origin(),
    ),
    parents=(("unit_code", "grids"),),
)

STAFF = Kind(
    name="staff",
    title="Staff: grid workers, unit heads, leaders, clerks, volunteers",
    key=("worker_key",),
    history="plain",
    columns=(
        _text(
            "worker_key", "Key that the staff member reports under (actor.key).", required=True, pattern=KEY
        ),
        _text("kind", "Role.", required=True, values=STAFF_KINDS),
        _text("name_masked", "Masked name; a full name is masked while loading.", personal=True, mask="name"),
        _text("grid_code", "Own grid; empty for staff of a whole district.", pattern=GRID_CODE),
        _text("district_code", "District, 6 digits.", required=True, pattern=r"^\d{6}$"),
        _text("department", "Department of professional staff.", pattern=CODE),
        Column("active_from", "instant", "First instant of service.", required=True),
        Column("active_to", "instant", "End of service, exclusive; empty: still serving."),
        _text("device_key", "Handset.", pattern=KEY),
        Column("channel_rights", "list", "Channels that the person may report on.", values=CHANNELS),
        Column("loans", "loans", "Grids lent to: list of {grid_code, valid_from, valid_to}."),
        *_identity(),
        *_origin(),
    ),
    parents=(("grid_code", "grids"), ("loans", "grids")),
)

PERSONS = Kind(
    name="persons",
    title="Residents, pseudonymous",
    key=("person_key",),
    history="plain",
    columns=(
        *_identity(),
        _text("name_masked", "Masked name; a full name is masked while loading.", personal=True, mask="name"),
        _text("gender", "Gender.", values=("male", "female", "unknown"), personal=True),
        Column(
            "birth_date", "day", "Date of birth; only the age band is stored.", personal=True, stored=False
        ),
        _text("age_band", "Age band; instead of birth_date.", values=AGE_BANDS, personal=True),
        _text(
            "phone_masked",
            "Masked phone, 138****1234; a full one is masked while loading.",
            personal=True,
            mask="phone",
        ),
        _text(
            "residence_kind",
            "Kind of residence.",
            values=("registered", "floating", "overseas"),
            personal=True,
        ),
        _text("home_grid_code", "Grid of the home.", pattern=GRID_CODE, personal=True),
        _text("home_unit_code", "Minimal unit of the home.", pattern=UNIT_CODE, personal=True),
        _text("building_code", "Building.", pattern=CODE, personal=True),
        _text("household_key", "Household.", pattern=KEY, personal=True),
        _flag("elderly_alone_flag", "Elderly living alone."),
        _flag("disability_flag", "Disability."),
        _flag("hardship_flag", "Low income or extreme hardship."),
        _flag("child_care_flag", "Left-behind or disadvantaged child."),
        _flag("health_care_flag", "Pregnant, chronic illness or dialysis (coarse)."),
        _flag("pingantong_user_flag", "Has a Ping'antong emergency button."),
        _text(
            "visit_rhythm",
            "Visits.",
            values=("daily", "weekly", "monthly", "quarterly", "none"),
            personal=True,
        ),
        Column("last_visit_at", "instant", "Last visit.", personal=True),
        _flag("volunteer_flag", "Volunteer."),
        _text("grid_worker_kind", "Kind of grid worker, if any.", values=STAFF_KINDS, personal=True),
        _text("consent_basis", "Legal basis of the processing."),
        *_origin(),
        Column("deleted_at", "instant", "Record withdrawn; from then on the person is not found."),
    ),
)

ORGANISATIONS = Kind(
    name="organisations",
    title="Organisations and firms",
    key=("org_code",),
    history="plain",
    columns=(
        _text("org_code", "Unified social credit code or local code.", required=True, pattern=CODE),
        _text("kind", "Kind of organisation."),
        _text("name", "Name.", required=True),
        _text("grid_code", "Grid.", pattern=GRID_CODE),
        _text("unit_code", "Minimal unit.", pattern=UNIT_CODE),
        _text("industry", "Industry."),
        _text("staff_band", "Number of staff, banded."),
        Column("key_industry_flag", "flag", "Belongs to a key industry."),
        *_origin(),
    ),
    parents=(("grid_code", "grids"),),
)

MODES_KIND = Kind(
    name="modes",
    title="Emergency modes (平急转换), one row per declaration",
    key=("mode", "area_code", "valid_from"),
    history="numbered",
    columns=(
        _text("mode", "Mode.", required=True, values=MODES),
        _text("level", "Level, IV lowest.", required=True, values=LEVELS),
        _text(
            "area_code",
            "4407 the city, 6 digits a district, 9 a town.",
            required=True,
            pattern=r"^(4407|4407\d{2}|4407\d{5})$",
        ),
        Column("valid_from", "instant", "Start.", required=True),
        Column("valid_to", "instant", "End, exclusive; empty: open."),
        _text("authority", "Issuing authority.", required=True),
        _version(),
    ),
)

#: In loading order: parents first.
KINDS: Final[dict[str, Kind]] = {
    kind.name: kind for kind in (GRIDS, UNITS, STAFF, PERSONS, ORGANISATIONS, MODES_KIND)
}

_INSTANT: Final = {
    "type": "string",
    "anyOf": [{"format": "date-time"}, {"format": "date"}],
    "$comment": "RFC 3339 with zone; a date alone is its midnight in Asia/Shanghai",
}


def _property(column: Column) -> dict[str, Any]:
    text: dict[str, Any] = {"type": "string", "maxLength": column.max_length}
    if column.pattern:
        text["pattern"] = column.pattern
    if column.values:
        text = {"type": "string", "enum": list(column.values)}
    number: dict[str, Any] = {"minimum": column.minimum, "maximum": column.maximum}
    shapes: dict[ColumnType, dict[str, Any]] = {
        "text": text,
        "polygon": text,
        "integer": {"type": "integer", **number},
        "number": {"type": "number", **number},
        "flag": {"type": "boolean"},
        "instant": dict(_INSTANT),
        "day": {"type": "string", "format": "date"},
        "list": {"type": "array", "items": text},
        "routes": {"type": "object", "additionalProperties": {"type": "string"}},
        "loans": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "grid_code": {"type": "string", "pattern": GRID_CODE},
                    "valid_from": dict(_INSTANT),
                    "valid_to": {"anyOf": [dict(_INSTANT), {"type": "null"}]},
                },
                "required": ["grid_code", "valid_from"],
                "additionalProperties": False,
            },
        },
    }
    shape = shapes[column.type]
    if not column.required:
        shape = {"anyOf": [shape, {"type": "null"}]}
    return {"description": column.description, **shape}


def json_schema(kind: Kind) -> dict[str, Any]:
    """JSON Schema of one row, as NDJSON carries it."""
    schema: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": kind.title,
        "description": f"One row of {kind.name}.parquet, .csv or .ndjson. In CSV lists are separated by ';' "
        "and objects are JSON text.",
        "type": "object",
        "properties": {column.name: _property(column) for column in kind.columns},
        "required": [column.name for column in kind.columns if column.required],
        "additionalProperties": False,
    }
    if kind.name == "persons":
        schema["anyOf"] = [{"required": ["id_number"]}, {"required": ["person_key", "key_version"]}]
    return schema


def write_schemas(directory: Path) -> None:
    """Write `<kind>.json` of every kind to `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    for kind in KINDS.values():
        document = orjson.dumps(json_schema(kind), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        (directory / f"{kind.name}.json").write_bytes(document)
