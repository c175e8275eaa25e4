"""Retention as the tables' TTL, by receipt (`ingested_at`): details go early, facts stay longer, then all.

Source: domain 9 (raw events 90 days, person links one year, case facts three years), design 9.14 (never by
`occurred_at`, so that a backfilled year is not deleted at once). What was not readable goes by when it was
stored: its time may be as wrong as the rest of it, and its row may be the only trace of it. What only an
emergency mode makes visible goes after the mode's end, and a resident after the withdrawal: no TTL knows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from clickhouse_connect.driver.client import Client

from pipeline.errors import ConfigurationError
from pipeline.frames import PERSON_FACT
from pipeline.reference.enrich import EMERGENCY_FLAGS
from pipeline.settings import Settings
from pipeline.store.case_views import LEVEL_WORDS
from pipeline.store.ddl import STORED_TYPES

#: What a clerk reads of a single event; `GET /v1/events/…` answers 410 after the same time.
DETAILS: Final = (
    "actor_name", "actor_phone", "address", "attributes", "description", "lat", "level", "lon",
    "organisation_name", "photos", "request_id", "title", "unit_code", "void_reason",
)  # fmt: skip
#: What links an event to a person, or to what else the person sent.
LINKS: Final = ("actor_key", "l2_hi", "l2_lo", "person_facts", "persons", "submission_id")
#: So long after a mode's end a report keeps what only the mode made visible (domain 9).
EMERGENCY_KEPT: Final = timedelta(days=30)
#: So long a withdrawn resident stays stored: who was withdrawn by mistake comes back with all versions.
WITHDRAWN_KEPT: Final = timedelta(days=30)
#: Pseudonyms in one mutation: statements are parsed up to 256 KiB, and kept until they are done.
_KEYS_AT_ONCE: Final = 2_000
_EVENT_TABLES: Final = ("events", "rejections")
_FACT: Final = tuple(field.name for field in PERSON_FACT.fields)
_TTL: Final = "toDateTime({}) + toIntervalDay({})"


@dataclass(frozen=True)
class Retention:
    """changed : tables whose TTLs were set anew. kept : by setting that nobody set here, the days that tables
    have in place of its default."""

    changed: tuple[str, ...]
    kept: dict[str, int]


def apply_retention(client: Client, settings: Settings) -> Retention:
    """Set the TTLs that the settings ask for. A default takes the place of no TTL that is there: rows would
    go for good because a command was run without the settings of its site.

    Reads before it writes, so that a worker without the right to alter tables starts on tables in order.
    Raises ConfigurationError for a user who may not see one of them.
    """
    statements, there = {}, dict[str, list[int]]()
    for table, wanted in _wanted(settings).items():
        seen = client.query(
            "SELECT create_table_query FROM system.tables "
            "WHERE database = currentDatabase() AND name = {name:String}",
            {"name": table},
        ).result_rows
        if not seen:  # who is granted nothing of a table is told that there is none
            raise ConfigurationError(
                f"this ClickHouse user may not see {table}: migrate as gridpipe_admin (docs/security.md)"
            )
        statements[table] = _plain(seen[0][0])
        for ttl in wanted:
            if (days := ttl.days_in(statements[table])) is not None:
                there.setdefault(ttl.setting, []).append(days)
    # columns that a release gives their first retention end with the others of the store
    unset = {name: max(days) for name, days in there.items() if name not in settings.model_fields_set}
    changed = []
    for table, wanted in _wanted(settings.model_copy(update=unset)).items():
        parts = [
            ttl.part
            for ttl in wanted
            if (days := ttl.days_in(statements[table])) != ttl.days
            and (days is None or ttl.setting not in unset)
        ]
        if parts:
            # what is there expires with the next merges: rewriting everything at once would stall inserts
            client.command(
                f"ALTER TABLE {table} {', '.join(parts)}", settings={"materialize_ttl_after_modify": 0}
            )
            changed.append(table)
    kept = {
        name: days
        for name, days in unset.items()
        if any(one != getattr(settings, name) for one in there[name])
    }
    return Retention(tuple(changed), kept)


def forget_ended(client: Client, now: datetime) -> list[str]:
    """Begin to delete what no TTL can know to be over: facts of ended modes, residents who were withdrawn,
    who was erased and is loaded all the same, and words in levels, which workers of an older release wrote
    until they were restarted (revision 0012).

    Returns the tables that held some.
    """
    found = forget_emergency_facts(client, now)
    erased = forget_erased(client)
    if forget_withdrawn(client, now) and "ref_persons" not in erased:
        found.append("ref_persons")
    found += erased
    condition, update = LEVEL_WORDS
    if client.query(f"SELECT count() FROM cases WHERE {condition}").result_rows[0][0]:
        client.command(f"ALTER TABLE cases UPDATE {update} WHERE {condition}", settings={"mutations_sync": 0})
        found.append("cases")
    return found


def long_withdrawn(now: datetime) -> str:
    """The query for `person_key` of the residents whose newest version was withdrawn WITHDRAWN_KEPT before
    `now`. No load stores one of them as new."""
    withdrawn = f"toUnixTimestamp64Milli(deleted_at) <= {int((now - WITHDRAWN_KEPT).timestamp() * 1_000)}"
    return f"""
        SELECT person_key FROM
        (
            SELECT person_key, deleted_at FROM ref_persons FINAL
            WHERE person_key IN (SELECT person_key FROM ref_persons WHERE {withdrawn})
            ORDER BY person_key, version DESC LIMIT 1 BY person_key
        )
        WHERE {withdrawn}"""


def forget_withdrawn(client: Client, now: datetime) -> bool:
    """Begin to delete all versions of the residents whose newest one was withdrawn WITHDRAWN_KEPT before
    `now`; returns whether there are any. A TTL would end that version, and show the one before it again."""
    gone = client.query(long_withdrawn(now)).result_rows
    return _of_keys(client, "ALTER TABLE ref_persons DELETE", [key for (key,) in gone])


def forget_erased(client: Client) -> list[str]:
    """Begin to delete the residents who are on the list of erased persons, and to take the link to one from
    staff: a load that read the list before the erasure stored them again. Returns the tables that held some.
    """
    listed = "SELECT DISTINCT person_key FROM {} WHERE person_key IN (SELECT person_key FROM ref_erasures)"
    statements = {
        "ref_persons": "ALTER TABLE ref_persons DELETE",
        "ref_staff": "ALTER TABLE ref_staff UPDATE person_key = NULL, key_version = NULL",
    }
    return [
        table
        for table, statement in statements.items()
        if _of_keys(client, statement, [key for (key,) in client.query(listed.format(table)).result_rows])
    ]


def _of_keys(client: Client, statement: str, keys: Sequence[str]) -> bool:
    """Begin a mutation of the rows of these pseudonyms; returns whether there are any.

    The keys stand in it: parts are changed one after another, and a list that is read from the table which
    changes would lose whoever the first parts held before the last ones are reached.
    """
    for begin in range(0, len(keys), _KEYS_AT_ONCE):
        some = tuple(keys[begin : begin + _KEYS_AT_ONCE])
        client.command(
            f"{statement} WHERE person_key IN %(keys)s", {"keys": some}, settings={"mutations_sync": 0}
        )
    return bool(keys)


def forget_emergency_facts(client: Client, now: datetime) -> list[str]:
    """Begin to take EMERGENCY_FLAGS out of the reports whose mode ended EMERGENCY_KEPT before `now`; returns
    the tables that held some. A mode that nobody knows any more has ended."""
    until = int((now - EMERGENCY_KEPT).timestamp() * 1_000)
    declared = [
        _Mode(*row)
        for row in client.query(
            """SELECT toString(mode), toString(area_code), toUnixTimestamp64Milli(valid_from),
                if(valid_to IS NULL, NULL, toUnixTimestamp64Milli(assumeNotNull(valid_to)))
            FROM
            (SELECT * FROM ref_modes FINAL ORDER BY version DESC LIMIT 1 BY mode, area_code, valid_from)"""
        ).result_rows
    ]
    going_on = _emergencies(declared, until)
    kept = " OR ".join(
        f"(mode = '{mode}' AND startsWith(grid_code, '{area}') "
        f"AND toUnixTimestamp64Milli(occurred_at) >= {since})"
        for mode, area, since in sorted(going_on)
    )
    flags = ", ".join(f"'{flag}'" for flag in EMERGENCY_FLAGS)
    over = (
        f"mode IS NOT NULL AND arrayExists(f -> hasAny(f.flags, [{flags}]), person_facts) "
        f"AND NOT ({kept or 'false'})"
    )
    members = ", ".join(f"f.{name}" for name in _FACT if name != "flags")
    rest = f"({members}, arrayFilter(x -> x NOT IN ({flags}), f.flags))"
    kind = STORED_TYPES["person_facts"]
    touched = []
    for table in _EVENT_TABLES:
        if client.query(f"SELECT count() FROM {table} WHERE {over}").result_rows[0][0]:
            client.command(
                f"ALTER TABLE {table} UPDATE person_facts = "
                f"CAST(arrayMap(f -> {rest}, person_facts), '{kind}') WHERE {over}",
                settings={"mutations_sync": 0},
            )
            touched.append(table)
    return touched


class _Mode(NamedTuple):
    """A declaration. since, end : ms; end None: it goes on."""

    mode: str
    area: str
    since: int
    end: int | None


def _emergencies(declared: Sequence[_Mode], until: int) -> set[tuple[str, str, int]]:
    """mode, area, and since when, of each emergency that lasted longer than `until` (ms).

    A change of level is a declaration of its own: one that another joins on to, in an area within its own or
    the other way round, is of the same emergency where both hold.
    """
    found: set[tuple[str, str, int]] = set()
    reached = [(one.mode, one.area, one.since) for one in declared if one.end is None or one.end > until]
    while reached:
        mode, area, since = this = reached.pop()
        if this in found:
            continue
        found.add(this)
        reached += [
            (mode, max(area, one.area, key=len), one.since)
            for one in declared
            if one.mode == mode
            and one.since < since
            and (one.end is None or one.end >= since)
            and (area.startswith(one.area) or one.area.startswith(area))
        ]
    return found


class _Ttl(NamedTuple):
    """setting, days : what it is to be. found : matches it in the table's statement, whatever its days.
    part : of an ALTER that sets it."""

    setting: str
    days: int
    found: str
    part: str

    def days_in(self, statement: str) -> int | None:
        """The days that a table's statement has; None: no such TTL."""
        found = re.search(self.found, statement)
        return None if found is None else int(found[1])


def _wanted(settings: Settings) -> dict[str, list[_Ttl]]:
    """By table."""

    def ttl(setting: str, since: str, found: str, part: str) -> _Ttl:
        days = getattr(settings, setting)
        days_of = re.escape(_TTL.format(since, "DAYS")).replace("DAYS", r"(\d+)")
        return _Ttl(setting, days, found.format(days_of), part.format(_TTL.format(since, days)))

    def rows(setting: str, since: str = "ingested_at") -> _Ttl:
        return ttl(setting, since, "TTL {} SETTINGS", "MODIFY TTL {}")

    def column(name: str, setting: str) -> _Ttl:
        return ttl(setting, "ingested_at", rf"\b{name} TTL {{}}(?!\d)", f"MODIFY COLUMN {name} TTL {{}}")

    # the rows' own TTL is written last: its expression may be a list, and takes what follows for a part of it
    found = {
        table: [
            *(column(name, "event_retention_days") for name in DETAILS),
            *(column(name, "person_link_days") for name in LINKS),
            rows("fact_retention_days"),
        ]
        for table in _EVENT_TABLES
    }
    return found | {
        "duplicates": [rows("fact_retention_days")],
        "quarantine": [rows("event_retention_days", "stored_at")],
    }


def _plain(statement: str) -> str:
    """A table's statement in one line, each column of it as its name and its TTL only."""
    columns, _, rest = statement.partition(") ENGINE")
    short = (
        re.sub(r"^(\w+)` .*?(TTL|$)", r"\1 \2", column, flags=re.DOTALL)
        for column in columns.split("`", 1)[1].split(", `")
    )
    return ", ".join(short) + ") ENGINE" + rest
