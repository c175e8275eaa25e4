"""Publishes the catalogue to ClickHouse, where views and dashboards look up names and limits."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final

import polars as pl
from clickhouse_connect.driver.client import Client

from pipeline.frames import TIMESTAMP
from pipeline.rules.catalogue import Catalogues, CatalogueVersion
from pipeline.rules.model import Matter

#: Columns of `ref_matters` but for `published_at`.
PUBLISHED: Final[dict[str, Any]] = {
    "code": pl.String(),
    "catalogue_version": pl.String(),
    "catalogue_from": TIMESTAMP,
    "catalogue_to": TIMESTAMP,
    "effective_from": TIMESTAMP,
    "effective_to": TIMESTAMP,
    "name_zh": pl.String(),
    "name_en": pl.String(),
    "category": pl.String(),
    "category_name_zh": pl.String(),
    "category_name_en": pl.String(),
    "lead_department": pl.String(),
    "lead_department_name_zh": pl.String(),
    "lead_department_name_en": pl.String(),
    "supporting_departments": pl.List(pl.String()),
    "urgency": pl.String(),
    "response_limit_seconds": pl.UInt32(),
    "resolution_limit_seconds": pl.UInt32(),
    "allowed_channels": pl.List(pl.String()),
    "required_fields": pl.List(pl.String()),
    "needs_person": pl.Boolean(),
    "incident_window_seconds": pl.UInt32(),
    "incident_radius_m": pl.UInt32(),
    "emergency_modes": pl.List(pl.String()),
    "active_only_in_modes": pl.List(pl.String()),
    "temporary": pl.Boolean(),
    "base_matter": pl.String(),
    "approval_reference": pl.String(),
    "batch": pl.UInt8(),
    "approved_on": pl.Date(),
    "rules": pl.String(),
    "publication": pl.UInt64(),
}


def publish(client: Client, catalogues: Catalogues) -> bool:
    """Write the catalogue to `ref_matters` unless the last publication is the same. Returns whether it wrote.

    client : connected, migrated, its default database chosen. Safe to call from several processes at once:
    they take the same next number and the same insert token, and the token absorbs all but one.
    """
    newest = client.query("SELECT max(publication), argMax(rules, publication) FROM ref_matters")
    last, rules = newest.result_rows[0]
    if rules == catalogues.digest:
        return False
    # The number is part of the token: going back to an earlier catalogue must not look like its first insert.
    publication = int(last) + 1
    client.insert_arrow(
        "ref_matters",
        matters_frame(catalogues, publication).to_arrow(compat_level=pl.CompatLevel.oldest()),
        settings={
            "async_insert": 0,
            "insert_deduplicate": 1,
            "insert_deduplication_token": f"ref_matters:{publication}:{catalogues.digest}",
        },
    )
    return True


def matters_frame(catalogues: Catalogues, publication: int) -> pl.DataFrame:
    """Every matter of every version as rows of `PUBLISHED`."""
    versions = catalogues.versions
    ends = [*(later.effective_from for _, later in pairwise(versions)), None]
    rows = [
        _row(catalogues, version, end, matter, publication)
        for version, end in zip(versions, ends, strict=True)
        for matter in version.matters.values()
    ]
    return pl.DataFrame(rows, schema=PUBLISHED)


def _row(
    catalogues: Catalogues, version: CatalogueVersion, end: Any, matter: Matter, publication: int
) -> dict[str, Any]:
    category = catalogues.categories[matter.category]
    department = catalogues.departments[matter.lead_department]
    return {
        "code": matter.code,
        "catalogue_version": version.version,
        "catalogue_from": version.effective_from,
        "catalogue_to": end,
        "effective_from": matter.effective_from_instant,
        "effective_to": matter.effective_to_instant,
        "name_zh": matter.name_zh,
        "name_en": matter.name_en,
        "category": matter.category,
        "category_name_zh": category.name_zh,
        "category_name_en": category.name_en,
        "lead_department": matter.lead_department,
        "lead_department_name_zh": department.name_zh,
        "lead_department_name_en": department.name_en,
        "supporting_departments": list(matter.supporting_departments),
        "urgency": matter.urgency,
        "response_limit_seconds": matter.response_minutes * 60,
        "resolution_limit_seconds": matter.resolution_hours * 3_600,
        "allowed_channels": list(matter.allowed_channels),
        "required_fields": list(matter.required_fields),
        "needs_person": matter.needs_person,
        "incident_window_seconds": matter.incident_window_minutes * 60,
        "incident_radius_m": matter.incident_radius_m,
        "emergency_modes": list(matter.prioritised_in),
        "active_only_in_modes": list(matter.active_only_in_modes),
        "temporary": matter.temporary,
        "base_matter": matter.base_matter,
        "approval_reference": matter.approval_reference,
        "batch": matter.batch,
        "approved_on": matter.approved_on,
        "rules": catalogues.digest,
        "publication": publication,
    }
