"""The embedded engine: one process per data path, temporary files of its own, UTC.

Each case runs in a process of its own: a process can host one engine path, and the session has its own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import ConfigurationError
from pipeline.store.lock import DirectoryLock

OPEN = """
import os, sys, tempfile
from pathlib import Path
from pipeline.errors import ConfigurationError
from pipeline.store.engine import EmbeddedEngine
data = Path(sys.argv[1])
try:
    engine = EmbeddedEngine(data / "clickhouse", data / "tmp")
except ConfigurationError as error:
    print(error)
    sys.exit(2)
client = engine.new_client()
"""


def start(data_dir: Path, code: str, zone: str = "Asia/Shanghai") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", OPEN + code, str(data_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={"TZ": zone, "PATH": "/usr/bin:/bin"},
    )


def run(data_dir: Path, code: str) -> str:
    process = start(data_dir, code)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0, text
    return text


def test_what_was_stored_is_there_at_the_next_start(tmp_path: Path) -> None:
    run(
        tmp_path,
        'client.command("CREATE TABLE default.t (a Int8) ENGINE = MergeTree ORDER BY a")\n'
        'client.command("INSERT INTO default.t VALUES (7)")\nclient.close()\nengine.close()',
    )
    assert run(tmp_path, 'print(client.command("SELECT sum(a) FROM default.t"))') == "7\n"


def test_the_engine_thinks_in_utc_wherever_the_machine_stands(tmp_path: Path) -> None:
    text = run(tmp_path, 'print(client.command("SELECT timezone(), toString(toDateTime(0))"))')
    assert text == "['UTC', '1970-01-01 00:00:00']\n"


def test_temporary_files_lie_in_a_private_directory_that_every_start_empties(tmp_path: Path) -> None:
    left = tmp_path / "tmp" / "left.native"
    left.parent.mkdir()
    left.write_text("rows of a process that was killed")
    text = run(tmp_path, 'print(tempfile.gettempdir(), oct((data / "tmp").stat().st_mode & 0o777))')
    assert text == f"{tmp_path / 'tmp'} 0o700\n"
    assert not left.exists()


def test_inserts_are_synchronous_on_every_client(tmp_path: Path) -> None:
    assert run(tmp_path, "print(client.command(\"SELECT getSetting('async_insert')\"))") == "false\n"


def test_a_second_process_is_told_who_holds_the_directory(tmp_path: Path) -> None:
    holder = start(tmp_path, 'print("open", flush=True)\nsys.stdin.readline()')
    assert holder.stdout is not None
    assert holder.stdout.readline() == "open\n"
    second = start(tmp_path, "")
    text, _ = second.communicate(timeout=60)
    assert second.returncode == 2
    assert text == (
        f"data directory {tmp_path} is used by gridpipe pid {holder.pid}; "
        "stop it or choose another --data-dir\n"
    )
    holder.kill()
    holder.communicate(timeout=30)
    # The lock dies with its holder.
    assert run(tmp_path, 'print("open")') == "open\n"


def test_a_lock_can_be_taken_again_after_its_release(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path / "lock", tmp_path)
    with pytest.raises(ConfigurationError, match="is used by gridpipe pid"):
        DirectoryLock(tmp_path / "lock", tmp_path)
    lock.release()
    lock.release()
    DirectoryLock(tmp_path / "lock", tmp_path).release()
    assert (tmp_path / "lock").stat().st_mode & 0o077 == 0
