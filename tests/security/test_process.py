"""What a process does for its secrets whatever started it: files of its user alone, comparisons that take as
long for a wrong guess as for a better one."""

from __future__ import annotations

import ast
import hmac
import stat
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

import pipeline
from pipeline.ingest.keys import KeyStore
from pipeline.ingest.problem import ProblemError
from pipeline.ingest.signing import Claim, Signatures, Signed
from pipeline.store.bridge import _Guard

#: A file and a directory made without a word about their modes, as libraries make theirs.
_MAKE: Final = "import os; open('file', 'w').close(); os.mkdir('directory')"
_ROLE: Final = f"from pipeline.runtime.process import harden; harden(); {_MAKE}"
_COMMAND: Final = f"""
from pipeline.cli import main
def made():
    {_MAKE}
main.build = lambda: made
main.run()
"""
#: Names that hold what a stranger must not learn bit by bit.
_SECRET_NAMES: Final = {"secret", "token", "_token", "password", "_password", "signature", "bearer"}


def _modes(directory: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}


@pytest.mark.parametrize("code", [_ROLE, _COMMAND], ids=["role", "command"])
@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_what_a_process_makes_is_its_users_alone_whatever_the_umask_of_the_shell(
    tmp_path: Path, code: str, umask: int
) -> None:
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, umask=umask, check=True, timeout=100)
    assert _modes(tmp_path) == {"file": 0o600, "directory": 0o700}


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str | bytes, str | bytes]]:
    """What was compared in constant time."""
    found: list[tuple[str | bytes, str | bytes]] = []
    plain = hmac.compare_digest

    def compare(one: str | bytes, other: str | bytes) -> bool:
        found.append((one, other))
        return plain(one, other)  # type: ignore[arg-type]

    monkeypatch.setattr(hmac, "compare_digest", compare)
    return found


def test_a_key_is_compared_in_constant_time_whoever_is_named(
    tmp_path: Path, compared: list[tuple[str | bytes, str | bytes]]
) -> None:
    keys = KeyStore(tmp_path / "keys.json")
    right = keys.create("source")
    number = right.split("_")[1]
    for bearer, known in (
        (right, True),
        (f"gp_{number}_{'x' * 43}", False),
        (f"gp_{'0' * 12}_{'x' * 43}", False),  # nobody's
        ("nonsense", False),
    ):
        before = len(compared)
        assert (keys.verify(bearer) is not None) == known
        (pair,) = compared[before:]
        assert [len(side) for side in pair] == [64, 64], "another length ends a comparison early"


def test_a_signature_is_compared_in_constant_time_whoever_is_named(
    tmp_path: Path, compared: list[tuple[str | bytes, str | bytes]]
) -> None:
    keys = KeyStore(tmp_path / "keys.json")
    number = keys.create("source", signed=True).split("_")[1]
    signatures = Signatures(keys, tmp_path / "nonces.sqlite")
    for key_id in (number, "0" * 12):
        with pytest.raises(ProblemError):
            signatures.verify(Claim(key_id, "1", "n" * 24, "0" * 64), Signed("POST", "/", "", "", b""))
    assert [given for _, given in compared] == ["0" * 64] * 2
    assert all(len(expected) == 64 for expected, _ in compared)


async def test_the_stores_token_is_compared_in_constant_time(
    compared: list[tuple[str | bytes, str | bytes]],
) -> None:
    async def app(*_: object) -> None:
        raise AssertionError("let through")

    async def send(_message: object) -> None:
        return

    headers = [(b"x-clickhouse-key", b"wrong")]
    await _Guard(app, "right")({"type": "http", "path": "/", "headers": headers}, None, send)
    assert compared == [(b"wrong", b"right")]


def test_nothing_secret_is_compared_by_the_operator() -> None:
    found = []
    for path in sorted(Path(pipeline.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Compare) or not {type(op) for op in node.ops} & {ast.Eq, ast.NotEq}:
                continue
            for side in (node.left, *node.comparators):
                name = getattr(side, "id", getattr(side, "attr", ""))
                if name in _SECRET_NAMES:
                    found.append(f"{path.name}:{node.lineno}: {name}")
    assert not found
