"""The definition of the reference files: published schemas, templates and architecture notes follow it."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import jsonschema
import orjson
import pytest

from pipeline.errors import ConfigurationError
from pipeline.reference.load import write_templates
from pipeline.reference.schema import KINDS, Kind, json_schema, write_schemas

ROOT = Path(__file__).parents[2]
EVERY_KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))


def test_published_schemas_are_the_generated_ones(tmp_path: Path) -> None:
    write_schemas(tmp_path)
    published = {path.name: path.read_bytes() for path in (ROOT / "schemas" / "reference").iterdir()}
    assert published == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


@EVERY_KIND
def test_schema_is_valid_json_schema(kind: Kind) -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema(kind))


@EVERY_KIND
def test_architecture_names_exactly_these_columns(kind: Kind) -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    row = re.search(rf"^\| {kind.name} \| (.*) \|$", text, re.M)
    assert row is not None
    plain = re.sub(r"\([^()]*\)", "", row[1])
    named = set(re.findall(r"[a-z][a-z0-9_]+", plain)) - {"or"}
    assert named == set(kind.names)


def test_schema_accepts_a_row_and_refuses_another() -> None:
    schema = json_schema(KINDS["persons"])
    good = {"person_key": "ab" * 32, "key_version": 1, "elderly_alone_flag": True}
    jsonschema.validate(good, schema)
    for bad in ({**good, "religion": "x"}, {"key_version": 1}, {**good, "gender": "m"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, schema)


def test_what_must_not_be_stored_is_no_attribute() -> None:
    persons = KINDS["persons"]
    assert not {"id_number", "birth_date"} & set(persons.attributes)
    assert {column.name for column in persons.columns if not column.stored} == {"id_number", "birth_date"}


def test_templates_have_the_columns_and_keep_existing_files(tmp_path: Path) -> None:
    (tmp_path / "modes.csv").write_text("mode\nflood\n")
    written = write_templates(tmp_path)
    assert {path.stem for path in written} == set(KINDS) - {"modes"}
    for path in written:
        with path.open(newline="") as file:
            assert next(csv.reader(file)) == list(KINDS[path.stem].names)
    assert (tmp_path / "modes.csv").read_text() == "mode\nflood\n"
    assert write_templates(tmp_path) == []


def test_templates_say_when_the_directory_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot write templates"):
        write_templates(tmp_path / "file")


def test_schema_documents_every_column() -> None:
    for path in (ROOT / "schemas" / "reference").iterdir():
        properties = orjson.loads(path.read_bytes())["properties"]
        assert all(entry["description"] for entry in properties.values())
