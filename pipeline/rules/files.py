"""Reads catalogue files so that every mistake can be told with its file and line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

#: Where a value stands in its file: keys and indices from the top.
Place = tuple[str | int, ...]
#: The parser in C, where the installed package has it: ten times as fast.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_STEP = re.compile(r"\[(\d+)\]|\.(\w+)")
ItemType = TypeVar("ItemType", bound=msgspec.Struct)


@dataclass
class Problems:
    """Collects every problem of a directory, so that one run names them all."""

    lines: list[str] = field(default_factory=list)

    def add(self, file: Path, line: int, text: str) -> None:
        self.lines.append(f"{file}:{line}: {text}")


@dataclass(frozen=True)
class Document:
    """A parsed file: plain values, the line (from 1) of each, and the text that they stand in."""

    path: Path
    values: Mapping[str, Any]
    lines: Mapping[Place, int]
    text: str

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
    reading = _Reading(path, problems)
    values = reading.values(text)
    if reading.broken:
        return None
    document = Document(path, values if isinstance(values, dict) else {}, reading.lines, text)
    expected = tuple(keys)
    if not isinstance(values, dict):
        problems.add(path, 1, f"must be a mapping with the keys {', '.join(expected)}")
        return None
    complete = True
    for key in expected:
        if key not in values:
            problems.add(path, 1, f"{key} is missing at the top level")
            complete = False
    for key in values:
        if key not in expected:
            problems.add(path, document.line(key), f"{key}: unknown key{did_you_mean(str(key), expected)}")
    return document if complete else None


class _Reading:
    """Turns one YAML text into plain values, noting the line of each."""

    def __init__(self, path: Path, problems: Problems) -> None:
        self.lines: dict[Place, int] = {(): 1}
        self.broken = False
        self._path = path
        self._problems = problems
        self._seen: set[int] = set()

    def values(self, text: str) -> Any:
        """Values of the document; None and `broken` when it is no YAML that we take."""
        try:
            loader = _Loader(text)
            try:
                node = loader.get_single_node()
                return None if node is None else self._value(loader, node, ())
            finally:
                loader.dispose()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            self._refuse((mark.line if mark else 0) + 1, f"not valid YAML: {error.problem}")
        except yaml.YAMLError as error:
            self._refuse(1, f"not valid YAML: {' '.join(str(error).split())}")
        return None

    def _value(self, loader: Any, node: Any, place: Place) -> Any:
        line = node.start_mark.line + 1
        if id(node) in self._seen:
            self._refuse(line, "aliases (*name) are not taken; write the value out")
            return None
        self._seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            for number, item in enumerate(node.value):
                self.lines[*place, number] = item.start_mark.line + 1
            return [self._value(loader, item, (*place, number)) for number, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            result: dict[str, Any] = {}
            for key_node, value_node in node.value:
                key = str(key_node.value)
                here = (*place, key)
                if key in result:
                    self._refuse(key_node.start_mark.line + 1, f"{key} appears twice; keep one")
                self.lines[here] = key_node.start_mark.line + 1
                result[key] = self._value(loader, value_node, here)
            return result
        try:
            return loader.construct_object(node)
        except ValueError as error:  # a date such as 2022-13-01
            self._refuse(line, f"{node.value}: {error}")
            return None

    def _refuse(self, line: int, text: str) -> None:
        self.broken = True
        self._problems.add(self._path, line, text)


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
    prefix = _label(entry)
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
            text, below = _locate(error)
            found = entry[name] if not below else None
            shown = "" if isinstance(found, dict | list | None) else f"; found {found!r}"
            problems.add(document.path, document.line(*place, name, *below), f"{prefix}{name}: {text}{shown}")
            sound = False
    return kind(**values) if sound else None


def _label(entry: dict[str, Any]) -> str:
    """How problems call an entry: by its code, name or rule number."""
    for key in ("code", "name", "number"):
        value = entry.get(key)
        if isinstance(value, str | int) and value != "":
            return f"rule {value}: " if key == "number" else f"{value}: "
    return ""


def _locate(error: msgspec.ValidationError) -> tuple[str, Place]:
    """The sentence of an error, and the place below the value at which it arose ("... - at `$[0].code`")."""
    text, _, path = str(error).rpartition(" - at ")
    if not text:
        return str(error), ()
    steps = _STEP.findall(path)
    return text, tuple(int(index) if index else key for index, key in steps)


def did_you_mean(word: str, words: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(words), n=1)
    return f"; did you mean {near[0]}?" if near else ""
