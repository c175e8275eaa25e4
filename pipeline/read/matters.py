"""The catalogue in force at an instant, as the interface shows it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pipeline.read.times import instant
from pipeline.rules.catalogue import Catalogues
from pipeline.rules.model import Matter


def matters_in_force(catalogues: Catalogues, at: datetime) -> dict[str, Any]:
    """The matters in force at `at`, temporary ones last, with names of their codes.

    `status` is the list's own word on how official it is.
    """
    version = catalogues.version_at(at)
    return {
        "at": instant(at),
        "version": version.version,
        "status": version.head.status,
        "effective_from": instant(version.effective_from),
        "rules": catalogues.digest,
        "matters": [_matter(matter, catalogues) for matter in catalogues.matters(at)],
    }


def former_matters(catalogues: Catalogues, since: datetime, at: datetime) -> list[dict[str, Any]]:
    """The matters that were in force at some time after `since` and are no more at `at`, as
    `matters_in_force` has them. A version repeats every code of the one before it, so that the one
    of `at` knows them all."""
    return [
        _matter(matter, catalogues)
        for matter in catalogues.version_at(at).matters.values()
        if (end := matter.effective_to_instant) is not None and since < end <= at
    ]


def _matter(matter: Matter, catalogues: Catalogues) -> dict[str, Any]:
    return {
        "code": matter.code,
        "name_zh": matter.name_zh,
        "name_en": matter.name_en,
        "category": matter.category,
        "category_zh": catalogues.category_names_zh.get(matter.category),
        "lead_department": matter.lead_department,
        "lead_department_zh": catalogues.department_names_zh.get(matter.lead_department),
        "urgency": matter.urgency,
        "response_minutes": matter.response_minutes,
        "resolution_hours": matter.resolution_hours,
        "allowed_channels": list(matter.allowed_channels),
        "required_fields": list(matter.required_fields),
        "needs_person": matter.needs_person,
        "emergency_modes": list(matter.prioritised_in),
        "active_only_in_modes": list(matter.active_only_in_modes),
        "temporary": matter.temporary,
        "effective_from": instant(matter.effective_from_instant),
        "effective_to": instant(matter.effective_to_instant),
    }
