"""The schema file is what the types say, and the examples mean what their names claim."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import orjson
import pytest

from pipeline.contract.event import CLIENT_EVENT_TYPES, EventType
from pipeline.contract.parse import parse_document, parse_ndjson, parse_record
from pipeline.contract.privacy import Privacy
from pipeline.contract.rows import to_frame
from pipeline.contract.schema import event_schema, rendered
from pipeline.frames import EVENT, expect

SCHEMAS = Path(__file__).parents[2] / "schemas"
VALID = sorted((SCHEMAS / "examples" / "valid").glob("*.json"))
INVALID = sorted((SCHEMAS / "examples" / "invalid").glob("*.json"))
#: JSON Schema does not say what times and ids mean, which characters a text may hold, or that an integer is
#: no number. It does say that every other invalid example is invalid.
_BEYOND_SCHEMA = {
    "occurred_at_without_zone",
    "occurred_at_no_such_day",
    "occurred_at_hour_24",
    "occurred_at_in_1999",
    "occurred_at_in_2100",
    "extended_due_at_without_zone",
    "event_id_holds_identity_number",
    "case_id_is_mobile_number",
    "description_control_character",
    "voided_with_blank_reason",
    "attributes_integer_beyond_64_bits",
}


def _validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(event_schema())


def _names(paths: list[Path]) -> list[str]:
    return [path.stem for path in paths]


def test_schema_file_is_generated_from_the_types() -> None:
    assert (SCHEMAS / "event.v1.json").read_bytes() == rendered(), (
        "schemas/event.v1.json drifted; run: python -m pipeline.contract.schema"
    )


def test_schema_is_valid_draft_2020_12() -> None:
    jsonschema.Draft202012Validator.check_schema(event_schema())
    jsonschema.Draft202012Validator.check_schema(event_schema(inline=True))


def test_event_types_of_the_contract_are_those_of_the_domain_but_the_pipelines_own() -> None:
    assert EventType.__args__ == CLIENT_EVENT_TYPES  # type: ignore[attr-defined]


def test_every_event_type_has_a_valid_example() -> None:
    shown = {orjson.loads(path.read_bytes())["event_type"] for path in VALID}
    assert shown == set(CLIENT_EVENT_TYPES)


@pytest.mark.parametrize("path", VALID, ids=_names(VALID))
def test_valid_example_passes_schema_and_every_way_in(path: Path) -> None:
    body = path.read_bytes()
    _validator().validate(orjson.loads(body))
    line = orjson.dumps(orjson.loads(body))
    for parsed in (parse_document(body), parse_ndjson(line), parse_record(line)):
        assert not parsed.errors
        assert len(parsed.events) == 1
    frame = to_frame(
        parsed.events,
        ingested_at=datetime(2024, 6, 1, tzinfo=UTC),
        request_id=None,
        backfill=False,
        privacy=Privacy(bytes(range(32))),
    )
    assert expect(frame, EVENT, "example").height == 1


@pytest.mark.parametrize("path", INVALID, ids=_names(INVALID))
def test_invalid_example_is_refused_with_its_code_and_field(path: Path) -> None:
    document: dict[str, Any] = orjson.loads(path.read_bytes())
    expected = document["expect"]
    line = orjson.dumps(document["event"])
    for parsed in (parse_document(line), parse_document(b"[" + line + b"]"), parse_record(line)):
        assert not parsed.events
        (error,) = parsed.errors
        assert (error.code, error.field) == (expected["code"], expected["field"])
    assert _validator().is_valid(document["event"]) == (path.stem in _BEYOND_SCHEMA)
