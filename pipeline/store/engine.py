"""The embedded ClickHouse (chDB): one process owns a data path, every thread role has a client of its own."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import clickhouse_connect
from clickhouse_connect.driver.client import Client

from pipeline.errors import ConfigurationError
from pipeline.store.lock import DirectoryLock

#: Set on every client: the engine's own default hands the acknowledgement of an insert to a later flush.
CLIENT_SETTINGS = {"async_insert": "0"}
#: The engine says that an insert is done though the disk took only half of a part (EFBIG, EDQUOT, ENOSPC in
#: the last write): the part cannot be read afterwards. Below this much free space it refuses beforehand (code
#: 243), and nobody takes as much during one insert.
MIN_FREE_BYTES = 64 * 1024 * 1024
_FREE_SETTINGS = {"min_free_disk_bytes_to_perform_insert": str(MIN_FREE_BYTES)}
_CRASHES: Final = (signal.SIGSEGV, signal.SIGFPE, signal.SIGABRT, signal.SIGBUS, signal.SIGILL)


def _connect(path: str) -> Any:
    # The engine takes its time zone from the process when it is loaded, and loading it is dear.
    import chdb  # noqa: PLC0415

    connect: Callable[[str], Any] = chdb.connect
    return connect(path)


def _end_by_native_crashes() -> None:
    """A native crash ends this process at once, with the tracebacks of its threads on stderr.

    The engine puts handlers of its own before `faulthandler` when it is loaded. They wait up to five minutes
    for a report that only a server's thread writes, and say nothing.
    """
    faulthandler.disable()
    libc = ctypes.CDLL(None)
    for number in _CRASHES:
        # not signal.signal, which works in the main thread only; 0: SIG_DFL, to which `faulthandler` hands on
        libc.signal(int(number), None)
    faulthandler.enable(2)  # the descriptor: sys.stderr may stand for something without one


class EmbeddedEngine:
    """ClickHouse inside this process, on the directory `path`.

    path : the engine's data; locked with a file beside it, so that a second process gets a clear message.
    tmp_dir : private directory (0700) for insert files, emptied at start; Python's and the engine's temporary
        files lie there, never in a directory that other users can read.

    Raises ConfigurationError if another process uses `path` or the engine cannot open it.
    Source: reliability D2 (lock), D3 (one client per role), D4 (temporary files), D5 (time zone), D6 (native
    crashes).
    """

    def __init__(self, path: Path, tmp_dir: Path) -> None:
        os.environ["TZ"] = "UTC"  # the engine's server time zone is the host's
        time.tzset()
        self.path = path.resolve()
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = DirectoryLock(self.path.with_name(self.path.name + ".lock"), path.parent)
        try:
            self._prepare_tmp(tmp_dir)
            # Held open for the engine's whole life: with no handle left the engine would shut down.
            self._anchor: Any = _connect(str(self.path))
        except RuntimeError as error:
            self._lock.release()
            raise ConfigurationError(
                f"the embedded ClickHouse cannot open {path}: "
                f"{error or 'this process has another engine open'}"
            ) from error
        except BaseException:
            self._lock.release()
            raise
        _end_by_native_crashes()
        zone = self._anchor.query("SELECT timezone()", "TabSeparated").bytes().decode().strip()
        if zone != "UTC":
            self.close()
            raise ConfigurationError(f"the embedded ClickHouse took time zone {zone}; start with TZ=UTC")

    @staticmethod
    def _prepare_tmp(tmp_dir: Path) -> None:
        shutil.rmtree(tmp_dir, ignore_errors=True)
        tmp_dir.mkdir(parents=True, mode=0o700)
        tmp_dir.chmod(0o700)
        os.environ["TMPDIR"] = str(tmp_dir.resolve())
        tempfile.tempdir = str(tmp_dir.resolve())

    def new_client(self, database: str | None = None) -> Client:
        """A client with a handle of its own. A client must not be shared by threads that stream results."""
        return clickhouse_connect.get_client(
            interface="chdb",
            path=str(self.path),
            database=database,
            settings=CLIENT_SETTINGS | _FREE_SETTINGS,
        )

    def new_handle(self) -> Any:
        """A raw chDB connection; session state (`USE`, `SET`) is the handle's own."""
        handle = _connect(str(self.path))
        for name, value in _FREE_SETTINGS.items():
            handle.query(f"SET {name} = {value}")
        return handle

    def close(self) -> None:
        """Close the engine and free the lock. Clients and handles must be closed before."""
        if self._anchor is not None:
            self._anchor.close()
            self._anchor = None
        self._lock.release()
