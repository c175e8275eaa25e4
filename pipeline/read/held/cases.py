"""The newest state of every case, in columns: what a cohort and a flow of now are counted from."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.frames import RANK
from pipeline.read.held.columns import BESIDE, NEVER, Columns, Ints, Window, Words
from pipeline.reference.hash_index import HashIndex
from pipeline.store.fold import ALL, HISTORY, prefix, states_of
from pipeline.store.kpi_views import (
    COHORT_RATES,
    COUNTED,
    COUNTED_SUMS,
    DURATIONS,
    DURATIONS_MS,
    FACTS,
    MOMENTS,
    PERCENTILES,
)

Numbers = NDArray[np.uint32]
Rows = Ints | slice

#: A duration that is unknown or negative.
_NONE: Final = 2**32 - 1
_SUMS: Final = COUNTED_SUMS | {"illegal_events": "illegal_count", "late_events": "late_count"}
#: What makes cases alike, as one number of 32 bits: facts and moments have a bit each, every count two, which
#: hold it up to _MOST.
_BITS: Final = {name: bit for bit, name in enumerate((*FACTS, *MOMENTS))}
_DIGITS: Final = {name: len(_BITS) + 2 * at for at, name in enumerate(_SUMS)}
_MOST: Final = 3
_KEY_SHIFT: Final = np.uint64(32)
#: Words of a case: column → what it is called where words are shared with reports.
WORDS: Final = {
    "grid_code": "grid", "matter_code": "matter", "category": "category", "department": "department",
    "channel": "channel",
}  # fmt: skip
_TIMES: Final = {
    "first_event": "first_event_at",
    "last_event": "last_event_at",
    "reported": "reported_at",
    "resent": "resent_at",
    "response_due": "response_due_at",
    "due": "due_at",
    "accepted": "accepted_at",
    "closed": "closed_at",
    "response_seconds_at": "first_response_at",
    "dispatch_seconds_at": "first_dispatched_at",
    "department_response_seconds_at": "first_signed_at",
    "first_legal": "arrayElementOrNull(legal_times, 1)",
    "last_legal": "arrayElementOrNull(legal_times, -1)",
}
#: Durations whose end is an instant of the case, in a flow; closures have an end each.
_ENDING: Final = tuple(name for name in DURATIONS if f"{name}_at" in _TIMES)
#: Counts of a flow: of legal events of a kind; ratings are those of any.
_FLOW_RANKS: Final = {
    "cases": RANK["REPORTED"],
    "voided": RANK["VOIDED"],
    "merged": RANK["MERGED"],
    "closed": RANK["CLOSED"],
}
_FLOW_COUNTS: Final = {name: f"countEqual(legal_ranks, {rank})" for name, rank in _FLOW_RANKS.items()} | {
    "ratings": "arrayCount(x -> x != 0, legal_ratings)"
}
#: What makes cases alike that lie in a flow's window with all their events: two bits for each count.
_FLOW_DIGITS: Final = {name: 2 * at for at, name in enumerate(_FLOW_COUNTS)}
_FLOW_RESPONDED: Final = 2 * len(_FLOW_DIGITS)


def _query(states: str, part: str) -> str:
    """SQL query: what is held of the cases that `states` gives, in no order.

    states : query of the columns ALL_OF of some states. part : SQL, the part that a state lies in.
    """
    facts = [f"bitShiftLeft(toUInt32({name}), {_BITS[name]})" for name in FACTS]
    counts = [
        f"bitShiftLeft(toUInt32(least({sql}, {_MOST})), {_DIGITS[name]})" for name, sql in _SUMS.items()
    ]
    columns = {
        "hi": "xxh3(case_id)",
        "lo": "cityHash64(case_id)",
        "part": part,
        "version": "version",
        "admitted": "is_admitted",
        "alike": " + ".join(facts + counts),
        "has_more": " OR ".join(f"({sql}) > {_MOST}" for sql in _SUMS.values()),
        **{name: f"ifNull(toUnixTimestamp64Milli({sql}), {NEVER})" for name, sql in _TIMES.items()},
        **{name: f"toUInt32({sql})" for name, sql in _SUMS.items()},
        **{
            name: f"if(ifNull({name}_ms, -1) < 0, {_NONE}, least(intDiv({name}_ms, 1000), {_NONE - 1}))"
            for name in DURATIONS
        },
        "flow_alike": " + ".join(
            f"bitShiftLeft(toUInt16(least({sql}, {_MOST})), {_FLOW_DIGITS[name]})"
            for name, sql in _FLOW_COUNTS.items()
        ),
        "flow_has_more": " OR ".join(f"{sql} > {_MOST}" for sql in _FLOW_COUNTS.values()),
        **{name: f"ifNull(toString({name}), '')" for name in WORDS},
        # of orphans: their events are asked for by name
        "orphan": "if(isNull(reported_at) AND isNull(resent_at), case_id, '')",
        "step_at": "if(is_admitted, arrayMap(t -> toUnixTimestamp64Milli(t), legal_times), [])",
        "step_rank": "if(is_admitted, legal_ranks, [])",
        "step_rating": "if(is_admitted, legal_ratings, [])",
    }
    told = ", ".join(f"{sql} AS told_{name}" for name, sql in columns.items())
    made = ", ".join(f"{sql} AS {name}" for name, sql in (FACTS | DURATIONS_MS).items())
    return f"SELECT {told} FROM (SELECT *, {made} FROM ({states}))"


#: The columns of a state that `_query` reads.
ALL_OF: Final = tuple(name for name in ALL if re.search(rf"\b{name}\b", _query("", "") + "version"))
#: Of the parts {parts}, one of {slices} slices.
CASES: Final = _query(
    f"SELECT {', '.join(ALL_OF)}, _part FROM cases WHERE _part IN {{parts:Array(String)}} "
    "AND xxh3(case_id) % {slices:UInt32} = {slice:UInt32}",
    "_part",
)
_AS_OF: Final = "{as_of:DateTime64(3, 'UTC')}"
_LATER: Final = f"SELECT case_id FROM cases WHERE last_event_at > {_AS_OF} AND first_event_at <= {_AS_OF}"
#: As of {as_of}, of the cases that have later events: of few of them.
CASES_AS_OF: Final = _query(
    states_of(
        prefix(
            f"""
            SELECT {", ".join(HISTORY)} FROM cases
            WHERE (case_id, version) IN (
                SELECT case_id, max(version) FROM cases WHERE case_id IN ({_LATER}) GROUP BY case_id
            )
            LIMIT 1 BY case_id""",
            _AS_OF,
        ),
        ALL_OF,
    ),
    "''",
)

_DTYPES: Final = {
    "version": np.uint32, "admitted": np.bool_, "alike": np.uint32, "has_more": np.bool_,
    **dict.fromkeys(_TIMES, np.int64),
    **dict.fromkeys(_SUMS, np.uint32),
    **dict.fromkeys(DURATIONS, np.uint32),
    "flow_alike": np.uint16, "flow_has_more": np.bool_,
    **dict.fromkeys(WORDS, np.uint32),
    "stored": np.int64, "start": np.int64, "steps": np.uint32,
}  # fmt: skip
#: Below it nothing is left behind.
_FEW_STEPS: Final = 100_000
_STEPS: Final = {"at": np.int64, "rank": np.uint8, "rating": np.int8}


class Counted(NamedTuple):
    """sums : counts by `number` of the key. values : duration → (number of the key, seconds), each (n,)."""

    sums: pl.DataFrame
    values: dict[str, tuple[Numbers, Numbers]]


class HeldCases:
    """words : vocabularies by name of WORDS; shared with the reports."""

    def __init__(self, words: Mapping[str, Words]) -> None:
        self._words = words
        self._index = HashIndex()
        self._rows = Columns(_DTYPES)
        #: The legal events of admitted cases, each case's together; what a newer state replaced stays until
        #: there is more of it than of the rest.
        self._steps = Columns(_STEPS)
        self._dead = 0
        self._orphans: dict[int, str] = {}
        #: Rows that are not counted.
        self._aside: Ints | None = None

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        return self._index.nbytes + self._rows.nbytes + self._steps.nbytes

    def take(self, told: pl.DataFrame, order: Mapping[str, int]) -> None:
        """Rows of `CASES`; of a case the greatest version stays, of equal ones the one stored last.

        order : number of the last insert of each part.
        """
        told = told.rename(lambda name: name.removeprefix("told_"))
        stored = told["part"].cast(pl.String).replace_strict(order, return_dtype=pl.Int64)
        told = (
            told.with_columns(stored.alias("stored"))
            .sort("version", "stored")
            .unique(["hi", "lo"], keep="last", maintain_order=True)
        )
        hi, lo = told["hi"].to_numpy(), told["lo"].to_numpy()
        numbers = self._index.find(hi, lo)
        known = numbers >= 0
        version, its_stored = told["version"].to_numpy()[known], told["stored"].to_numpy()[known]
        held, held_stored = self._rows["version"][numbers[known]], self._rows["stored"][numbers[known]]
        stays = np.ones(len(numbers), bool)
        stays[known] = (version > held) | ((version == held) & (its_stored >= held_stored))
        if not stays.all():
            told, hi, lo = told.filter(pl.Series(stays)), hi[stays], lo[stays]
            numbers, known = numbers[stays], known[stays]
        if not len(numbers):
            return
        rows = {name: told[name].to_numpy() for name in _DTYPES if name not in WORDS and name in told.columns}
        rows |= {name: self._words[word].numbers(told[name]) for name, word in WORDS.items()}
        rows["start"] = np.zeros(len(numbers), np.int64)
        rows["steps"] = told["step_rank"].list.len().to_numpy()
        self._dead += int(self._rows["steps"][numbers[known]].sum())
        self._rows.put(numbers[known], {name: values[known] for name, values in rows.items()})
        added = self._rows.add({name: values[~known] for name, values in rows.items()})
        self._index.insert(hi[~known], lo[~known])
        numbers[~known] = added
        self._take_steps(numbers, told)
        self._note_orphans(numbers, told["orphan"])

    def _take_steps(self, numbers: Ints, told: pl.DataFrame) -> None:
        counts = self._rows["steps"][numbers]
        first = len(self._steps)
        self._steps.add({name: told[f"step_{name}"].to_arrow().flatten().to_numpy() for name in _STEPS})
        self._rows["start"][numbers] = first + np.cumsum(counts, dtype=np.int64) - counts
        if self._dead > max(len(self._steps) // 2, _FEW_STEPS):
            self._leave_dead_steps()

    def _leave_dead_steps(self) -> None:
        kept = _spans(self._rows["start"], self._rows["steps"])
        rest = Columns(_STEPS)
        rest.add({name: self._steps[name][kept] for name in _STEPS})
        counts = self._rows["steps"].astype(np.int64)
        self._rows["start"][:] = np.cumsum(counts) - counts
        self._steps, self._dead = rest, 0

    def _note_orphans(self, numbers: Ints, case_ids: pl.Series) -> None:
        if self._orphans:
            for number in numbers.tolist():
                self._orphans.pop(number, None)
        for at in np.flatnonzero((case_ids != "").to_numpy()).tolist():
            self._orphans[int(numbers[at])] = case_ids[at]

    def later(self, as_of: int) -> Ints:
        """The admitted cases that have an event after the instant: then their state was another one."""
        return np.flatnonzero(self._rows["admitted"] & (self._rows["last_event"] > as_of))

    @contextlib.contextmanager
    def without(self, numbers: Ints, others: HeldCases | None) -> Iterator[None]:
        """Count neither these rows nor the cases that `others` holds while the context is open."""
        if others is not None:
            theirs = self._index.find(*others._index.keys())
            numbers = np.r_[numbers, theirs[theirs >= 0]]
        self._aside = numbers if len(numbers) else None
        try:
            yield
        finally:
            self._aside = None

    def _admitted(self) -> NDArray[np.bool_]:
        admitted = self._rows["admitted"]
        if self._aside is None:
            return admitted
        admitted = admitted.copy()
        admitted[self._aside] = False
        return admitted

    def orphans(self, as_of: int) -> list[str] | None:
        """Cases that have events but, as of the instant, neither a report nor a resend of one. None: there
        are some that have one since, whose names are not held."""
        held = self._rows
        known = np.minimum(held["reported"], held["resent"])
        if ((held["first_event"] <= as_of) & (known > as_of) & (known < NEVER)).any():
            return None
        rows = np.fromiter(self._orphans, np.int64, len(self._orphans))
        began = held["first_event"][rows] <= as_of
        return [self._orphans[row] for row in rows[began].tolist()]

    # --- cohort
    def cohort(self, word: str, key_of_word: Numbers, citizens: Collection[str], window: Window) -> Counted:
        """The cases reported in the window. word : of WORDS. key_of_word : number of the key of each word."""
        held, as_of = self._rows, window.as_of
        reported = held["reported"]
        inside = self._admitted() & window.holds(reported) & (reported <= as_of)
        # all of it is no copy
        rows = slice(None) if inside.all() else np.flatnonzero(inside)
        key = key_of_word[held[word][rows]]
        _, citizen = self._words["channel"].keyed(lambda channel: "citizen" if channel in citizens else "")
        alike = held["alike"][rows] | (held["due"][rows] <= as_of).astype(np.uint32) << _BITS["limit_passed"]
        alike |= (held["response_due"][rows] <= as_of).astype(np.uint32) << _BITS["response_limit_passed"]
        alike |= citizen[held["channel"][rows]] << np.uint32(_BITS["citizen"])
        counted = (alike & (1 << _BITS["counted"])) != 0
        # cases are alike in a few hundred ways: conditions are worked out once for each
        ways = pl.DataFrame({"way": key.astype(np.uint64) << _KEY_SHIFT | alike}).group_by("way").len("n")
        way = ways["way"].to_numpy()
        ways = ways.with_columns(
            pl.Series("number", (way >> _KEY_SHIFT).astype(np.uint32)),
            *(pl.Series(name, (way >> np.uint64(bit)) & np.uint64(1) == 1) for name, bit in _BITS.items()),
            *(pl.Series(name, (way >> np.uint64(at)) & np.uint64(_MOST)) for name, at in _DIGITS.items()),
        ).filter(pl.col("number") > 0)
        n = pl.col("n")
        found = ways.group_by("number").agg(
            n.sum().alias("admitted_cases"),
            n.filter("void_now").sum().alias("voided"),
            n.filter("merged_now").sum().alias("merged"),
            n.filter("counted").sum().alias("cases"),
            *(
                n.filter(pl.col("counted") & pl.sql_expr(sql)).sum().alias(name)
                for name, sql in COUNTED.items()
            ),
            *((n * pl.col(name)).filter("counted").sum().alias(name) for name in COUNTED_SUMS),
            *((n * pl.col(name)).sum().alias(name) for name in _SUMS if name not in COUNTED_SUMS),
        )
        found = self._with_more(found, rows, key, counted)
        values = {}
        for name in DURATIONS:
            of_case = held[name][rows]
            known = counted & (of_case != _NONE) & (key > 0)
            values[name] = (key[known], of_case[known])
        return Counted(found, values)

    def _with_more(
        self, found: pl.DataFrame, rows: Rows, key: Numbers, counted: NDArray[np.bool_]
    ) -> pl.DataFrame:
        """With what counts of cases are above _MOST."""
        at = np.flatnonzero(self._rows["has_more"][rows] & (key > 0))
        if not len(at):
            return found
        more = {}
        for name in _SUMS:
            over = np.maximum(self._rows[name][rows][at].astype(np.int64) - _MOST, 0)
            more[f"more_{name}"] = over * counted[at] if name in COUNTED_SUMS else over
        sums = pl.DataFrame({"number": key[at], **more}).group_by("number").sum()
        return found.join(sums, on="number", how="left").select(
            pl.all().exclude(*more, *_SUMS),
            *(pl.col(name) + pl.col(f"more_{name}").fill_null(0) for name in _SUMS),
        )

    # --- flow
    def flow(self, word: str, key_of_word: Numbers, window: Window) -> Counted:
        """What happened in the window. word : of WORDS. key_of_word : number of the key of each word."""
        held = self._rows
        # nothing lies after `as_of`: see `later`
        first, last = held["first_legal"], held["last_legal"]
        inside = self._admitted() & (last >= window.from_) & (first < window.to)
        inside &= (held["reported"] < window.to) & (held["reported"] <= window.as_of)
        whole = inside & (first >= window.from_) & (last < window.to) & ~held["flow_has_more"]
        rows: Rows = slice(None) if whole.all() else np.flatnonzero(whole)
        key = key_of_word[held[word][rows]]
        responded = window.holds(held["response_seconds_at"][rows]).astype(np.uint16)
        alike = held["flow_alike"][rows] | responded << np.uint16(_FLOW_RESPONDED)
        ways = pl.DataFrame({"way": key.astype(np.uint64) << _KEY_SHIFT | alike}).group_by("way").len("n")
        way, n = ways["way"].to_numpy(), ways["n"].to_numpy().astype(np.int64)
        counts = {"number": (way >> _KEY_SHIFT).astype(np.uint32)} | {
            name: n * (way >> np.uint64(at) & np.uint64(_MOST)).astype(np.int64)
            for name, at in (_FLOW_DIGITS | {"responded": _FLOW_RESPONDED}).items()
        }
        # what lies outside with a part of a case takes a look at each of its events
        partly, of_partly = self._partly(np.flatnonzero(inside & ~whole), window)
        key_of_partly = key_of_word[held[word][partly]]
        found = pl.concat([pl.DataFrame(counts), pl.DataFrame({"number": key_of_partly} | of_partly)])
        found = found.filter(pl.col("number") > 0).group_by("number").sum()

        values = {}
        for name in _ENDING:
            told = []
            for its, its_key in ((rows, key), (partly, key_of_partly)):
                seconds = held[name][its]
                known = window.holds(held[f"{name}_at"][its]) & (seconds != _NONE) & (its_key > 0)
                told.append((its_key[known], seconds[known]))
            values[name] = _together(told)
        closed = held["flow_alike"][rows] >> np.uint16(_FLOW_DIGITS["closed"]) & np.uint16(_MOST)
        once = (closed == 1) & (key > 0)
        at_once = (held["closed"][rows][once] - held["accepted"][rows][once]) // 1_000
        others = np.r_[np.arange(len(held))[rows][closed > 1], partly]
        row, seconds = self._closures(others, window)
        its_key = key_of_word[held[word][row]]
        values["resolution_seconds"] = _together(
            [(key[once], at_once.astype(np.uint32)), (its_key[its_key > 0], seconds[its_key > 0])]
        )
        return Counted(found, values)

    def _partly(self, rows: Ints, window: Window) -> tuple[Ints, dict[str, Ints]]:
        """(those of `rows` that have a legal event in the window, what of each lies in it by count)."""
        held = self._rows
        its = np.repeat(np.arange(len(rows)), held["steps"][rows])
        steps = _spans(held["start"][rows], held["steps"][rows])
        inside = window.holds(self._steps["at"][steps])
        steps, its = steps[inside], its[inside]
        rank = self._steps["rank"][steps]
        counted = {name: its[rank == number] for name, number in _FLOW_RANKS.items()}
        counted["ratings"] = its[self._steps["rating"][steps] != 0]
        touched = np.bincount(its, minlength=len(rows)) > 0
        counts = {
            name: np.bincount(which, minlength=len(rows))[touched].astype(np.int64)
            for name, which in counted.items()
        }
        rows = rows[touched]
        counts["responded"] = window.holds(held["response_seconds_at"][rows]).astype(np.int64)
        return rows, counts

    def _closures(self, rows: Ints, window: Window) -> tuple[Ints, Numbers]:
        """(row, seconds) of every closure of `rows` in the window: whole seconds since it was accepted."""
        its = np.repeat(rows, self._rows["steps"][rows])
        steps = _spans(self._rows["start"][rows], self._rows["steps"][rows])
        at = self._steps["at"][steps]
        inside = (self._steps["rank"][steps] == RANK["CLOSED"]) & window.holds(at)
        its = its[inside]
        return its, ((at[inside] - self._rows["accepted"][its]) // 1_000).astype(np.uint32)


def rows_of(view: str, counted: Sequence[Counted], keys: Sequence[str]) -> pl.DataFrame:
    """What `kpi_views.cases_query` gives for a view, of cases that were counted apart. keys : by number."""
    sums = counted[0].sums
    if len(counted) > 1:
        sums = (
            pl.concat([each.sums.cast(pl.Int64) for each in counted], how="diagonal").group_by("number").sum()
        )
    values = {name: _together([each.values[name] for each in counted]) for name in DURATIONS}
    rates = COHORT_RATES if view == "cohort" else {"closure_rate": ("closed", "cases")}
    return _with_keys(sums, keys, values).with_columns(
        pl.when(pl.col(whole) > 0).then(pl.col(part) / pl.col(whole)).alias(rate)
        for rate, (part, whole) in rates.items()
    )


def _spans(start: NDArray[np.int64], steps: NDArray[np.uint32]) -> Ints:
    """Every number from `start` on, `steps` of each."""
    steps = steps.astype(np.int64)
    return np.repeat(start - np.cumsum(steps) + steps, steps) + np.arange(int(steps.sum()))


def _together(told: Sequence[tuple[Numbers, Numbers]]) -> tuple[Numbers, Numbers]:
    """(key, value) of several, one after the other; no copy where only the first has any."""
    if not any(len(key) for key, _ in told[1:]):
        return told[0]
    return np.concatenate([key for key, _ in told]), np.concatenate([value for _, value in told])


def _ordered(alone: bool, values: tuple[Numbers, Numbers]) -> NDArray[Any]:
    """(n,) values sorted within their key, after it in the upper half of 64 bits unless it is `alone`."""
    key, value = values
    return np.sort(value) if alone else np.sort((key.astype(np.uint64) << np.uint64(32)) | value)


def _with_keys(
    found: pl.DataFrame, keys: Sequence[str], values: Mapping[str, tuple[Numbers, Numbers]]
) -> pl.DataFrame:
    """With the word of each key and the percentiles of its values.

    found : {number, …}. values : name → (number of the key, value), each (n,).
    """
    number = found["number"].to_numpy()
    alone = len(keys) <= 2  # one key beside the empty one: its values are all
    percentiles = {}
    ordering = BESIDE.map(partial(_ordered, alone), values.values())
    for (name, (key, _)), ordered in zip(values.items(), ordering, strict=True):
        count = np.bincount(key, minlength=len(keys))
        first = (np.cumsum(count) - count)[number]
        count = count[number]
        for p in PERCENTILES:
            place = np.minimum(first + (p * count + 99) // 100 - 1, len(ordered) - 1)
            element = ordered[place].astype(np.uint32).astype(np.int64) if len(ordered) else place
            percentiles[f"{name}_p{p}"] = pl.Series(element).set(pl.Series(count == 0), None)
    words = pl.Series("key", [keys[at] for at in number.tolist()], dtype=pl.String)
    return found.drop("number").with_columns(words, pl.lit(1).alias("has_cases"), **percentiles)
