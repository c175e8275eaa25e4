"""One process per data directory: an advisory lock that dies with its holder, even on kill -9."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from pipeline.errors import ConfigurationError


class DirectoryLock:
    """Holds `path` exclusively from construction to `release`.

    path : the lock file; it carries the holder's pid so that a second start can name it.
    directory : what the lock stands for, named in the message.

    Raises ConfigurationError if another process holds it.
    Source: design 6 (the embedded ClickHouse allows one process per path).
    """

    def __init__(self, path: Path, directory: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._file, 32).decode(errors="replace").strip() or "unknown"
            os.close(self._file)
            raise ConfigurationError(
                f"data directory {directory} is used by gridpipe pid {holder}; "
                "stop it or choose another --data-dir"
            ) from None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let the directory go; calling it twice is fine."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
