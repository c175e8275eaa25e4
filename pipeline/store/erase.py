"""Erases a person: every row that holds one of the pseudonyms, then proof that none is left.

Rows of events stay with their times, codes and outcomes, so that official figures do not change: they count
cases, and `case_events` and `cases` hold no person. What goes: keys, masked names and phones, persons, person
facts, places, texts and photos of every event that the person reported or that concerns it; and texts and
places of every other event of a case that it reported or that concerns it, whoever wrote them.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from clickhouse_connect.driver.client import Client

from pipeline.clock import utc_now
from pipeline.errors import PermanentError, UnavailableError
from pipeline.reference.erased import ERASURES, PERSONAL, WORDS
from pipeline.store.erasure_list import Erasure, stored_erasures

_EVENT_TABLES: Final = ("events", "rejections")
_MINE: Final = "has({keys:Array(String)}, ifNull(%s, ''))"
_REPORTER: Final = _MINE % "actor_key"
_CONCERNED: Final = (
    f"(arrayExists(p -> {_MINE % 'p.key'}, persons) OR arrayExists(p -> {_MINE % 'p.key'}, person_facts))"
)
#: Rows of these cases that were received until their erasure and still hold texts or a place.
_TOLD_OF: Final = (
    "has({cases:Array(String)}, case_id) AND toUnixTimestamp64Milli(ingested_at) <= "
    "transform(case_id, {cases:Array(String)}, {ats:Array(Int64)}, toInt64(-1)) AND ("
    + " OR ".join(f"{name} IS NOT NULL" for name in WORDS)
    + ")"
)
#: Tables that keep pseudonyms of erased persons on purpose: the list that stops them from coming back.
_KEPT: Final = frozenset({"ref_erasures"})
#: Tables whose rows say when they were received and may hold a pseudonym.
_RECEIVED: Final = (*_EVENT_TABLES, "quarantine")
_ANY: Final = timedelta(milliseconds=1)
#: Pseudonyms are sent in the address of a request, which has a bound.
_KEYS_AT_ONCE: Final = 200
_POLL_SECONDS: Final = 0.2


@dataclass
class Evidence:
    """What was done for one request, without the person: for the file and for whoever asked.

    keys : number of pseudonyms looked for; found : rows that held one, by table; cases : cases that the
    person reported or that concern it; words : rows of these with texts or a place, by table, the person's
    own among them; left : rows of either kind afterwards; mutations : by table, ids of `system.mutations`,
    all done. doubtful : rows, by table, that show the masked phone and hold no key of `keys`: a report under
    an identity number or a worker's key holds no pseudonym of the phone, and others share the mask, so that
    only the person's identity number can tell.
    """

    request_id: str
    erased_at: str
    keys: int
    found: dict[str, int] = field(default_factory=dict)
    cases: int = 0
    words: dict[str, int] = field(default_factory=dict)
    mutations: dict[str, list[str]] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    doubtful: dict[str, int] = field(default_factory=dict)
    tables_scanned: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        return not any(self.left.values())

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"complete": self.complete}


def scan(client: Client, database: str, keys: Sequence[str]) -> dict[str, int]:
    """Rows of every table that hold one of `keys` in any column, whatever its type; 0 where none does."""
    tables = client.query(
        "SELECT name FROM system.tables WHERE database = {database:String} AND engine LIKE '%MergeTree' "
        "ORDER BY name",
        {"database": database},
    ).result_rows
    found: dict[str, int] = {}
    for (table,) in tables:
        if table in _KEPT:
            continue
        counted = client.query(
            f"SELECT count() FROM {table} WHERE arrayExists(k -> position(toString(tuple(*)), k) > 0, "
            "{keys:Array(String)})",
            {"keys": list(keys)},
        )
        found[table] = int(counted.result_rows[0][0])
    return found


def entomb(
    client: Client, keys: Mapping[str, int], request_id: str, at: datetime, cases: Sequence[str] = ()
) -> None:
    """Put the pseudonyms on the list that loads and workers consult, and tell the workers.

    cases : of the person, whose events are to lose their texts when a worker reads them again. A further
    call with the same person and further cases is told to the workers anew.
    Raises PermanentError unless the list holds all of them then.
    """
    now, mark, told = utc_now(), mark_of(keys, at), mark_of([*keys, *cases], at)
    load = f"erase-{request_id}-{told[:16]}"
    token = {"async_insert": 0, "insert_deduplicate": 1, "insert_deduplication_token": f"erase:{mark}"}
    client.insert(
        "ref_erasures",
        [[key, version, at, request_id] for key, version in sorted(keys.items())],
        column_names=["person_key", "key_version", "erased_at", "request_id"],
        settings=token,
    )
    if cases:
        mark = mark_of(cases, at)
        client.insert(
            "ref_erased_cases",
            [[case_id, at, request_id] for case_id in cases],
            column_names=["case_id", "erased_at", "request_id"],
            settings=token | {"insert_deduplication_token": f"erase-cases:{mark}"},
        )
    client.insert(
        "ref_loads",
        [[kind, load, len(keys), "", now] for kind in (ERASURES, "persons", "staff")],
        column_names=["kind", "load_id", "rows", "digest", "loaded_at"],
        settings=token | {"insert_deduplication_token": f"erase:{told}"},
    )
    listed = client.query(
        "SELECT count() FROM (SELECT person_key FROM ref_erasures "
        "WHERE has({keys:Array(String)}, person_key) GROUP BY person_key "
        "HAVING toUnixTimestamp64Milli(max(erased_at)) >= {at:Int64})",
        {"keys": sorted(keys), "at": _ms(at)},
    ).result_rows[0][0]
    if listed != len(keys):
        raise PermanentError(
            f"the list of erased persons holds {listed} of {len(keys)} pseudonyms: nothing was deleted"
        )


def mark_of(keys: Collection[str], at: datetime) -> str:
    """Names what is put on the list. A request that is completed later, by another number, has the same id:
    under a token of the id alone the store would take the second list for a repetition of the first."""
    return hashlib.sha256("\n".join([at.isoformat(), *sorted(keys)]).encode()).hexdigest()


def erase(
    client: Client,
    database: str,
    keys: Mapping[str, int],
    *,
    request_id: str,
    at: datetime,
    masks: Sequence[str] = (),
    settle: Callable[[], None] = lambda: None,
    seconds: float = 3_600.0,
) -> Evidence:
    """Erase whoever `keys` (pseudonym -> key version) belong to. Repeating it is safe.

    at : what was received until then goes. masks : of the person's phones, as `mask_phone` gives them; rows
    that show one afterwards are counted, not erased. settle : called once the list is there and before
    anything is deleted, to wait until workers hold it. seconds : patience for the mutations.
    Raises UnavailableError when they take longer (they go on by themselves), PermanentError when one fails or
    when the list does not hold the person.
    """
    started = time.monotonic()
    evidence = Evidence(request_id, at.isoformat(), len(keys))
    names = sorted(keys)
    cases = cases_of(client, names)
    entomb(client, keys, request_id, at, cases)
    settle()
    # what workers wrote until they knew the person: from now on they write nothing that names it
    if late := sorted({*cases_of(client, names)} - {*cases}):
        entomb(client, keys, request_id, at, late)
        settle()
    _forget_words(client, database, dict.fromkeys([*cases, *late], at), evidence, deadline=started + seconds)
    _forget_persons(client, database, names, evidence, deadline=started + seconds)
    if masks:
        evidence.doubtful = {table: rows for table, rows in scan(client, database, masks).items() if rows}
    evidence.seconds = round(time.monotonic() - started, 3)
    return evidence


def linked_rows(client: Client, version: int, days: int) -> dict[str, int]:
    """Rows received within `days` that are linked to persons by pseudonyms of a key version, by table.

    A worker's key links to a post, not to a person: only what is shaped as a pseudonym counts.
    """
    return {
        table: int(
            client.query(
                f"SELECT count() FROM {table} WHERE key_version = {{version:UInt16}} "
                "AND ingested_at > now() - toIntervalDay({days:UInt32}) "
                "AND (match(ifNull(actor_key, ''), '^[0-9a-f]{64}$') "
                "OR notEmpty(persons) OR notEmpty(person_facts))",
                {"version": version, "days": days},
            ).result_rows[0][0]
        )
        for table in _EVENT_TABLES
    }


def forget_version(client: Client, database: str, version: int, *, seconds: float = 3_600.0) -> None:
    """Remove residents under a key version, and the links of staff. Repeating it is safe.

    Raises as `erase`, when it returns nothing is left.
    """
    statements = {
        "ref_persons": "ALTER TABLE ref_persons DELETE WHERE key_version = {version:UInt16}",
        "ref_staff": "ALTER TABLE ref_staff UPDATE person_key = NULL, key_version = NULL "
        "WHERE key_version = {version:UInt16}",
    }
    _mutate(client, database, statements, {"version": version}, time.monotonic() + seconds)


def reapply(
    client: Client,
    database: str,
    erasures: Collection[Erasure],
    *,
    settle: Callable[[], None] = lambda: None,
    seconds: float = 3_600.0,
) -> Evidence:
    """Erase again whom the tables hold although they were erased: they are of a backup. Repeating it is safe.

    Left alone is who is on the list of the database and of whom it holds nothing of before the erasure: what
    was received later is lawful. Parameters and errors as `erase`.
    """
    started, now = time.monotonic(), utc_now()
    evidence = Evidence(f"R{now:%Y%m%d-%H%M%S}", now.isoformat(), 0)
    known = {erasure.person_key: erasure.erased_at for erasure in sorted(stored_erasures(client))}
    groups: dict[tuple[datetime, str], dict[str, int]] = {}
    for erasure in erasures:
        missing = known.get(erasure.person_key, erasure.erased_at - _ANY) < erasure.erased_at
        if missing or _holds_earlier(client, erasure):
            group = groups.setdefault((erasure.erased_at, erasure.request_id), {})
            group[erasure.person_key] = erasure.key_version
    cases: dict[str, datetime] = {}
    for (at, request_id), keys in sorted(groups.items()):
        found = cases_of(client, sorted(keys))
        entomb(client, keys, request_id, at, found)
        cases |= dict.fromkeys(found, at)  # of several erasures the last: they come in this order
    if groups:
        settle()
    names = sorted({name for keys in groups.values() for name in keys})
    evidence.keys = len(names)
    _forget_words(client, database, cases, evidence, deadline=started + seconds)
    for begin in range(0, max(len(names), 1), _KEYS_AT_ONCE):
        some = names[begin : begin + _KEYS_AT_ONCE]
        _forget_persons(client, database, some, evidence, deadline=started + seconds)
    evidence.seconds = round(time.monotonic() - started, 3)
    return evidence


def cases_of(client: Client, names: Sequence[str]) -> list[str]:
    """Cases that the holders of these pseudonyms reported, at first or again, or that concern them."""
    if not names:
        return []
    mine = f"({_REPORTER} AND event_type IN ('DISCOVERED', 'REPORTED')) OR {_CONCERNED}"
    each = " UNION ALL ".join(f"SELECT case_id FROM {table} WHERE {mine}" for table in _EVENT_TABLES)
    found = client.query(
        f"""
        WITH mine AS ({each})
        SELECT DISTINCT case_id FROM (
            SELECT case_id FROM mine
            UNION ALL SELECT case_id FROM duplicates WHERE original_case_id IN mine
        ) ORDER BY case_id""",
        {"keys": list(names)},
    )
    return [case_id for (case_id,) in found.result_rows]


def _ms(at: datetime) -> int:
    return int(at.timestamp()) * 1_000 + at.microsecond // 1_000


def _holds_earlier(client: Client, erasure: Erasure) -> bool:
    """Whether something is stored that was received until the erasure."""
    holds = "position(toString(tuple(*)), {key:String}) > 0"
    received = "toUnixTimestamp64Milli(ingested_at) <= {at:Int64}"
    each = " UNION ALL ".join(
        [
            *(f"SELECT count() AS n FROM {table} WHERE {received} AND {holds}" for table in _RECEIVED),
            *(f"SELECT count() AS n FROM {table} WHERE {holds}" for table in ("ref_persons", "ref_staff")),
        ]
    )
    parameters = {"key": erasure.person_key, "at": _ms(erasure.erased_at)}
    return bool(client.query(f"SELECT sum(n) FROM ({each})", parameters).result_rows[0][0])


def _forget_words(
    client: Client, database: str, cases: Mapping[str, datetime], evidence: Evidence, *, deadline: float
) -> None:
    """Take texts and places from all events of these cases (case → until when they were received); the
    evidence tells what was there and is left. Before `_forget_persons`: what is cut short finds its cases by
    the pseudonyms again."""
    evidence.cases += len(cases)
    names = sorted(cases)
    nothing = ", ".join(f"{name} = NULL" for name in WORDS)
    for begin in range(0, len(names), _KEYS_AT_ONCE):
        some = names[begin : begin + _KEYS_AT_ONCE]
        told = {"cases": some, "ats": [_ms(cases[name]) for name in some]}
        found = _told_of(client, told)
        statements = {table: f"ALTER TABLE {table} UPDATE {nothing} WHERE {_TOLD_OF}" for table in found}
        _note(evidence, _mutate(client, database, statements, told, deadline))
        _add(evidence.words, found)
        _add(evidence.left, _told_of(client, told))


def _forget_persons(
    client: Client, database: str, names: Sequence[str], evidence: Evidence, *, deadline: float
) -> None:
    """Rewrite every row that holds one of these, few, pseudonyms; the evidence tells what was there and is
    left."""
    found = scan(client, database, names)
    statements = _mutations(client, found)
    _note(evidence, _mutate(client, database, statements, {"keys": list(names)}, deadline))
    left = scan(client, database, names)
    _add(evidence.found, found)
    _add(evidence.left, left)
    evidence.tables_scanned = sorted(evidence.left)


def _told_of(client: Client, cases: dict[str, Any]) -> dict[str, int]:
    """Rows with texts or a place, by table that has any. cases : parameters of _TOLD_OF."""
    counted = {
        table: client.query(f"SELECT count() FROM {table} WHERE {_TOLD_OF}", cases).result_rows[0][0]
        for table in _EVENT_TABLES
    }
    return {table: int(rows) for table, rows in counted.items() if rows}


def _note(evidence: Evidence, mutations: Mapping[str, Sequence[str]]) -> None:
    for table, ids in mutations.items():
        evidence.mutations[table] = sorted({*evidence.mutations.get(table, ()), *ids})


def _add(counts: dict[str, int], more: Mapping[str, int]) -> None:
    for table, rows in more.items():
        counts[table] = counts.get(table, 0) + rows


def _mutations(client: Client, found: Mapping[str, int]) -> dict[str, str]:
    """The statement of each table that holds something."""
    statements = {
        table: f"ALTER TABLE {table} UPDATE "
        + ", ".join(
            [
                *(f"{name} = if({_REPORTER}, NULL, {name})" for name in ("actor_name", "actor_phone")),
                *(f"{name} = NULL" for name in PERSONAL),
                f"persons = arrayFilter(p -> NOT {_MINE % 'p.key'}, persons)",
                f"person_facts = arrayFilter(p -> NOT {_MINE % 'p.key'}, person_facts)",
                "photos = []",
                f"actor_key = if({_REPORTER}, NULL, actor_key)",
            ]
        )
        + f" WHERE {_REPORTER} OR {_CONCERNED}"
        for table in _EVENT_TABLES
    }
    statements |= {
        "ref_persons": "ALTER TABLE ref_persons DELETE WHERE " + _MINE % "person_key",
        "ref_staff": "ALTER TABLE ref_staff UPDATE person_key = NULL, key_version = NULL WHERE "
        + _MINE % "person_key",
    }
    mine = "arrayExists(k -> position(toString(tuple({})), k) > 0, {{keys:Array(String)}})"
    for table in found.keys() - statements.keys():
        columns = client.query(f"SELECT * FROM {table} LIMIT 0").column_names
        statements[table] = f"ALTER TABLE {table} DELETE WHERE " + mine.format(", ".join(columns))
    return {table: statements[table] for table, rows in found.items() if rows}


def _mutate(
    client: Client,
    database: str,
    statements: Mapping[str, str],
    parameters: Mapping[str, Any],
    deadline: float,
) -> dict[str, list[str]]:
    """Change these tables (table → statement) and wait for it; ids of the mutations by table. Errors as of
    `erase`.

    Others may be at work on the same tables, as the nightly run is: a mutation is one of these if it was not
    there before and holds the first of the names that the statements are about.
    """
    known = {(table, mutation) for table, mutation, *_ in _mutations_of(client, database, statements)}
    for statement in statements.values():
        client.command(statement, parameters=dict(parameters), settings={"mutations_sync": 0})
    named = next((str(v[0]) for v in parameters.values() if isinstance(v, list) and v), "")
    while True:
        rows = [
            (table, mutation, done, reason)
            for table, mutation, command, done, reason in _mutations_of(client, database, statements)
            if (table, mutation) not in known and named in command
        ]
        failed = [f"{table}: {reason}" for table, _, _, reason in rows if reason]
        if failed:
            raise PermanentError(f"an erasure failed: {failed[0][:300]}")
        # a replica learns of a mutation with a delay: none seen is none done
        if {table for table, *_ in rows} == statements.keys() and all(done for _, _, done, _ in rows):
            found: dict[str, list[str]] = {}
            for table, mutation, _, _ in rows:
                found.setdefault(table, []).append(mutation)
            return found
        if time.monotonic() > deadline:
            raise UnavailableError(
                "the deletion is still under way in ClickHouse; run the command again later"
            )
        time.sleep(_POLL_SECONDS)


def _mutations_of(client: Client, database: str, tables: Collection[str]) -> Sequence[Sequence[Any]]:
    """table, id, command, whether it is done, and why it failed, of every mutation of these tables."""
    return client.query(
        "SELECT table, mutation_id, command, is_done, latest_fail_reason FROM system.mutations "
        "WHERE database = {database:String} AND table IN {tables:Array(String)} ORDER BY table, mutation_id",
        {"database": database, "tables": list(tables)},
    ).result_rows
