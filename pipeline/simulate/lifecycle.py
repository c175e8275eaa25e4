"""From reports to lifecycles: which steps a case takes, when, and where it stops.

Every case walks down one table of steps in order; a mask says which of them it takes, a gap how long each
takes. Whole districts are computed as arrays of (cases, steps). The order of the table is legal in the state
machine of the domain, whatever optional steps are taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from pipeline.simulate.scene import Floats, Ints, Scene

Bools = npt.NDArray[np.bool_]

#: name, event type, share of the response limit and of the resolution limit that the step takes (median),
#: fixed hours that it takes beside, who acts.
_STEPS: Final = (
    ("discovered", "DISCOVERED", 0, 0, 0, "reporter"),
    ("reported", "REPORTED", 0, 0, 0, "reporter"),
    ("accepted", "ACCEPTED", 0.08, 0, 0, "clerk"),
    ("merged_in_error", "MERGED", 0.05, 0, 0, "clerk"),
    ("unmerged", "UNMERGED", 0.05, 0, 0, "clerk"),
    ("dispatched", "DISPATCHED", 0.09, 0, 0, "clerk"),
    ("signed_wrongly", "SIGNED", 0.10, 0, 0, "department"),
    ("returned", "RETURNED", 0.10, 0, 0, "department"),
    ("dispatched_again", "DISPATCHED", 0.08, 0, 0, "clerk"),
    ("signed", "SIGNED", 0.18, 0, 0, "department"),
    ("arrived", "ARRIVED", 0, 0.03, 0, "department"),
    ("handling", "HANDLING", 0, 0.04, 0, "handler"),
    ("escalated", "ESCALATED", 0, 0.15, 0, "leader"),
    ("dispatched_up", "DISPATCHED", 0.10, 0, 0, "clerk"),
    ("signed_up", "SIGNED", 0.15, 0, 0, "department"),
    ("extended", "EXTENDED", 0, 0.15, 0, "clerk"),
    ("handling_up", "HANDLING", 0, 0.06, 0, "handler"),
    ("resolved", "RESOLVED", 0, 0.18, 0, "handler"),
    ("rework", "REWORK", 0, 0.03, 0, "clerk"),
    ("handling_rework", "HANDLING", 0, 0.05, 0, "handler"),
    ("resolved_rework", "RESOLVED", 0, 0.08, 0, "handler"),
    ("closed", "CLOSED", 0, 0.04, 0, "clerk"),
    ("signed_late", "SIGNED", 0, 0, 0.4, "department"),
    ("feedback", "FEEDBACK", 0, 0, 16.0, "reporter"),
    ("reopened", "REOPENED", 0, 0, 10.0, "clerk"),
    ("accepted_anew", "ACCEPTED", 0.05, 0, 0, "clerk"),
    ("dispatched_anew", "DISPATCHED", 0.05, 0, 0, "clerk"),
    ("signed_anew", "SIGNED", 0.10, 0, 0, "department"),
    ("handling_anew", "HANDLING", 0, 0.05, 0, "handler"),
    ("resolved_anew", "RESOLVED", 0, 0.12, 0, "handler"),
    ("closed_anew", "CLOSED", 0, 0.03, 0, "clerk"),
    ("feedback_anew", "FEEDBACK", 0, 0, 20.0, "reporter"),
    ("archived", "ARCHIVED", 0, 0, 0, "system"),
    ("merged", "MERGED", 0.20, 0, 0, "clerk"),
    ("voided", "VOIDED", 0.30, 0, 0, "clerk"),
)  # fmt: skip
STEP: Final = {step[0]: number for number, step in enumerate(_STEPS)}
EVENT_TYPE: Final = pl.Series([step[1] for step in _STEPS])
ACTOR: Final = pl.Series([step[5] for step in _STEPS])

_ARCHIVE_MS: Final = 7 * 24 * 3_600_000
_LEAST_GAP_MS: Final = 2_000
_MAIN: Final = ("reported", "accepted", "dispatched", "signed", "handling", "resolved", "closed")
_ANEW: Final = (
    "reopened", "accepted_anew", "dispatched_anew", "signed_anew", "handling_anew", "resolved_anew",
    "closed_anew",
)  # fmt: skip
#: A case that is dropped half-way stops behind one of these, all before its closure.
_STOPS: Final = ("reported", "accepted", "dispatched", "signed", "handling", "resolved")
#: How often behind each of them but the first, of those that are accepted.
_STOP_SHARES: Final = (0.11, 0.13, 0.25, 0.38, 0.13)
#: Whoever takes one of these has responded.
_RESPONSES: Final = ("SIGNED", "ARRIVED", "HANDLING", "RESOLVED")

#: What becomes of a case: closed and open ones count, merged and voided do not; natural ones end as they may.
CLOSED, OPEN, MERGED, VOIDED, NATURAL = range(5)


@dataclass(frozen=True)
class Rates:
    """Shares of cases that take an optional step (assumed; near what other cities publish)."""

    discovered: float = 0.25  # of staff reports
    self_handled: float = 0.30  # of staff reports
    arrived: float = 0.35
    returned: float = 0.03
    extended: float = 0.008
    escalated: float = 0.006
    rework: float = 0.01
    reopened: float = 0.006
    merged_in_error: float = 0.003
    signed_late: float = 0.002  # a second sign-in behind the closure: illegal, stored, moves nothing
    feedback: float = 0.35
    never_accepted: float = 0.10  # of open cases


@dataclass(frozen=True)
class Lives:
    """mask, at : (cases, steps), whether a step is taken and when (unix ms); the others are (cases,)."""

    mask: Bools
    at: Ints
    self_handled: Bools
    rating: Ints
    rating_anew: Ints
    accepted_at: Ints

    def closed(self) -> Bools:
        """Whether the case is closed, fed back or archived once all its steps are known."""
        once = self.mask[:, STEP["closed"]]
        again = self.mask[:, STEP["reopened"]]
        closed: Bools = (once & ~again) | self.mask[:, STEP["closed_anew"]]
        return closed

    def responded(self) -> Bools:
        """Whether somebody has signed for the case or worked on it once all its steps are known."""
        return np.asarray(self.mask[:, EVENT_TYPE.is_in(_RESPONSES).to_numpy()].any(axis=1))


def _choose_steps(
    rng: np.random.Generator, frame: pl.DataFrame, scene: Scene, rates: Rates
) -> tuple[Bools, Bools]:
    """The full life of every case, as if nothing stopped it: mask (n, steps) and self_handled (n,)."""
    count = len(frame)
    staff = frame["channel"].replace_strict(scene.matters.channel_kinds).eq("staff").to_numpy()
    mask = np.zeros((count, len(_STEPS)), dtype=np.bool_)

    def take(name: str, where: Bools | bool) -> None:
        mask[:, STEP[name]] |= where

    def some(share: float) -> Bools:
        drawn: Bools = rng.random(count) < share
        return drawn

    own = staff & some(rates.self_handled)
    take("discovered", staff & some(rates.discovered))
    for name in _MAIN:
        take(name, name not in {"dispatched", "signed"})
    take("dispatched", ~own)
    take("signed", ~own)
    wrong = ~own & some(rates.merged_in_error)
    take("merged_in_error", wrong)
    take("unmerged", wrong)
    back = ~own & some(rates.returned)
    take("returned", back)
    take("dispatched_again", back)
    take("signed_wrongly", back & some(0.3))
    take("arrived", ~own & some(rates.arrived))
    up = ~own & some(rates.escalated)
    for name in ("escalated", "dispatched_up", "signed_up", "handling_up"):
        take(name, up)
    longer = ~own & some(rates.extended)
    take("extended", longer)
    again = some(rates.rework)
    for name in ("rework", "handling_rework", "resolved_rework"):
        take(name, again)
    reopened = some(rates.reopened)
    for name in _ANEW:
        take(name, reopened)
    take("signed_late", ~own & ~reopened & some(rates.signed_late))
    take("feedback", some(rates.feedback) | reopened)
    take("feedback_anew", reopened & some(0.8))
    take("archived", True)
    return mask, own


def _stop(rng: np.random.Generator, mask: Bools, fate: Ints, rates: Rates, *, all_responded: bool) -> None:
    """Cut the lives of open, merged and voided cases behind a step, in place; add the step that ends them."""
    count = len(fate)
    stops = np.array([STEP[name] for name in _STOPS])
    shares = np.array([rates.never_accepted, *(np.array(_STOP_SHARES) * (1 - rates.never_accepted))])
    if all_responded:
        shares[stops < STEP["signed"]] = 0
        shares /= shares.sum()
    last = stops[rng.choice(len(stops), count, p=shares)]
    if all_responded:
        # nobody signs for what its reporter handles
        last = np.where(~mask[:, STEP["signed"]], np.maximum(last, STEP["handling"]), last)
    # merging is legal while a case is admitted, accepted or dispatched
    last = np.where(fate == MERGED, stops[rng.choice(3, count, p=[0.4, 0.3, 0.3])], last)
    cut = np.isin(fate, [OPEN, MERGED, VOIDED])
    # one open case in ten is a closed one that was reopened
    reopened = (fate == OPEN) & (rng.random(count) < 0.1)
    for name in _ANEW[:-1]:
        mask[reopened, STEP[name]] = True
    mask[reopened, STEP["feedback"]] = True
    mask[reopened, STEP["signed_late"]] = False
    last = np.where(reopened, rng.integers(STEP["reopened"], STEP["closed_anew"], count), last)
    behind = np.arange(mask.shape[1])[None, :] > last[:, None]
    mask &= ~(behind & cut[:, None])
    # a wrong merging must not be the last thing that happened: it would leave the case merged
    mask[cut & (last < STEP["dispatched"]), STEP["merged_in_error"]] = False
    mask[cut & (last < STEP["dispatched"]), STEP["unmerged"]] = False
    mask[fate == MERGED, STEP["merged"]] = True
    for name in ("merged_in_error", "unmerged", "signed_wrongly", "returned", "dispatched_again"):
        mask[fate == MERGED, STEP[name]] = False
    mask[fate == VOIDED, STEP["voided"]] = True


def live(
    rng: np.random.Generator,
    scene: Scene,
    frame: pl.DataFrame,
    *,
    fate: Ints,
    end_ms: int,
    rates: Rates,
    time_lapse: float = 1.0,
    all_responded: bool = False,
) -> Lives:
    """Lives of the reports in `frame` (columns of `reports.draw`), by fate (n,), all over before `end_ms`.

    A life that would run past the end is pressed together, unless its fate is NATURAL: then it is cut there.
    time_lapse : how many times faster than in life everything but archiving goes.
    all_responded : open cases are left only behind a response, too.
    """
    mask, self_handled = _choose_steps(rng, frame, scene, rates)
    _stop(rng, mask, fate, rates, all_responded=all_responded)
    matter = frame["matter"].to_numpy()
    response = scene.matters.frame["response_seconds"].to_numpy()[matter] * 1_000.0
    resolution = scene.matters.frame["resolution_seconds"].to_numpy()[matter] * 1_000.0
    gaps = np.maximum(_gaps(rng, len(frame), response, resolution) / time_lapse, _LEAST_GAP_MS)
    gaps[~mask] = 0
    gaps[:, : STEP["reported"] + 1] = 0
    reported = frame["at"].to_numpy()
    offset = np.cumsum(gaps, axis=1)
    natural = fate == NATURAL
    final = np.where(mask, offset, 0).max(axis=1)
    room = np.maximum(end_ms - reported - 60_000, 1_000) / np.maximum(final, 1)
    press = np.where(natural, 1.0, np.minimum(1.0, room))
    at = reported[:, None] + np.round(offset * press[:, None]).astype(np.int64)
    at[:, STEP["discovered"]] = reported - rng.integers(20_000, 900_000, len(frame))
    closed_last = np.where(mask[:, STEP["closed_anew"]], at[:, STEP["closed_anew"]], at[:, STEP["closed"]])
    last_said = np.where(mask, at, 0)[:, STEP["closed"] : STEP["archived"]].max(axis=1)
    at[:, STEP["archived"]] = np.maximum(closed_last + _ARCHIVE_MS, last_said + 60_000)
    mask[:, STEP["archived"]] &= at[:, STEP["archived"]] < end_ms
    mask &= ~natural[:, None] | (at < end_ms)
    # what ended between a wrong merging and its correction stays as if never merged
    half = mask[:, STEP["merged_in_error"]] & ~mask[:, STEP["unmerged"]]
    mask[half, STEP["merged_in_error"]] = False
    rating = rng.choice([5, 4, 3, 2, 1], len(frame), p=[0.70, 0.24, 0.04, 0.012, 0.008])
    rating = np.where(mask[:, STEP["reopened"]], rng.integers(1, 3, len(frame)), rating)
    rating_anew = rng.choice([5, 4, 3], len(frame), p=[0.5, 0.35, 0.15])
    return Lives(mask, at, self_handled, rating, rating_anew, at[:, STEP["accepted"]])


def _gaps(rng: np.random.Generator, count: int, response: Floats, resolution: Floats) -> Any:
    """(n, steps) milliseconds that each step takes behind the one before it: log-normal around its share."""
    share = np.array([[step[2], step[3], step[4] * 3_600_000] for step in _STEPS], dtype=np.float64)
    median = (
        response[:, None] * share[None, :, 0] + resolution[:, None] * share[None, :, 1] + share[None, :, 2]
    )
    return median * rng.lognormal(0, 0.75, (count, len(_STEPS)))
