"""Kafka's jars where the machine lacks what they need: one line that says what."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.kafka.jars import fetch
from pipeline.errors import UnavailableError
from pipeline.runtime.process import EXIT_UNREACHABLE

ROOT = Path(__file__).parents[2]
#: Says of itself what a Java 17 says, and does no more.
JAVA = "#!/bin/sh\necho '    java.specification.version = {version}' >&2\n"


def program(directory: Path, name: str, text: str) -> None:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(text)
    (directory / name).chmod(0o755)


def refusal(jars: Path) -> str:
    with pytest.raises(UnavailableError) as caught:
        fetch(jars)
    assert len(str(caught.value).splitlines()) == 1
    assert not list(jars.glob("jars-*")), "a directory that looks complete"
    return str(caught.value)


def test_without_java_and_maven_the_jars_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert "there is no java here" in refusal(tmp_path / "jars")


def test_what_is_missing_or_too_old_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tmp_path / "bin"
    monkeypatch.setenv("PATH", str(found))
    program(found, "java", JAVA.format(version="11"))
    assert "Java 17 or newer; this is 11" in refusal(tmp_path / "jars")
    program(found, "java", JAVA.format(version="17"))
    assert "there is no mvn here" in refusal(tmp_path / "jars")
    program(found, "mvn", "#!/bin/sh\necho '[ERROR] no repository answers'\necho '[ERROR] more'\nexit 1\n")
    assert refusal(tmp_path / "jars") == "Maven cannot fetch Kafka's jars: [ERROR] no repository answers"


def test_the_command_ends_in_one_line_too(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "infra.kafka", f"--data-dir={tmp_path}"],
        capture_output=True, text=True, check=False, timeout=60, cwd=ROOT, env=os.environ | {"PATH": ""},
    )  # fmt: skip
    assert done.returncode == EXIT_UNREACHABLE
    assert done.stderr.splitlines() == ["error: Kafka needs Java 17 or newer, and there is no java here"]
