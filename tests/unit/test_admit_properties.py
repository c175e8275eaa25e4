"""Whatever comes in: one of three outcomes, admitted exactly when no reason, and row by row the same."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import polars as pl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import frames
from pipeline.rules.admit import admit
from tests.unit.admit_rows import DISTRICTS, MORNING, PHOTO, catalogues, frame, mode, mode_frame, report

maybe = st.sampled_from([True, False, None])
instants = st.integers(-40 * 86_400_000, 40 * 86_400_000).map(lambda ms: MORNING + timedelta(milliseconds=ms))
codes = st.sampled_from(
    [
        "SA-07",
        "SA-05",
        "BI-01",
        "ER-08",
        "UE-09",
        "PS-02",
        "TMP-2022-EPI-01",
        "REF-110",
        "REF-COURT",
        "XX-1",
        None,
    ]
)
photo = st.fixed_dictionaries(
    {"sha256": st.sampled_from([PHOTO["sha256"], "short", None]), "taken_at": st.none() | instants}
)
person = st.fixed_dictionaries(
    {
        "key": st.sampled_from(["a" * 64, None]),
        "role": st.sampled_from(["subject", "party", "contact", "reporter"]),
    }
)
rows = st.builds(
    report,
    event_type=st.sampled_from(["REPORTED", "REPORTED", "CLOSED", "ACCEPTED"]),
    occurred_at=instants,
    ingested_at=instants,
    channel=st.sampled_from([*catalogues().channels, "carrier_pigeon"]),
    matter_code=codes,
    grid_code=st.sampled_from(["440704001001003", "440703001001001", "440103001001001", "999999999999999"]),
    actor_key=st.sampled_from(["w-0001", None]),
    persons=st.none() | st.lists(person, max_size=3),
    lon=st.none() | st.just(113.1),
    lat=st.none() | st.just(22.5),
    photos=st.none() | st.lists(photo, max_size=3),
    description=st.sampled_from(["铁皮松动", " ", "", None]),
    organisation_code=st.none() | st.just("o1"),
    backfill=st.booleans(),
    grid_found=maybe,
    grid_active=maybe,
    point_in_grid=maybe,
    staff_found=maybe,
    staff_active=maybe,
    staff_kind=st.sampled_from(["full_time", "clerk", "professional", "volunteer", "unit_head", None]),
    staff_in_grid=maybe,
    staff_in_district=maybe,
    staff_channel_rights=st.none() | st.lists(st.sampled_from(["yuepingan", "rider_qrcode"]), max_size=2),
    persons_found=st.sampled_from([0, 1, None]),
)
records = st.lists(
    st.builds(
        mode,
        st.sampled_from(["flood", "typhoon", "epidemic", "heat"]),
        st.sampled_from(["I", "II", "III", "IV"]),
        st.sampled_from(["4407", "440704", "440704001", "440703"]),
        instants,
        st.none() | instants,
        version=st.integers(1, 2),
    ),
    max_size=4,
)
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def decide(events: pl.DataFrame, known: list[tuple[Any, ...]]) -> pl.DataFrame:
    return admit(events, catalogues(), mode_frame(*known), districts=DISTRICTS)


@given(st.lists(rows, min_size=1, max_size=12), records)
@quick
def test_the_outcome_is_one_of_three_and_follows_from_the_reasons(
    events: list[dict[str, Any]], known: list[tuple[Any, ...]]
) -> None:
    order = {code: position for position, code in enumerate(catalogues().admission.reason_codes())}
    for row in decide(frame(events), known).iter_rows(named=True):
        if row["event_type"] != "REPORTED":
            assert row["outcome"] == "recorded"
            assert not row["reasons"] and not row["rule_results"] and not row["life_safety"]
            continue
        assert row["outcome"] == ("rejected" if row["reasons"] else "admitted")
        assert len(row["rule_results"]) == 13
        assert (0 in row["rule_results"]) is bool(row["reasons"])
        assert row["rule_results"][0] == 1
        positions = [order[reason] for reason in row["reasons"]]
        assert positions == sorted(set(positions))
        assert bool(row["missing_fields"]) is ("REQUIRED_FIELD_MISSING" in row["reasons"])
        assert not (row["evidence_pending"] and row["outcome"] == "rejected")
        assert not (row["life_safety"] and row["outcome"] == "admitted")
        assert (row["mode"] is None) is (row["mode_level"] is None)
        if row["mode"] is not None:
            assert row["response_limit_seconds"] >= 600
        if row["outcome"] == "rejected":
            referred = not {"REFER_EMERGENCY_SERVICE", "OUT_OF_ADMIN_SCOPE"}.isdisjoint(row["reasons"])
            assert row["life_safety"] is (referred or row["urgency"] == "emergency")


@given(st.lists(rows, min_size=2, max_size=8), records, st.data())
@quick
def test_a_row_is_decided_the_same_alone_or_among_others(
    events: list[dict[str, Any]], known: list[tuple[Any, ...]], data: st.DataObject
) -> None:
    whole = decide(frame(events), known).select(list(frames.DECISION))
    cut = data.draw(st.integers(1, len(events) - 1))
    parts = [decide(frame(part), known) for part in (events[:cut], events[cut:])]
    assert pl.concat(parts).select(list(frames.DECISION)).equals(whole)


@given(st.lists(rows, min_size=1, max_size=6), st.permutations(range(6)))
@quick
def test_the_order_in_which_modes_are_known_does_not_matter(
    events: list[dict[str, Any]], order: list[int]
) -> None:
    known = [
        mode(kind, level, area, MORNING - timedelta(days=30))
        for kind, level, area in (
            ("flood", "II", "4407"), ("typhoon", "II", "440704"), ("typhoon", "IV", "4407"),
            ("epidemic", "I", "440703"), ("heat", "III", "440704001"), ("heat", "III", "4407"),
        )
    ]  # fmt: skip
    assert decide(frame(events), known).equals(decide(frame(events), [known[index] for index in order]))
