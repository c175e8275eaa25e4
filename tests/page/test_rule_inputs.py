"""What the page shows beside each admission rule, against the columns that the rule's conditions name."""

from __future__ import annotations

import re

import polars as pl
import pytest

from pipeline.page.assets import STATIC
from pipeline.rules.catalogue import load_catalogues
from pipeline.rules.model import RULE_COUNT
from pipeline.settings import Settings

#: Column of a condition → what of an explanation tells it.
SHOWN_BY = {
    "event_id": "event_id",
    "case_id": "case_id",
    "occurred_at": "occurred_at",
    "ingested_at": "received_at",
    "age_seconds": "received_at",
    "backfill": "decision.backfill",
    "matter_known": "matter_code",
    "referral_reason": "matter_code",
    "matter_temporary": "matter.effective_to",
    "matter_effective_from": "matter.effective_from",
    "matter_effective_to": "matter.effective_to",
    "matter_emergency_only": "matter.active_only_in_modes",
    "only_mode_active": "decision.mode",
    "mode_prioritises": "decision.mode",
    "channel_allowed": "matter.allowed_channels",
    "channel_carries_photo": "channel",
    "channel_reporter": "channel",
    "reporter_known": "enrichment.staff.found",
    "staff_active": "enrichment.staff.active",
    "staff_kind": "enrichment.staff.kind",
    "reporter_in_grid": "enrichment.staff.in_grid",
    "reporter_in_district": "enrichment.staff.in_district",
    "reporter_has_right": "enrichment.staff.channel_rights",
    "grid_found": "enrichment.grid.found",
    "grid_active": "enrichment.grid.active",
    "grid_in_scope": "enrichment.district_code",
    "point_in_grid": "enrichment.grid.point_in_grid",
    "matter_needs_person": "matter.needs_person",
    "person_resolved": "enrichment.persons",
    "photo_hash_valid": "content.photo_hashes",
    "photo_offset_seconds": "content.photo_taken_at",
    **{
        f"requires_{name}": "matter.required_fields"
        for name in ("location", "photo", "person", "organisation", "description")
    },
}
#: Of rules 9 and 11 what was given is an input; of rule 10 only what is missing, a field of its own.
GIVEN = {9: {"has_location": "content.lon"}, 11: {"has_photo": "content.photos"}}


def inputs_of_the_page() -> dict[int, list[str]]:
    text = (STATIC / "texts.js").read_text()
    listed = re.search(r"RULE_INPUTS = \{(.*?)\n\};", text, re.DOTALL)
    assert listed is not None
    found = re.findall(r"(\d+): \[(.*?)\]", listed[1], re.DOTALL)
    return {int(number): re.findall(r'"([^"]+)"', names) for number, names in found}


@pytest.mark.parametrize("number", range(1, RULE_COUNT + 1))
def test_every_column_of_a_rule_is_shown_beside_it(number: int) -> None:
    admission = load_catalogues(Settings().catalogue_dir).admission
    conditions = {derived.name: set(derived.holds.meta.root_names()) for derived in admission.derived}
    for entry in admission.entries(number):
        names = set(entry.source.needs)
        for reason in entry.source.reasons:
            for condition in reason.conditions.values():
                names |= set(pl.sql_expr(condition).meta.root_names())
        while derived := names & conditions.keys():
            names -= derived
            for name in derived:
                names |= conditions[name]
        told = SHOWN_BY | GIVEN.get(number, {})
        if number == 10:
            names = {name for name in names if not name.startswith("has_")}
        missing = {name: told[name] for name in names if told[name] not in inputs_of_the_page()[number]}
        assert missing == {}
