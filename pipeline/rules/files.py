"""Reads catalogue files so that every mistake can be told with its file and line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.scalarfloat import ScalarFloat
from ruamel.yaml.timestamp import TimeStamp

#: Where a value stands in its file: keys and indices from the top.
Place = tuple[str | int, ...]
ItemType = TypeVar("ItemType", bound=msgspec.Struct)


@dataclass
class Problems:
    """Collects every problem of a directory, so that one run names them all."""

    lines: list[str] = field(default_factory=list)

    def add(self, file: Path, line: int, text: str) -> None:
        self.lines.append(f"{file}:{line}: {text}")


@dataclass(frozen=True)
class Document:
    """A parsed file: plain values, and the line (from 1) of each."""

    path: Path
    values: Mapping[str, Any]
    lines: Mapping[Place, int]

    def line(self, *place: str | int) -> int:
        """Line of the value at `place`, or of the nearest value that holds it."""
        while place not in self.lines and place:
            place = place[:-1]
        return self.lines.get(place, 1)


def read_document(path: Path, problems: Problems, *, keys: Iterable[str]) -> Document | None:
    """Parse a YAML file whose top level must have exactly `keys`.

    None, and a problem, when it cannot be read or a key is missing.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        problems.add(path, 1, "the file is missing; restore it, half a catalogue is not loaded")
        return None
    except (OSError, UnicodeDecodeError) as error:
        problems.add(path, 1, f"cannot be read as UTF-8 text: {error}")
        return None
    try:
        tree = YAML().load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        text = " ".join((error.problem or "not valid YAML").splitlines()[0].split())
        problems.add(path, (mark.line if mark else 0) + 1, f"not valid YAML: {text}")
        return None
    except YAMLError as error:
        problems.add(path, 1, f"not valid YAML: {error}")
        return None
    lines: dict[Place, int] = {(): 1}
    values = _plain(tree, (), lines)
    if not isinstance(values, dict):
        problems.add(path, 1, f"must be a mapping with the keys {', '.join(keys)}")
        return None
    document = Document(path, values, lines)
    expected = tuple(keys)
    complete = True
    for key in expected:
        if key not in values:
            problems.add(path, 1, f"{key} is missing at the top level")
            complete = False
    for key in values:
        if key not in expected:
            problems.add(path, document.line(key), f"{key}: unknown key{did_you_mean(str(key), expected)}")
    return document if complete else None


def _plain(node: Any, place: Place, lines: dict[Place, int]) -> Any:
    """The node's plain Python value; notes the line of everything below it."""
    if isinstance(node, CommentedMap):
        result = {}
        for key, value in node.items():
            here = (*place, str(key))
            lines[here] = node.lc.key(key)[0] + 1
            result[str(key)] = _plain(value, here, lines)
        return result
    if isinstance(node, CommentedSeq):
        items = []
        for number, value in enumerate(node):
            here = (*place, number)
            lines[here] = node.lc.item(number)[0] + 1
            items.append(_plain(value, here, lines))
        return items
    if isinstance(node, ScalarFloat):
        return float(node)
    if isinstance(node, TimeStamp):
        return datetime.combine(node.date(), node.time(), node.tzinfo or UTC).astimezone(UTC)
    return str(node) if isinstance(node, str) else node


def read_items(
    document: Document, key: str, kind: type[ItemType], problems: Problems
) -> Iterator[tuple[int, ItemType]]:
    """The entries of the list `key`, each with its index; broken entries are problems and left out."""
    entries = document.values[key]
    if not isinstance(entries, list):
        problems.add(document.path, document.line(key), f"{key} must be a list")
        return
    for number, entry in enumerate(entries):
        item = read_item(document, (key, number), entry, kind, problems)
        if item is not None:
            yield number, item


def read_item(
    document: Document, place: Place, entry: Any, kind: type[ItemType], problems: Problems
) -> ItemType | None:
    """One entry as `kind`; every key that is wrong, missing or unknown is a problem of its own."""
    if not isinstance(entry, dict):
        problems.add(document.path, document.line(*place), f"must be a mapping, not {type(entry).__name__}")
        return None
    label = entry.get("code", entry.get("name", entry.get("number", "")))
    prefix = f"{label}: " if isinstance(label, str | int) and label != "" else ""
    fields = {item.encode_name: item for item in msgspec.structs.fields(kind)}
    values: dict[str, Any] = {}
    sound = True
    for name in entry:
        if name not in fields:
            text = f"{prefix}{name}: unknown key{did_you_mean(name, fields)}"
            problems.add(document.path, document.line(*place, name), text)
            sound = False
    for name, item in fields.items():
        if name not in entry:
            if item.required:
                problems.add(document.path, document.line(*place), f"{prefix}{name} is missing")
                sound = False
            continue
        try:
            values[item.name] = msgspec.convert(entry[name], item.type)
        except msgspec.ValidationError as error:
            line = document.line(*place, name)
            problems.add(document.path, line, f"{prefix}{name}: {error}; found {entry[name]!r}")
            sound = False
    return kind(**values) if sound else None


def did_you_mean(word: str, words: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(words), n=1)
    return f"; did you mean {near[0]}?" if near else ""
