"""What every gridpipe process does first, and how a parent starts its children."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from pipeline.errors import ConfigurationError, GridpipeError, UnavailableError
from pipeline.settings import Settings

_PR_SET_PDEATHSIG: Final = 1
EXIT_CONFIGURATION: Final = 2
EXIT_UNREACHABLE: Final = 3
EXIT_FAILED: Final = 1
#: The supervisor's order to drain. Not SIGTERM: a service manager may have sent that to every process, and
#: the order that follows would count as the second signal.
STOP_ORDER: Final = signal.SIGUSR1


def harden() -> None:
    """Files readable by this user only, no core dumps (they would hold personal data), tracebacks of native
    crashes. Source: reliability f.19, D6."""
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.enable()


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent ends, however it ends.

    parent : the pid that started this process; if it is gone already, this process ends at once.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(EXIT_FAILED)


def end_at_once(last_words: str) -> NoReturn:
    """For a second signal: a line on stderr, exit 1, nothing else."""
    try:
        # not through the stream: who hangs may hold its lock
        os.write(2, f"error: second signal: {last_words}\n".encode())
    finally:
        os._exit(EXIT_FAILED)


def leave(code: int) -> NoReturn:
    """End without waiting for threads, as the interpreter would: a store that does not answer keeps whoever
    reads from it, when nobody waits for what is read any more."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def obey_signals(
    stop: Callable[[], object], *, last_words: str, kill: Callable[[], object] | None = None
) -> None:
    """From now on the first SIGTERM or SIGINT calls `stop`, a second one ends this process at once with 1.

    `STOP_ORDER` calls `stop` too, and is never the second. last_words : on stderr, before it ends so; kill :
    called first then. All in a thread of its own: what hangs may be the event loop, or the main thread inside
    the engine. Call this in the main thread. Source: reliability c.12.
    """
    hears, told = socket.socketpair()
    told.setblocking(False)
    asking = (signal.SIGTERM, signal.SIGINT, STOP_ORDER)
    for number in asking:
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)

    def listen(_: socket.socket) -> None:
        asked = False
        while True:
            number = hears.recv(1)[0]
            if number == STOP_ORDER:
                stop()
            elif number in asking:
                if asked:
                    break
                asked = True
                stop()
        try:
            if kill is not None:
                kill()
        finally:
            end_at_once(last_words)

    # with `told` as an argument, which keeps it open
    threading.Thread(target=listen, args=(told,), name="signals", daemon=True).start()


@dataclass(frozen=True)
class Order:
    """What a parent tells a child over its standard input: no secret in arguments or environment.

    settings : as the parent has them, flags included, and set where they were set there, not by default;
    details : what this role needs besides.
    """

    settings: Settings
    details: dict[str, Any]


def receive_order() -> Order:
    """Read the order of the parent, then bind this process's life to it. Called first in a child's main."""
    message = json.loads(sys.stdin.readline())
    harden()
    die_with_parent(message["parent"])
    return Order(Settings(**message["settings"]), message["details"])


class Child:
    """A process of the service, started from module `module` with an order.

    Start it from a thread that lives as long as the child: the kernel takes the end of the starting thread
    for the end of the parent.
    """

    def __init__(
        self,
        role: str,
        module: str,
        settings: Settings,
        details: dict[str, Any],
        *,
        fds: tuple[int, ...] = (),
    ) -> None:
        self.role = role
        self.problem_path = settings.run_dir / f"{role}.problem"
        self.problem_path.unlink(missing_ok=True)
        self.log_path = settings.log_dir / f"{role}.out"
        order = {
            "parent": os.getpid(),
            # the rest are defaults there as here: what asks whether somebody set a setting must not be misled
            "settings": settings.model_dump(mode="json", exclude_unset=True),
            "details": details | {"problem": str(self.problem_path)},
        }
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        output = os.open(self.log_path, flags, 0o600)
        try:
            self.process = subprocess.Popen(  # noqa: S603  our own interpreter and module
                [sys.executable, "-X", "faulthandler", "-m", module],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=fds,
                # Ctrl-C in a terminal reaches the parent only; it stops the children in order.
                start_new_session=True,
                env=os.environ | {"TZ": "UTC", "PYTHONUNBUFFERED": "1"},
            )
        finally:
            os.close(output)
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once; the exit code tells
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            self.process.stdin.close()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: killed by that signal."""
        return self.process.poll()

    def problem(self) -> GridpipeError | None:
        """Why it refused to start, if it said so."""
        try:
            lines = json.loads(self.problem_path.read_text())
        except (FileNotFoundError, ValueError):
            return None
        if self.exit_code == EXIT_UNREACHABLE:
            return UnavailableError("; ".join(lines))
        return ConfigurationError(lines)

    def stop(self, timeout_seconds: float, number: signal.Signals = signal.SIGTERM) -> None:
        """Ask it to end, by signal `number`; kill it when it has not ended in time."""
        if self.exit_code is None:
            self.process.send_signal(number)
            try:
                self.process.wait(timeout_seconds)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """End it at once."""
        if self.exit_code is None:
            self.process.kill()
        self.process.wait()


def report_problem(order: Order, error: GridpipeError) -> int:
    """Leave the reason for refusing where the parent looks for it. Returns the exit code."""
    lines = error.problems if isinstance(error, ConfigurationError) else (str(error),)
    Path(order.details["problem"]).write_text(json.dumps(list(lines)))
    for line in lines:
        sys.stderr.write(f"error: {line}\n")
    return EXIT_UNREACHABLE if isinstance(error, UnavailableError) else EXIT_CONFIGURATION
