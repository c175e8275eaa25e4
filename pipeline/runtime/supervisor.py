"""Runs the whole service on one machine: broker, store process, HTTP process, and the simulated city."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

import httpx

from pipeline import logs
from pipeline.contract.privacy import Privacy
from pipeline.errors import ConfigurationError, GridpipeError, UnavailableError
from pipeline.kafka_access import librdkafka_options
from pipeline.runtime import broker, topic_settings
from pipeline.runtime.access import LOCAL_SOURCE, READ_SOURCE
from pipeline.runtime.guard import check_broker, check_start, open_to_others, warn_unprotected
from pipeline.runtime.process import EXIT_CONFIGURATION, EXIT_UNREACHABLE, STOP_ORDER, Child
from pipeline.runtime.roll import LogRoll, LogState
from pipeline.runtime.standin import StandIn
from pipeline.runtime.valve import Valve
from pipeline.settings import Settings, is_loopback, split_address
from pipeline.store.client import BridgeAddress, connect_server
from pipeline.store.key_ring import hold_ring
from pipeline.store.lock import DirectoryLock
from pipeline.tls import admin_is_secure

READY_SECONDS: Final = 120.0
#: Kinds of reference data that the simulated city always has. They are loaded in a fixed order: with the last
#: of these its residents are there too, if it has any.
_CITY_AWAITED: Final = ("grids", "units", "staff", "organisations")
#: Stop: HTTP first (running requests get their answer), then the worker's drain, then the broker: 25 s.
_STOP_SECONDS: Final = {"city": 1.0, "http": 4.5, "store": 19.0}
#: Not longer: a start costs some three seconds of a core, a closed gateway costs the city its reports.
_BACKOFF_SECONDS: Final = (0.2, 0.5, 1.0, 2.0, 5.0)
#: A child that lived this long starts again with the shortest backoff.
_STEADY_SECONDS: Final = 60.0
_TICK_SECONDS: Final = 0.1
_GREETING_SECONDS: Final = 0.2
#: How a child ends that was asked to: in order, or before it had begun and could hear the order.
_FINISHED: Final = (0, -signal.SIGTERM, -STOP_ORDER)

log = logs.get_logger(__name__)


@dataclass
class _Role:
    """How to start one child, and how often it died lately."""

    start: Callable[[], Child]
    child: Child | None = None
    deaths: int = 0
    started_at: float = 0.0
    start_at: float = 0.0


@dataclass
class _State:
    """Shared between the supervising thread and the callers."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    failure: GridpipeError | None = None
    ready: threading.Event = field(default_factory=threading.Event)
    stopping: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)


def simulates_by_default(settings: Settings) -> bool:
    """Whether `up` feeds the simulated city unasked: only into embedded stores that hold no real city."""
    return settings.kafka is None and settings.clickhouse is None and not settings.own_reference_path.exists()


class Supervisor:
    """The service as child processes of this one.

    >>> with Supervisor(settings, simulate=False, quiet=True) as up:  # doctest: +SKIP
    ...     up.wait_ready()
    ...     up.url, up.local_key, up.pids

    simulate : also load the simulated city and feed it; None: as `simulates_by_default` says; quiet : write
    no log of our own to the terminal.
    `new_key` is True when this start made `local_key`.

    A child that dies is started again. When the embedded broker dies its log is gone: HTTP and store are
    killed first, so that nothing sent to the old log can be acknowledged from offsets of the new one; until
    the next HTTP process is there, callers get 503. Children are killed by the kernel when this process ends
    in any way.

    Source: design 6; reliability T1 (the memory broker), D6 (native crash of the engine).
    """

    def __init__(self, settings: Settings, *, simulate: bool | None = None, quiet: bool = False) -> None:
        self.settings = settings
        self.quiet = quiet
        self.local_key = ""
        self.new_key = False
        self.simulates = simulates_by_default(settings) if simulate is None else simulate
        self._asked_to_simulate = simulate is True
        self._state = _State()
        self._roles: dict[str, _Role] = {}
        self._broker: Child | None = None
        self._valves: dict[str, Valve] = {}
        self._roll: LogRoll | None = None
        self._stand_in: StandIn | None = None
        self._unfinished: list[str] = []
        self._sockets: list[socket.socket] = []
        self._token = secrets.token_urlsafe(32)
        self._lock: DirectoryLock | None = None
        self._bootstrap = settings.kafka or ""
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    # --- for callers

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Address of the API, known from `start` on."""
        return _url(self._http, secure=self.settings.tls_cert is not None)

    @property
    def admin_url(self) -> str:
        """Where /metrics and /health answer."""
        return _url(self._admin or self._http, secure=admin_is_secure(self.settings))

    @property
    def read_headers(self) -> dict[str, str]:
        """What a reader on this machine must send: a key where the listener is public."""
        return {"Authorization": f"Bearer {self.local_key}"} if self._public else {}

    @property
    def unfinished(self) -> tuple[str, ...]:
        """After `stop`: children that had to be killed, or that ended without having finished."""
        return tuple(self._unfinished)

    @property
    def pids(self) -> dict[str, int]:
        """Running children by role: broker, store, http, city."""
        with self._state.lock:
            found = {name: role.child for name, role in self._roles.items()} | {"broker": self._broker}
        return {name: child.pid for name, child in found.items() if child and child.exit_code is None}

    def start(self) -> None:
        """Check everything that can be checked here, then start the children.

        Raises ConfigurationError (directory in use, port in use, broken catalogue or key file).
        """
        try:
            self._prepare()
        except BaseException:
            self._release()
            raise
        self._thread.start()

    def wait_ready(self, seconds: float = READY_SECONDS) -> None:
        """Return when the service answers that it is ready.

        Raises what made a child refuse to start, UnavailableError when time is up.
        """
        deadline = time.monotonic() + seconds
        while not self.ready_within(0.05):
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"the service was not ready within {seconds:g} s; see {self.settings.log_dir}"
                )

    def ready_within(self, seconds: float) -> bool:
        """Whether the service was ready once, waiting at most `seconds`. Raises as `wait_ready`."""
        if self._state.ready.wait(seconds):
            return True
        if self._state.failure is not None:
            raise self._state.failure
        if self._state.ended.is_set():
            raise UnavailableError("the service stopped before it was ready")
        return False

    def wait(self, seconds: float | None = None) -> bool:
        """Whether the service ended within `seconds`. Raises what ended it, unless it was `stop`."""
        ended = self._state.ended.wait(seconds)
        if ended and self._state.failure is not None:
            raise self._state.failure
        return ended

    def stop(self) -> None:
        """Stop all children in order, at most 25 s. Calling it twice is fine."""
        self._state.stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        self._release()

    def kill(self) -> None:
        """Kill every child, for a caller that ends this process in the same breath: nothing is put in order,
        and what is started meanwhile dies with its parent."""
        for pid in self.pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    # --- before the children

    def _prepare(self) -> None:
        settings = self.settings
        for directory in (settings.data_dir, settings.run_dir, settings.log_dir):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        # What was there may be somebody else's too (/srv): only what is made in it is closed to others.
        if (what := open_to_others(settings.data_dir)) is not None:
            log.warning("data_directory_open", what=what)
        self._lock = DirectoryLock(settings.run_dir / "gridpipe.lock", settings.data_dir)
        BridgeAddress.path(settings.run_dir).unlink(missing_ok=True)
        # A store that holds pseudonyms needs the secret they were made with: never a new one in its place.
        if settings.clickhouse is None:
            Privacy.load(settings.pseudonym_key_path, create=not settings.clickhouse_dir.exists())
        self._prepare_key()
        check_start(settings, simulate=self.simulates)
        warn_unprotected(settings)
        self._public = not is_loopback(split_address(settings.http)[0])
        self._http = self._bind(settings.http, "--http")
        self._admin = self._bind(settings.admin_http, "--admin-http") if settings.admin_http else None
        self._control = _listen("127.0.0.1", 0)
        self._sockets.append(self._control)
        if settings.kafka is None:
            broker.binary()
        if settings.clickhouse is not None:
            # Before the HTTP process could answer 202 for pseudonyms of another key.
            client = connect_server(settings, None)
            client.database = settings.database
            hold_ring(client, settings.pseudonym_key_path, create=True)
            client.close()

    def _prepare_key(self) -> None:
        from pipeline.ingest.keys import KeyStore  # noqa: PLC0415

        path = self.settings.local_key_path
        keys = KeyStore(self.settings.keys_path)
        if path.exists():
            self.local_key = path.read_text().strip()
            if keys.verify(self.local_key) is not None:
                return
        self.local_key = keys.create([LOCAL_SOURCE, READ_SOURCE])
        self.new_key = True
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(self.local_key + "\n")

    def _bind(self, address: str, flag: str) -> socket.socket:
        listener = bind(address, flag)
        self._sockets.append(listener)
        return listener

    def _release(self) -> None:
        for listener in self._sockets:
            listener.close()
        self._sockets = []
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    # --- the supervising thread

    def _run(self) -> None:
        try:
            if self.settings.kafka is not None:
                admin = broker.wait_until_up(
                    self.settings.kafka, seconds=10, access=librdkafka_options(self.settings)
                )
                topic_settings.ensure_topic(admin, self.settings)
                topic_settings.check_topic(admin, self.settings)
            self._roles = {"store": _Role(self._start_store), "http": _Role(self._start_http)}
            if self.simulates:
                self._roles["city"] = _Role(self._start_city)
            if self.settings.kafka is None:
                self._roll = LogRoll(
                    self.settings,
                    children=self._ready_valves,
                    replace_broker=self._replace_broker,
                    give_up=self._state.stopping.is_set,
                )
            self._start_broker()
            while not self._state.stopping.is_set():
                self._tend()
                self._tend_log()
                self._tend_stand_in()
                if not self._state.ready.is_set() and self._answers_ready():
                    self._state.ready.set()
                self._state.stopping.wait(_TICK_SECONDS)
        except GridpipeError as error:
            self._state.failure = error
        except Exception as error:
            log.exception("supervisor_failed")
            self._state.failure = GridpipeError(f"the supervisor failed: {error}")
        finally:
            self._end_stand_in()
            self._stop_children()
            self._end_stand_in()
            for valve in self._valves.values():
                valve.close()
            run_dir = self.settings.run_dir
            for name in (BridgeAddress.path(run_dir), run_dir / "pids.json", LogState.path(run_dir)):
                name.unlink(missing_ok=True)
            self._state.ended.set()

    def _tend(self) -> None:
        """Start what should run and does not."""
        if self._broker is not None and self._broker.exit_code is not None:
            log.error("broker_died", exit_code=self._broker.exit_code)
            for name in ("city", "http", "store"):
                if (role := self._roles.get(name)) and role.child is not None:
                    role.child.kill()
                    self._bury(name, role, killed=True)
            if self._state.ready.is_set() and self._stand_in is None:
                self._start_stand_in("restarting", "the log was lost and is being replaced; send it again")
            self._start_broker()
        for name, role in self._roles.items():
            if role.child is not None and role.child.exit_code is not None:
                self._bury(name, role)
        self._start_missing()

    def _start_stand_in(self, code: str, message: str) -> None:
        """A courtesy to callers: where it fails they wait at the listening socket."""
        try:
            self._stand_in = StandIn(
                self.settings, self._http, self._admin, code=code, message=message
            ).start()
        except (GridpipeError, OSError) as error:
            log.warning("no_stand_in", problem=str(error))

    def _tend_stand_in(self) -> None:
        """Let the HTTP process take its place again once it is there."""
        if self._stand_in is None or (valve := self._ready_valves().get("http")) is None:
            return
        with contextlib.suppress(UnavailableError):
            valve.ask("greet", seconds=_GREETING_SECONDS)
            self._end_stand_in()

    def _end_stand_in(self) -> None:
        if self._stand_in is not None:
            self._stand_in.close()
            self._stand_in = None

    def _tend_log(self) -> None:
        """Roll the embedded log when it is due."""
        if self._roll is None or not self._state.ready.is_set():
            return
        try:
            self._roll.tend()
        except UnavailableError as error:
            if self._state.stopping.is_set() or self._broker is None:
                return
            # Somewhere between the logs: what uses the broker must start anew, as when it dies.
            log.error("log_not_rolled", problem=str(error))
            self._broker.kill()

    def _ready_valves(self) -> dict[str, Valve]:
        return {
            name: valve
            for name, valve in self._valves.items()
            if (child := self._roles[name].child) is not None and child.exit_code is None
        }

    def _replace_broker(self) -> None:
        """Another broker at the same address: clients find it by themselves, the log is empty."""
        assert self._broker is not None
        self._broker.kill()
        self._start_broker(int(self._bootstrap.rpartition(":")[2]))

    def _start_missing(self) -> None:
        for name, role in self._roles.items():
            if role.child is None and time.monotonic() >= role.start_at:
                role.started_at = time.monotonic()
                child = role.start()
                with self._state.lock:
                    role.child = child
                log.info("started", child=name, pid=child.pid)
                self._write_pids()

    def _write_pids(self) -> None:
        """For `gridpipe doctor` and whoever looks for a process to look at."""
        (self.settings.run_dir / "pids.json").write_text(json.dumps(self.pids | {"up": os.getpid()}))

    def _bury(self, name: str, role: _Role, *, killed: bool = False) -> None:
        """Take note of a dead child and of when to start it again; killed by ourselves: at once."""
        assert role.child is not None
        code = role.child.exit_code
        if not self._state.ready.is_set() and code in {EXIT_CONFIGURATION, EXIT_UNREACHABLE}:
            raise role.child.problem() or ConfigurationError(
                f"{name} refused to start; see {role.child.log_path}"
            )
        lived = time.monotonic() - role.started_at
        role.deaths = 0 if lived > _STEADY_SECONDS else role.deaths
        if not killed:
            role.start_at = time.monotonic() + _BACKOFF_SECONDS[min(role.deaths, len(_BACKOFF_SECONDS) - 1)]
            role.deaths += 1
        with self._state.lock:
            role.child = None
        log.error("child_died", child=name, exit_code=code, lived_seconds=round(lived, 1))

    def _start_broker(self, port: int | None = None) -> None:
        """The embedded broker with its topic; the other children, which wait for the topic, start meanwhile.

        port : of the embedded broker, None: any that is free.
        """
        if self.settings.kafka is None:
            port = port or broker.free_port()
            self._bootstrap = f"127.0.0.1:{port}"
            child = Child("broker", "pipeline.runtime.broker", self.settings, {"port": port})
            with self._state.lock:
                self._broker = child
        self._start_missing()
        if self._broker is None:
            return
        try:
            admin = broker.wait_until_up(self._bootstrap, seconds=15)
        except UnavailableError:
            raise UnavailableError(
                f"the embedded broker did not start; see {self._broker.log_path}"
            ) from None
        check_broker(self._broker.pid)
        broker.ensure_topic(admin, self.settings.topic, self.settings.partitions, exactly=True)
        if self._roll is not None:
            self._roll.broker_started(self._broker.pid)
            self._write_pids()

    def _new_valve(self, role: str) -> Valve:
        if role in self._valves:
            self._valves.pop(role).close()
        valve = self._valves[role] = Valve()
        return valve

    def _start_store(self) -> Child:
        valve = self._new_valve("store")
        details = {
            "bootstrap": self._bootstrap,
            "token": self._token,
            "fd": self._control.fileno(),
            "valve_fd": valve.theirs.fileno(),
            "awaits": _CITY_AWAITED if self.simulates else (),
            # Once it is fed, a store is not looked at again: a refusal then would be an outage.
            "refuse_real_reference": self.simulates
            and not self._asked_to_simulate
            and not self._state.ready.is_set(),
        }
        fds = (self._control.fileno(), valve.theirs.fileno())
        child = Child("store", "pipeline.runtime.store", self.settings, details, fds=fds)
        valve.started()
        if self.settings.clickhouse is None:
            BridgeAddress(_url(self._control), self._token, child.pid).write(self.settings.run_dir)
        return child

    def _start_http(self) -> Child:
        admin = self._admin.fileno() if self._admin else None
        valve = self._new_valve("http")
        details: dict[str, Any] = {
            "bootstrap": self._bootstrap,
            "control": {"url": _url(self._control), "token": self._token},
            "fd": self._http.fileno(),
            "admin_fd": admin,
            "valve_fd": valve.theirs.fileno(),
        }
        fds = tuple(listener.fileno() for listener in (self._http, self._admin, valve.theirs) if listener)
        child = Child("http", "pipeline.runtime.http", self.settings, details, fds=fds)
        valve.started()
        return child

    def _start_city(self) -> Child:
        details: dict[str, Any] = {
            "url": self.url,
            "admin_url": self.admin_url,
            "key": self.local_key,
            "control": {"url": _url(self._control), "token": self._token},
        }
        return Child("city", "pipeline.runtime.city", self.settings, details)

    def _answers_ready(self) -> bool:
        try:
            return (
                # Our own socket: whose certificate it is need not be asked.
                httpx.get(
                    f"{self.admin_url}/health/ready",
                    timeout=2.0,
                    trust_env=False,
                    verify=False,  # noqa: S501
                ).status_code
                == 200
            )
        except httpx.HTTPError:
            return False

    def _stop_children(self) -> None:
        for name in ("city", "http", "store"):
            role = self._roles.get(name)
            if role is not None and role.child is not None:
                with contextlib.suppress(ProcessLookupError):
                    number = STOP_ORDER if name == "store" else signal.SIGTERM
                    role.child.stop(_STOP_SECONDS[name], number)
                if name == "http" and self._state.ready.is_set():
                    self._start_stand_in("stopping", "the service is stopping; send again")
                if name != "city" and role.child.exit_code not in _FINISHED:
                    log.error("not_finished", child=name, exit_code=role.child.exit_code)
                    self._unfinished.append(name)
        if self._broker is not None:
            self._broker.kill()  # it holds nothing but memory, and does not listen to SIGTERM


def bind(address: str, flag: str) -> socket.socket:
    """A listening socket on `address`. Raises ConfigurationError that names `flag`, in one line."""
    host, port = split_address(address)
    try:
        return _listen(host, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            problem = f"address {address} is in use by another program; choose another with {flag}"
        else:
            problem = f"cannot listen on {address}: {error.strerror}; choose another with {flag}"
        raise ConfigurationError(problem) from error


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket that children inherit: the address stays ours while a child is replaced."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except BaseException:
        listener.close()
        raise
    return listener


def _url(listener: socket.socket, *, secure: bool = False) -> str:
    host, port = listener.getsockname()[:2]
    if host in {"0.0.0.0", "::"}:  # noqa: S104  every address: reach it through loopback
        host = "127.0.0.1"
    scheme = "https" if secure else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
