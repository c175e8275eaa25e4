"""Kafka's jars where the machine lacks what they need: one line that says what."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra.kafka.jars import fetch
from pipeline.errors import UnavailableError
from pipeline.runtime.process import EXIT_UNREACHABLE
from tests import kafka

ROOT = Path(__file__).parents[2]
#: Says of itself what a Java 17 says, and does no more.
JAVA = "#!/bin/sh\necho '    java.specification.version = {version}' >&2\n"
#: Copies two jars, one some time after the other, and counts its calls. Works where its pom lies.
MAVEN = """#!/bin/sh
PATH=/bin:/usr/bin
cd /proc
echo called >> {calls}
for word in "$@"; do case $word in -DoutputDirectory=*) to=${{word#*=}} ;; esac; done
mkdir -p "$to" && echo 1 > "$to/one.jar" && sleep {seconds} && echo 2 > "$to/two.jar"
"""


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


def test_two_that_fetch_at_once_have_the_jars_of_one_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, jars, calls = tmp_path / "bin", Path("jars"), tmp_path / "calls"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(found))
    program(found, "java", JAVA.format(version="17"))
    program(found, "mvn", MAVEN.format(calls=calls, seconds=0.5))
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(fetch, jars)
        time.sleep(0.2)
        others = [pool.submit(fetch, jars) for _ in range(2)]
        (target,) = {taken.result() for taken in (first, *others)}
    assert sorted(jar.name for jar in target.iterdir()) == ["one.jar", "two.jar"]
    assert [path.resolve() for path in jars.iterdir() if path.is_dir()] == [target], (
        "nothing half done is left"
    )
    assert calls.read_text().splitlines() == ["called"]


def test_what_a_killed_process_left_is_neither_taken_for_complete_nor_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, jars = tmp_path / "bin", tmp_path / "jars"
    monkeypatch.setenv("PATH", str(found))
    program(found, "java", JAVA.format(version="17"))
    program(found, "mvn", MAVEN.format(calls=tmp_path / "calls", seconds=0))
    target = fetch(jars)
    half = target.rename(target.with_suffix(".killed"))
    (half / "one.jar").unlink()
    assert sorted(jar.name for jar in fetch(jars).iterdir()) == ["one.jar", "two.jar"]
    assert not half.exists()


def test_neither_maven_nor_another_process_is_waited_for_longer_than_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, jars, calls = tmp_path / "bin", tmp_path / "jars", tmp_path / "calls"
    monkeypatch.setenv("PATH", str(found))
    program(found, "java", JAVA.format(version="17"))
    program(found, "mvn", f"#!/bin/sh\necho called >> {calls}\nexec /bin/sleep 60\n")
    with ThreadPoolExecutor(1) as pool:
        started = time.monotonic()
        first = pool.submit(fetch, jars, seconds=3)
        while not calls.exists():
            time.sleep(0.05)
        with pytest.raises(UnavailableError, match=r"another process did not fetch .* within 0\.3 s"):
            fetch(jars, seconds=0.3)
        with pytest.raises(UnavailableError, match=r"Maven did not fetch .* within 3 s"):
            first.result()
    assert time.monotonic() - started < 15
    assert [path for path in jars.iterdir() if path.is_dir()] == []


def test_a_session_tries_once_and_its_other_tests_are_skipped_for_the_same_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, calls = tmp_path / "bin", tmp_path / "calls"
    monkeypatch.setenv("PATH", str(found))
    monkeypatch.setenv("KAFKA_REFUSED", str(tmp_path / "refused"))
    monkeypatch.setattr(kafka, "JARS", tmp_path / "jars")
    monkeypatch.setattr(kafka, "FETCH_SECONDS", 0.5)
    program(found, "java", JAVA.format(version="17"))
    program(found, "mvn", f"#!/bin/sh\necho called >> {calls}\nexec /bin/sleep 60\n")

    def skipped(_: int) -> str:
        with pytest.raises(pytest.skip.Exception) as caught:
            kafka.need_kafka()
        return str(caught.value)

    with ThreadPoolExecutor(2) as pool:  # two at once, as test processes are, and one after them
        reasons = {*pool.map(skipped, range(2)), skipped(3)}
    assert reasons == {
        "needs a real Kafka (make kafka): Maven did not fetch Kafka's jars within 0.5 s",
    }
    assert calls.read_text().splitlines() == ["called"]


def test_a_test_without_kafka_is_skipped_before_its_time_is_over(request: pytest.FixtureRequest) -> None:
    assert kafka.FETCH_SECONDS <= 120
    assert float(request.config.getini("timeout")) >= kafka.FETCH_SECONDS + 30


def test_the_command_ends_in_one_line_too(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "infra.kafka", f"--data-dir={tmp_path}"],
        capture_output=True, text=True, check=False, timeout=60, cwd=ROOT, env=os.environ | {"PATH": ""},
    )  # fmt: skip
    assert done.returncode == EXIT_UNREACHABLE
    assert done.stderr.splitlines() == ["error: Kafka needs Java 17 or newer, and there is no java here"]
