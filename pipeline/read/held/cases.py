"""The newest state of every case, in columns: what a cohort and a flow of now are counted from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.frames import RANK
from pipeline.read.held.columns import BESIDE, NEVER, Columns, Ints, Window, Words
from pipeline.reference.hash_index import HashIndex
from pipeline.store.kpi_views import (
    COHORT_RATES,
    COUNTED,
    COUNTED_SUMS,
    DURATIONS,
    DURATIONS_MS,
    FACTS,
    PERCENTILES,
)

Numbers = NDArray[np.uint32]
Rows = Ints | slice

#: A duration that is unknown or negative.
_NONE: Final = 2**32 - 1
_SUMS: Final = COUNTED_SUMS | {"illegal_events": "illegal_count", "late_events": "late_count"}
#: What makes cases alike, as one number of 32 bits: facts and moments have a bit each, every count two, which
#: hold it up to _MOST.
_BITS: Final = {
    name: bit for bit, name in enumerate((*FACTS, "limit_passed", "response_limit_passed", "citizen"))
}
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


def _query() -> str:
    """SQL query: the rows of the parts {parts}, in no order."""
    facts = [f"bitShiftLeft(toUInt32({name}), {_BITS[name]})" for name in FACTS]
    counts = [
        f"bitShiftLeft(toUInt32(least({sql}, {_MOST})), {_DIGITS[name]})" for name, sql in _SUMS.items()
    ]
    columns = {
        "hi": "xxh3(case_id)",
        "lo": "cityHash64(case_id)",
        "part": "_part",
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
        # of the cases that may be orphans: their events are asked for by name
        "orphan": f"if(ifNull(toUnixTimestamp64Milli(first_event_at) < least(ifNull(toUnixTimestamp64Milli("
        f"reported_at), {NEVER}), ifNull(toUnixTimestamp64Milli(resent_at), {NEVER})), 1), case_id, '')",
        "step_at": "if(is_admitted, arrayMap(t -> toUnixTimestamp64Milli(t), legal_times), [])",
        "step_rank": "if(is_admitted, legal_ranks, [])",
        "step_rating": "if(is_admitted, legal_ratings, [])",
    }
    told = ", ".join(f"{sql} AS told_{name}" for name, sql in columns.items())
    made = ", ".join(f"{sql} AS {name}" for name, sql in (FACTS | DURATIONS_MS).items())
    return f"""
        SELECT {told}
        FROM (SELECT *, _part, {made} FROM cases WHERE _part IN {{parts:Array(String)}})"""


CASES: Final = _query()

_DTYPES: Final = {
    "version": np.uint32, "admitted": np.bool_, "alike": np.uint32, "has_more": np.bool_,
    **dict.fromkeys(_TIMES, np.int64),
    **dict.fromkeys(_SUMS, np.uint32),
    **dict.fromkeys(DURATIONS, np.uint32),
    "flow_alike": np.uint16, "flow_has_more": np.bool_,
    **dict.fromkeys(WORDS, np.uint32),
    "start": np.int64, "steps": np.uint32,
}  # fmt: skip
#: Below it nothing is left behind.
_FEW_STEPS: Final = 100_000
_STEPS: Final = {"at": np.int64, "rank": np.uint8, "rating": np.int8}


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
        stays = np.ones(len(numbers), bool)
        stays[known] = told["version"].to_numpy()[known] >= self._rows["version"][numbers[known]]
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
        self._index.insert(hi[~known], lo[~known], added)
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

    def has_later_events(self, as_of: int) -> bool:
        """Whether an admitted case has an event after the instant: then its state was another one."""
        return bool((self._rows["last_event"][self._rows["admitted"]] > as_of).any())

    def orphans(self, as_of: int) -> list[str]:
        """Cases that have events but, as of the instant, neither a report nor a resend of one."""
        if not self._orphans:
            return []
        rows = np.fromiter(self._orphans, np.int64, len(self._orphans))
        held = self._rows
        without = (held["first_event"][rows] <= as_of) & (
            np.minimum(held["reported"][rows], held["resent"][rows]) > as_of
        )
        return [self._orphans[row] for row in rows[without].tolist()]

    # --- cohort
    def cohort(
        self, word: str, key_of: Callable[[str], str], citizens: Collection[str], window: Window
    ) -> pl.DataFrame:
        """What `kpi_views.cases_query("cohort", …)` gives, by the keys of a column of WORDS."""
        held, as_of = self._rows, window.as_of
        reported = held["reported"]
        inside = held["admitted"] & window.holds(reported) & (reported <= as_of)
        # all of it is no copy
        rows = slice(None) if inside.all() else np.flatnonzero(inside)
        keys, key = self._keys(word, key_of, rows)
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
        return _with_keys(found, keys, values).with_columns(
            *(
                pl.when(pl.col(whole) > 0).then(pl.col(part) / pl.col(whole)).alias(rate)
                for rate, (part, whole) in COHORT_RATES.items()
            )
        )

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
    def flow(self, word: str, key_of: Callable[[str], str], window: Window) -> pl.DataFrame:
        """What `kpi_views.cases_query("flow", …)` gives, by the keys of a column of WORDS."""
        held = self._rows
        # nothing lies after `as_of`: see `has_later_events`
        first, last = held["first_legal"], held["last_legal"]
        inside = held["admitted"] & (last >= window.from_) & (first < window.to)
        inside &= (held["reported"] < window.to) & (held["reported"] <= window.as_of)
        whole = inside & (first >= window.from_) & (last < window.to) & ~held["flow_has_more"]
        rows: Rows = slice(None) if whole.all() else np.flatnonzero(whole)
        keys, key = self._keys(word, key_of, rows)
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
        key_of_partly = self._keys(word, key_of, partly)[1]
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
        its_key = self._keys(word, key_of, row)[1]
        values["resolution_seconds"] = _together(
            [(key[once], at_once.astype(np.uint32)), (its_key[its_key > 0], seconds[its_key > 0])]
        )
        return _with_keys(found, keys, values).with_columns(
            closure_rate=pl.when(pl.col("cases") > 0).then(pl.col("closed") / pl.col("cases"))
        )

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

    def _keys(self, word: str, key_of: Callable[[str], str], rows: Rows) -> tuple[Sequence[str], Numbers]:
        """(keys, number of the key of each row), 0: it has none."""
        keys, of_word = self._words[WORDS[word]].keyed(key_of)
        return keys, of_word[self._rows[word][rows]]


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
