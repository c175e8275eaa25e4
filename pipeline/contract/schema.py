"""The contract as JSON Schema 2020-12, generated from the types.

`python -m pipeline.contract.schema [FILE]` writes it (default: schemas/event.v1.json).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import msgspec
import orjson

from pipeline.contract.event import END, REQUIRED_ATTRIBUTE, Attributes, Event
from pipeline.contract.exact import exact

SCHEMA_ID: Final = "https://gridpipe.example/schemas/event.v1.json"
_TIME_NOTE: Final = "RFC 3339 with a zone, 2000–2100; cut to milliseconds"


def _tidy(node: Any) -> Any:
    """The generator's output without what only Python needs, docstrings as one paragraph."""
    if isinstance(node, list):
        return [_tidy(item) for item in node]
    if not isinstance(node, dict):
        return node
    tidy = {
        name: _tidy(value) for name, value in node.items() if name != "title" or not isinstance(value, str)
    }
    if isinstance(tidy.get("pattern"), str):
        tidy["pattern"] = tidy["pattern"].replace(END, "$")
    if isinstance(tidy.get("description"), str):
        tidy["description"] = " ".join(tidy["description"].split())
    if tidy.get("format") == "date-time":
        tidy["description"] = _TIME_NOTE
    return tidy


def event_schema(*, inline: bool = False) -> dict[str, Any]:
    """JSON Schema of one event. inline : without `$ref`, for embedding in another document."""
    _, parts = msgspec.json.schema_components([exact(Event)], ref_template="#/$defs/{name}")
    parts = _tidy(parts)
    event = parts.pop("Event")
    _, reserved = msgspec.json.schema_components([exact(Attributes)], ref_template="#/$defs/{name}")
    attributes = next(
        option for option in event["properties"]["attributes"]["anyOf"] if "additionalProperties" in option
    )
    attributes["properties"] = _tidy(reserved)["Attributes"]["properties"]
    organisation = parts["Organisation"]
    given = {"not": {"type": "null"}}
    organisation["anyOf"] = [{"required": [name], "properties": {name: given}} for name in ("code", "name")]
    event["allOf"] = [
        {
            "if": {"properties": {"event_type": {"const": "REPORTED"}}},
            "then": {"required": ["matter_code"], "properties": {"matter_code": given}},
        },
        *(
            {
                "if": {"properties": {"event_type": {"const": event_type}}},
                "then": {
                    "required": ["attributes"],
                    "properties": {
                        "attributes": {"type": "object", "required": [name], "properties": {name: given}}
                    },
                },
            }
            for event_type, name in REQUIRED_ATTRIBUTE.items()
        ),
    ]
    if inline:
        resolved: dict[str, Any] = _resolve(event, parts)
        return resolved
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        "title": "Grid event, version 1",
        **event,
        "$defs": dict(sorted(parts.items())),
    }


def _resolve(node: Any, parts: dict[str, Any]) -> Any:
    if isinstance(node, list):
        return [_resolve(item, parts) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _resolve(parts[node["$ref"].rsplit("/", 1)[1]], parts)
    return {name: _resolve(value, parts) for name, value in node.items()}


def rendered() -> bytes:
    """The file `schemas/event.v1.json`, byte for byte."""
    return orjson.dumps(event_schema(), option=orjson.OPT_INDENT_2) + b"\n"


def main(arguments: list[str]) -> None:
    target = Path(arguments[0]) if arguments else Path(__file__).parents[2] / "schemas" / "event.v1.json"
    target.write_bytes(rendered())


if __name__ == "__main__":
    main(sys.argv[1:])
