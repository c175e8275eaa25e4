"""From a plan to events in the order in which they arrive, and the ledger of what must come out.

One row per event that is sent, copies included. The ledger is computed from the plan and the lives alone; it
never sees the pipeline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl

from pipeline.errors import ConfigurationError
from pipeline.simulate import lifecycle
from pipeline.simulate.lifecycle import STEP, Lives, live
from pipeline.simulate.plan import DistrictPlan, Plan
from pipeline.simulate.reports import draw, dress, points_in
from pipeline.simulate.scene import Ints, Scene
from pipeline.simulate.spoil import spoil
from pipeline.simulate.texts import hashes, notes

_MINUTE_MS: Final = 60_000
_HOUR_MS: Final = 60 * _MINUTE_MS
#: Steps that carry a note.
_NOTED: Final = ("DISPATCHED", "ARRIVED", "HANDLING", "RESOLVED", "CLOSED")
_VOID_REASONS: Final = ("重复登记", "误报，现场无异常", "上报人撤回", "信息不实，无法核实", "测试数据清理")


@dataclass(frozen=True)
class Simulation:
    """events : one row per sent event, by arrival; cases : one row per case with fate and district.

    Columns of events beside those of `reports.draw` and `_handled`: case_id, event_id, event_type, step;
    arrival (unix ms), when it reaches us; unit, what must be kept together; copy, whether it repeats an id;
    outcome, what the pipeline must make of it: admitted, rejected, recorded, L1, L2 or quarantined.
    """

    plan: Plan
    events: pl.DataFrame
    cases: pl.DataFrame


def simulate(scene: Scene, plan: Plan) -> Simulation:
    """All events of a plan. The same scene and plan give the same rows in the same order."""
    events, cases = [], []
    for number, district in enumerate(plan.districts):
        rng = np.random.default_rng([plan.seed, 100, number])
        happened, happened_to = _District(scene, plan, district, rng).run()
        events.append(happened)
        cases.append(happened_to)
    rows = pl.concat(events, how="diagonal").sort("arrival", "event_id", maintain_order=True)
    return Simulation(plan, rows, pl.concat(cases))


class _District:
    """Draws one district's cases and everything around them."""

    def __init__(self, scene: Scene, plan: Plan, district: DistrictPlan, rng: np.random.Generator) -> None:
        self.scene, self.plan, self.district, self.rng = scene, plan, district, rng
        number = scene.districts.index_of(district.code)
        if number is None:
            raise ConfigurationError(f"the simulated city has no district {district.code}")
        self.number = number
        self.noise = plan.noise

    def run(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Events of this district, in no particular order, and its cases."""
        cases, reports, lives = self._cases()
        happened = self._lifecycle(cases, reports, lives)
        single = pl.concat(
            [
                happened,
                self._supplements(cases, reports, lives),
                self._rejected(len(cases)),
                self._orphans(len(cases)),
            ],
            how="diagonal",
        )
        originals = self._send(single)
        resent = self._resends(originals)
        sent = pl.concat([originals, resent], how="diagonal")
        return pl.concat([sent, self._copies(sent)], how="diagonal"), cases

    # --- cases

    def _draw(self, count: int) -> pl.DataFrame:
        return draw(
            self.scene, self.rng, district=self.number, count=count, mix=self.district.mix,
            start_ms=self.plan.start_ms, end_ms=self.plan.last_report_ms,
        )  # fmt: skip

    def _cases(self) -> tuple[pl.DataFrame, pl.DataFrame, Lives]:
        """Cases (case_id, unit, district, fate, counted, closed, responded, primary), their reports, their
        lives; same height."""
        counted = self.district.cases
        voided, merged = (round(counted * share) for share in (self.noise.voided, self.noise.merged))
        own = self._draw(counted + voided)
        fate = np.full(counted + voided, lifecycle.VOIDED, dtype=np.int64)
        fate[:counted] = self._fates(own["at"].to_numpy()[:counted])
        primary = self.rng.integers(0, counted, merged)
        reports = pl.concat([own, self._same_incident(own, primary)])
        fates = np.r_[fate, np.full(merged, lifecycle.MERGED, dtype=np.int64)]
        lives = live(
            self.rng,
            self.scene,
            reports,
            fate=fates,
            end_ms=self.plan.end_ms,
            rates=self.plan.rates,
            time_lapse=self.plan.time_lapse,
            all_responded=self.district.all_responded,
        )
        count = len(reports)
        case_id = pl.select(
            pl.concat_str(
                pl.lit(f"{self.plan.tag}-{self.district.code}N"),
                pl.int_range(1, count + 1).cast(pl.String).str.zfill(6),
            )
        ).to_series()
        # a wrongly merged case points at its neighbour until it is taken apart again
        points_at = np.r_[(np.arange(counted + voided) + 1) % counted, primary]
        counts = np.isin(fates, [lifecycle.CLOSED, lifecycle.OPEN, lifecycle.NATURAL])
        cases = pl.DataFrame(
            {
                "case_id": case_id,
                "district_code": [self.district.code] * count,
                "unit": np.r_[np.arange(counted + voided), primary],
                "fate": fates,
                "counted": counts,
                "closed": counts & lives.closed(),
                "responded": counts & lives.responded(),
                "primary_case_id": case_id.gather(points_at.astype(np.uint32)),
            }
        )
        return cases, reports, lives

    def _fates(self, reported: Ints) -> Ints:
        """Which counted cases are closed at the end: open ones are mostly recent."""
        count, closed = len(reported), self.district.closed
        if closed is None:
            return np.full(count, lifecycle.NATURAL, dtype=np.int64)
        age_days = (self.plan.end_ms - reported) / (24 * _HOUR_MS)
        order = np.argsort(age_days + self.rng.exponential(25, count), kind="stable")
        fate = np.full(count, lifecycle.CLOSED, dtype=np.int64)
        fate[order[: count - closed]] = lifecycle.OPEN
        return fate

    def _same_incident(self, reports: pl.DataFrame, primary: Ints) -> pl.DataFrame:
        """Other people's reports of what `primary` rows reported: same matter and grid, a little later."""
        first = reports[primary.tolist()].select("district", "grid", "matter", "channel", "at")
        at = np.minimum(
            first["at"].to_numpy() + self.rng.integers(_MINUTE_MS, 2 * _HOUR_MS, len(first)),
            self.plan.end_ms - _HOUR_MS,
        )
        lon, lat = points_in(self.scene, self.rng, first["grid"].to_numpy())
        placed = first.with_columns(at=pl.Series(at), lon=pl.Series(lon), lat=pl.Series(lat))
        return dress(self.scene, self.rng, placed)

    # --- rows

    def _lifecycle(self, cases: pl.DataFrame, reports: pl.DataFrame, lives: Lives) -> pl.DataFrame:
        """One row per step that a case takes; the report itself carries all its fields, other steps few."""
        case, step = np.nonzero(lives.mask)
        is_report = step == STEP["reported"]
        at = pl.Series("at", lives.at[case, step])
        full = reports[case[is_report].tolist()].with_columns(at.filter(pl.Series(is_report)))
        later = ~is_report
        light = reports.select(
            "district", "grid", "matter", "channel", "actor_type", "actor_key", "actor_id", "actor_phone"
        )
        rest = self._handled(light[case[later].tolist()], cases, lives, case[later], step[later])
        rest = rest.with_columns(at.filter(pl.Series(later)))
        identity = pl.DataFrame(
            {
                "case_id": cases["case_id"].gather(case.astype(np.uint32)),
                "unit": cases["unit"].to_numpy()[case],
                "step": step,
                "event_type": lifecycle.EVENT_TYPE.gather(step.astype(np.uint32)),
            }
        )
        rows = [
            pl.concat([identity.filter(pl.Series(mask)), columns], how="horizontal")
            for mask, columns in ((is_report, full), (later, rest))
        ]
        return pl.concat(rows, how="diagonal").with_columns(
            outcome=pl.when(pl.col("event_type") == "REPORTED")
            .then(pl.lit("admitted"))
            .otherwise(pl.lit("recorded"))
        )

    def _handled(
        self, light: pl.DataFrame, cases: pl.DataFrame, lives: Lives, case: Ints, step: Ints
    ) -> pl.DataFrame:
        """Actor, note, photo and attributes of the steps behind a report."""
        rng, count = self.rng, len(light)
        frame = light.with_columns(
            role=lifecycle.ACTOR.gather(step.astype(np.uint32)),
            clerk=self.scene.clerks.values["worker_key"].gather(
                self.scene.clerks.pick(rng, light["district"].to_numpy())
            ),
            department=self.scene.matters.frame["lead_department"].gather(light["matter"].cast(pl.UInt32)),
            own=pl.Series(lives.self_handled[case]),
            type=lifecycle.EVENT_TYPE.gather(step.astype(np.uint32)),
            note=notes(rng, count),
            photo=hashes(rng, count),
            chance=pl.Series(rng.random(count)),
            anew=pl.Series(step >= STEP["reopened"]),
            rating=pl.Series(
                np.where(step == STEP["feedback_anew"], lives.rating_anew[case], lives.rating[case])
            ),
            primary_case_id=cases["primary_case_id"].gather(case.astype(np.uint32)),
            due_ms=pl.Series(self._extended_due(light, lives, case)),
            reason_text=pl.Series(rng.choice(_VOID_REASONS, count).tolist()),
            at=pl.Series(lives.at[case, step]),
        )
        kind, role, own = pl.col("type"), pl.col("role"), pl.col("own") & ~pl.col("anew")
        reporter = (role == "reporter") & (
            (kind == "DISCOVERED") | pl.col("actor_type").is_in(["citizen", "firm"])
        )
        by_reporter = reporter | ((role == "handler") & own)
        by_department = role.is_in(["department", "handler"]) & ~own
        by_system = role == "system"
        actor_type = (
            pl.when(by_reporter).then("actor_type").when(by_department).then(pl.lit("department"))
            .when(by_system).then(pl.lit("system")).otherwise(pl.lit("clerk"))
        )  # fmt: skip
        actor_key = (
            pl.when(by_reporter).then("actor_key")
            .when(by_department).then(pl.concat_str(pl.lit("dept-"), "department"))
            .when(~by_system).then("clerk")
        )  # fmt: skip
        working = kind.is_in(["HANDLING", "RESOLVED"])
        photo = pl.concat_list(pl.struct(sha256=pl.col("photo"), taken_ms=pl.col("at") - 30_000))
        return frame.select(
            "district", "grid", "matter", "channel",
            actor_type.alias("actor_type"),
            actor_key.alias("actor_key"),
            pl.when(by_reporter).then("actor_id").alias("actor_id"),
            pl.when(by_reporter).then("actor_phone").alias("actor_phone"),
            pl.when(kind.is_in(_NOTED)).then("note").alias("description"),
            pl.when((kind == "RESOLVED") & (pl.col("chance") < 0.4)).then(photo).alias("photos"),
            pl.when(kind == "EXTENDED").then("due_ms").alias("due_ms"),
            pl.when(kind == "MERGED").then("primary_case_id").alias("primary_case_id"),
            pl.when(kind == "VOIDED").then("reason_text").alias("reason_text"),
            pl.when(kind == "FEEDBACK").then("rating").alias("rating"),
            pl.when((kind == "DISPATCHED") & (pl.col("chance") < 0.5)).then("department").alias("department"),
            pl.when(kind == "ESCALATED").then(pl.lit("district")).alias("level"),
            pl.when(working & own).then(pl.lit(value=True)).alias("own"),
        )  # fmt: skip

    def _extended_due(self, light: pl.DataFrame, lives: Lives, case: Ints) -> Ints:
        """Half a resolution limit later than the limit set at acceptance."""
        limit = self.scene.matters.frame["resolution_seconds"].to_numpy()[light["matter"].to_numpy()]
        due: Ints = lives.accepted_at[case] + limit * 1_500
        return due

    def _supplements(self, cases: pl.DataFrame, reports: pl.DataFrame, lives: Lives) -> pl.DataFrame:
        """A second report under a case that already has one: other reporter, same matter."""
        able = np.flatnonzero(cases["counted"].to_numpy())
        chosen = np.sort(self.rng.choice(able, round(len(able) * self.noise.supplements), replace=False))
        again = self._same_incident(reports, chosen)
        return again.with_columns(
            case_id=cases["case_id"].gather(chosen.astype(np.uint32)),
            unit=cases["unit"].gather(chosen.astype(np.uint32)),
            step=pl.lit(80, dtype=pl.Int64),
            event_type=pl.lit("REPORTED"),
            outcome=pl.lit("admitted"),
        )

    def _rejected(self, cases: int) -> pl.DataFrame:
        count = round(self.district.cases * self.noise.rejected)
        spoilt = spoil(self.scene, self.rng, self._draw(count), self.plan.end_ms)
        return self._alone(spoilt, "R", cases).with_columns(
            step=pl.lit(STEP["reported"], dtype=pl.Int64),
            event_type=pl.lit("REPORTED"),
            outcome=pl.lit("rejected"),
        )

    def _orphans(self, cases: int) -> pl.DataFrame:
        """Handling and resolving under case ids that nobody ever reports."""
        count = round(self.district.cases * self.noise.orphans)
        drawn = self._draw(count).select("district", "grid", "matter", "channel", "at")
        alone = self._alone(drawn, "O", 2 * cases)
        steps = (("handling", "HANDLING", 0), ("resolved", "RESOLVED", 30 * _MINUTE_MS))
        return pl.concat(
            alone.with_columns(
                pl.col("at") + delay,
                step=pl.lit(STEP[name], dtype=pl.Int64),
                event_type=pl.lit(kind),
                actor_type=pl.lit("department"),
                outcome=pl.lit("recorded"),
            )
            for name, kind, delay in steps
        )

    def _alone(self, rows: pl.DataFrame, letter: str, first_unit: int) -> pl.DataFrame:
        number = pl.int_range(pl.len())
        return rows.with_columns(
            pl.concat_str(
                pl.lit(f"{self.plan.tag}-{self.district.code}{letter}"),
                (number + 1).cast(pl.String).str.zfill(6),
            ).alias("case_id"),
            (number + first_unit).cast(pl.Int64).alias("unit"),
        )

    # --- sending

    def _send(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Give every event its id and arrival: most at once, some after minutes, a few after days offline."""
        count = len(rows)
        draw_ = self.rng.random(count)
        delay = np.select(
            [draw_ < 1 - self.noise.slow - self.noise.offline, draw_ < 1 - self.noise.offline],
            [self.rng.exponential(20_000, count), self.rng.exponential(30 * _MINUTE_MS, count)],
            self.rng.uniform(_HOUR_MS, 72 * _HOUR_MS, count),
        )
        return rows.with_columns(
            pl.concat_str("case_id", pl.lit("S"), pl.col("step").cast(pl.String).str.zfill(2)).alias(
                "event_id"
            ),
            arrival=pl.col("at") + pl.Series(delay.astype(np.int64)),
            copy=pl.lit(value=False),
        )

    def _resends(self, originals: pl.DataFrame) -> pl.DataFrame:
        """The same report under a new id: double taps within minutes, repeated uploads of one submission."""
        known = pl.any_horizontal(pl.col("actor_key", "actor_id", "actor_phone").is_not_null())
        able = originals.filter((pl.col("outcome") == "admitted") & (pl.col("step") < 80) & known)
        count = min(len(able), round(self.district.cases * self.noise.resends))
        chosen: pl.DataFrame = able[np.sort(self.rng.choice(len(able), count, replace=False)).tolist()]
        offline = chosen["submission_id"].is_not_null().to_numpy() & (self.rng.random(count) < 0.2)
        later = np.where(
            offline,
            self.rng.integers(_HOUR_MS, 60 * _HOUR_MS, count),
            self.rng.integers(2_000, 9 * _MINUTE_MS, count),
        )
        # never behind the end: the report would be about the future
        later = np.minimum(later, self.plan.end_ms - 1_000 - chosen["at"].to_numpy())
        new_case = pl.Series(self.rng.random(count) < 0.7)
        return chosen.with_columns(
            pl.concat_str("event_id", pl.lit("D")).alias("event_id"),
            pl.when(new_case)
            .then(pl.concat_str("case_id", pl.lit("D")))
            .otherwise("case_id")
            .alias("case_id"),
            pl.col("at") + pl.Series(later),
            pl.col("arrival") + pl.Series(later),
            outcome=pl.lit("L2"),
        )

    def _copies(self, sent: pl.DataFrame) -> pl.DataFrame:
        """Redeliveries: the same event again. Conflicts: the id of an earlier event with other content."""
        count = len(sent)
        again = np.flatnonzero(self.rng.random(count) < self.noise.redeliveries)
        redelivered = sent[again.tolist()].with_columns(
            pl.col("arrival")
            + pl.Series(self.rng.exponential(20 * _MINUTE_MS, len(again)).astype(np.int64) + 1),
            outcome=pl.lit("L1"),
        )
        others = np.flatnonzero(self.rng.random(count) < self.noise.conflicts)
        conflicting = sent[others.tolist()].with_columns(
            pl.col("arrival") + pl.Series(self.rng.exponential(_HOUR_MS, len(others)).astype(np.int64) + 1),
            description=pl.lit("更正：内容与此前上报不一致，请以本条为准。"),
            outcome=pl.lit("quarantined"),
        )
        return pl.concat([redelivered, conflicting]).with_columns(copy=pl.lit(value=True))


def keep_exactly(simulation: Simulation, count: int) -> Simulation:
    """Keep exactly `count` events: whole units drawn at random, filled up with single events, redeliveries.

    Raises ValueError if the simulation cannot give so many, or so few, events.
    """
    events = simulation.events
    if len(events) < count:
        raise ValueError(f"{len(events)} events simulated, {count} wanted")
    sizes = events.group_by("district", "unit", maintain_order=True).len()
    shuffled = np.random.default_rng([simulation.plan.seed, 101]).permutation(len(sizes))
    sizes = sizes[shuffled.tolist()].with_columns(upto=pl.col("len").cum_sum())
    fitting = sizes.filter(pl.col("upto") <= count)
    left = count - int(fitting["len"].sum())
    singles = sizes.filter((pl.col("upto") > count) & (pl.col("len") == 1)).head(left)
    kept_units = pl.concat([fitting, singles]).select("district", "unit")
    kept = events.join(kept_units, on=["district", "unit"], how="semi", maintain_order="left")
    originals = np.flatnonzero((~kept["copy"]).to_numpy())
    missing = count - len(kept)
    if missing and not len(originals):
        raise ValueError(f"no unit of at most {count} events")
    again = np.resize(originals, missing)
    extra = kept[again.tolist()].with_columns(
        pl.col("arrival") + _MINUTE_MS, outcome=pl.lit("L1"), copy=pl.lit(value=True)
    )
    rows = pl.concat([kept, extra]).sort("arrival", "event_id", maintain_order=True)
    cases = simulation.cases.join(
        rows.select("case_id").unique(), on="case_id", how="semi", maintain_order="left"
    )
    return Simulation(simulation.plan, rows, cases)


def ledger(simulation: Simulation) -> dict[str, Any]:
    """What must come out: counted, closed and responded cases per district, events by outcome, rejections by
    reason."""
    cases, events = simulation.cases, simulation.events
    by_district = {
        row["district_code"]: row
        for row in cases.group_by("district_code")
        .agg(
            pl.col("counted").sum().alias("cases"),
            pl.col("closed").sum(),
            pl.col("responded").sum(),
            (pl.col("fate") == lifecycle.MERGED).sum().alias("merged"),
            (pl.col("fate") == lifecycle.VOIDED).sum().alias("voided"),
        )
        .iter_rows(named=True)
    }
    outcomes = dict(events["outcome"].value_counts().iter_rows())
    reasons = events.filter(pl.col("outcome") == "rejected")["reason"].value_counts()
    plan = simulation.plan
    return {
        "label": "simulated",
        "seed": plan.seed,
        "source": plan.source,
        "from": plan.start,
        "to": plan.end,
        "districts": [
            {
                "code": district.code,
                "cases": by_district.get(district.code, {}).get("cases", 0),
                "closed": by_district.get(district.code, {}).get("closed", 0),
                "responded": by_district.get(district.code, {}).get("responded", 0),
                "merged": by_district.get(district.code, {}).get("merged", 0),
                "voided": by_district.get(district.code, {}).get("voided", 0),
            }
            for district in plan.districts
        ],
        "events": {
            "sent": len(events),
            "admitted": outcomes.get("admitted", 0),
            "rejected": outcomes.get("rejected", 0),
            "recorded": outcomes.get("recorded", 0),
            "duplicates": {"L1": outcomes.get("L1", 0), "L2": outcomes.get("L2", 0)},
            "quarantined": outcomes.get("quarantined", 0),
        },
        "rejections": dict(sorted(reasons.iter_rows())),
    }
