"""The demo: feed the districts' published year through the real service, then read its own figures back.

Everything that is printed as measured comes from the service (KPI call and ClickHouse); the generator only
decides what is sent. An interrupted demo goes on where its ledger ends: batches without an answer are sent
again with the same ids, and the copies that had arrived show up as duplicates.
"""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Final

import httpx
import numpy as np
import polars as pl

from pipeline.contract.privacy import Privacy
from pipeline.errors import ConfigurationError, GridpipeError, UnavailableError
from pipeline.ingest.keys import KeyStore
from pipeline.reference.load import load_directory
from pipeline.runtime.supervisor import Supervisor
from pipeline.settings import Settings
from pipeline.simulate.city import read_manifest
from pipeline.simulate.geography import read_areas
from pipeline.simulate.ledger import History, Ledger
from pipeline.simulate.published import PUBLISHED_YEARS, PublishedYear
from pipeline.simulate.sender import Answer, Sender, wait_for_reference
from pipeline.simulate.verify import Counted, count_outcomes, held_copies, reconcile
from pipeline.simulate.year import LANES, SOURCE, DemoDirectory
from pipeline.store.client import connect

BATCH_EVENTS: Final = 4_000
_READY_SECONDS: Final = 60.0
#: Longest wait for one answer of a slow machine; and without any answer, restarts included, before giving up.
PATIENCE_SECONDS: Final = 120.0
_GIVE_UP_SECONDS: Final = 600.0
_DRAIN_SECONDS: Final = 120.0

Say = Callable[[str], None]
Advance = Callable[[int, int], None]  # settled, of how many


@dataclass(frozen=True)
class DistrictResult:
    """One district: what was published and what the service measured."""

    year: PublishedYear
    name_zh: str
    cases: int
    closed: int
    closure_rate: float | None
    response_rate: float | None

    @property
    def differences(self) -> list[str]:
        """Of volumes and of the rates that were published, unrounded: what is not as published."""
        year = self.year
        figures = (
            ("cases", year.received, self.cases),
            ("closed", year.closed, self.closed),
            ("closure rate", year.closure_rate, self.closure_rate),
            ("response rate", year.response_rate, self.response_rate),
        )
        return [
            f"{name} {measured}, published {published}"
            for name, published, measured in figures
            if published is not None and measured != published
        ]

    def as_dict(self) -> dict[str, Any]:
        return {
            "code": self.year.code,
            "name_zh": self.name_zh,
            "published": {
                "received": self.year.received,
                "closed": self.year.closed,
                "closure_rate": self.year.closure_rate,
            },
            "measured": {"cases": self.cases, "closed": self.closed, "closure_rate": self.closure_rate},
        }


@dataclass(frozen=True)
class DemoResult:
    """What a demo measured. problems : empty if everything agrees, else one line each."""

    districts: list[DistrictResult]
    sent: int
    counted: Counted
    seconds: float
    problems: list[str]

    def as_dict(self) -> dict[str, Any]:
        return {
            "districts": [district.as_dict() for district in self.districts],
            "events": {
                "sent": self.sent,
                "stored": self.counted.stored,
                "duplicates": self.counted.duplicates,
                "rejected": self.counted.rejected,
                "quarantined": self.counted.quarantined,
            },
            "seconds": round(self.seconds, 1),
        }


def free_http(address: str) -> str:
    """`address` if nobody listens there, else a free port on the same host."""
    host, _, port = address.rpartition(":")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), int(port)))
        except OSError:
            return f"{host}:0"
    return address


def run_demo(
    settings: Settings,
    directory: DemoDirectory,
    *,
    say: Say,
    advance: Advance,
    stop: threading.Event,
    after: Callable[[str, DemoResult], None] | None = None,
) -> DemoResult:
    """Run the demo in `directory` (that of `settings.data_dir`, open) to its end.

    say : one line of progress; advance : events settled and their number; stop : set to end early (the next
    run goes on); after : called with the address and the result while the service still runs.
    Raises ConfigurationError (port or data directory in use), UnavailableError (service away for too long,
    or stopped early), ContractError (the service refuses our key or request).
    """
    began = time.monotonic()
    say(
        "going on with an interrupted demo" if directory.resumed else "making the simulated city and its year"
    )
    lines = directory.write_year(settings)
    with Supervisor(settings, simulate=False, quiet=True) as up:
        up.wait_ready(_READY_SECONDS)
        say(f"service ready on {up.url}")
        _load_reference(settings, up.admin_url)
        key = KeyStore(settings.keys_path).create(SOURCE, backfill=True)
        _Feed(directory, up, key=key, total=len(lines), advance=advance, stop=stop).run()
        say("all events answered, waiting until they are drained")
        result = _measure(settings, directory, up, lines, began)
        if not result.problems:
            directory.finish()
        if after is not None:
            after(up.url, result)
        return result


def _load_reference(settings: Settings, admin_url: str) -> None:
    """Load the city's reference files and wait until the worker uses them."""
    client = connect(settings)
    try:
        report = load_directory(
            client, settings.city_dir, Privacy.load(settings.pseudonym_key_path, create=False)
        )
    finally:
        client.close()
    if not report.fine:
        raise GridpipeError(f"the simulated city does not load: {report}")
    rows = (read_manifest(settings.city_dir) or {}).get("rows", {})
    wait_for_reference(admin_url, rows, seconds=_READY_SECONDS)


class _Feed:
    """Sends the lanes side by side, each in order, one batch in flight per lane."""

    def __init__(
        self,
        directory: DemoDirectory,
        up: Supervisor,
        *,
        key: str,
        total: int,
        advance: Advance,
        stop: threading.Event,
    ) -> None:
        self._directory, self._up, self._key, self._stop = directory, up, key, stop
        self._advance, self._total = advance, total
        self._settled = 0
        self._failed = threading.Event()
        self._counting = threading.Lock()
        self._history = History(directory.ledger_path)
        self._batch_events = min(BATCH_EVENTS, up.settings.max_events_per_request)

    def run(self) -> None:
        """Return when every line of every lane is acknowledged. Raises what ended a lane or the service."""
        with Ledger(self._directory.ledger_path) as ledger, ThreadPoolExecutor(LANES) as pool:
            lanes = [pool.submit(self._lane, ledger, number) for number in range(LANES)]
            try:
                waiting = set(lanes)
                while waiting:
                    done, waiting = wait(waiting, timeout=0.25)
                    for lane in done:
                        lane.result()
                    if self._up.wait(0):
                        raise UnavailableError(f"the service ended; see {self._up.settings.log_dir}")
                    if self._stop.is_set():
                        raise UnavailableError("stopped; run the same command again to go on")
            finally:
                self._failed.set()  # ends the other lanes, if any is left

    def _lane(self, ledger: Ledger, number: int) -> None:
        texts = [line.decode() for line in self._directory.lane(number)]
        open_lines = np.flatnonzero(~self._history.settled(number, len(texts)))
        self._count(len(texts) - len(open_lines))
        attempts = itertools.count(self._history.next_attempt[number])
        with Sender(self._up.url, self._key, timeout_seconds=PATIENCE_SECONDS) as sender:
            for at in range(0, len(open_lines), self._batch_events):
                batch: list[int] = open_lines[at : at + self._batch_events].tolist()
                took_at = time.monotonic()
                while batch and not self._stopped():
                    attempt = next(attempts)
                    ledger.sent(number, attempt, batch)
                    answer = sender.post([texts[line] for line in batch])
                    _refuse(answer, [texts[line] for line in batch])
                    if answer.taken:
                        again = [batch[position] for position in answer.again]
                        ledger.answered(number, attempt, again)
                        self._count(len(batch) - len(again))
                        took_at = time.monotonic() if len(again) < len(batch) else took_at
                        batch = again
                    if batch and time.monotonic() - took_at > _GIVE_UP_SECONDS:
                        raise UnavailableError(f"the service took no events for {_GIVE_UP_SECONDS:g} s")
                    if batch:
                        self._failed.wait(answer.wait_seconds)

    def _stopped(self) -> bool:
        return self._failed.is_set() or self._stop.is_set()

    def _count(self, settled: int) -> None:
        with self._counting:
            self._settled += settled
            self._advance(self._settled, self._total)


def _refuse(answer: Answer, texts: list[str]) -> None:
    """Simulated events keep the contract: a refusal is a fault of ours. Raises GridpipeError."""
    if answer.refused:
        position, code = answer.refused[0]
        raise GridpipeError(
            f"the service refused {len(answer.refused)} simulated events, the first with {code}: "
            f"{texts[position][:120]}"
        )


def _measure(
    settings: Settings, directory: DemoDirectory, up: Supervisor, lines: pl.DataFrame, began: float
) -> DemoResult:
    """Wait until everything acknowledged is in ClickHouse, then read every figure from the service."""
    copies = History(directory.ledger_path).copies()
    client = connect(settings)
    try:
        counted = _drained(lambda: count_outcomes(client, SOURCE), int(copies["acknowledged"].sum()))
        reconciled = reconcile(lines, copies, held_copies(client, SOURCE))
    finally:
        client.close()
    districts = _districts(settings, directory, up.url, up.read_headers)
    problems = list(reconciled.problems)
    if reconciled.sent != counted.total:
        problems.append(f"{reconciled.sent} events sent, {counted.total} accounted for in ClickHouse")
    problems += [
        f"{district.year.code} {district.name_zh}: {difference}"
        for district in districts
        for difference in district.differences
    ]
    return DemoResult(districts, reconciled.sent, counted, time.monotonic() - began, problems)


def _drained(count: Callable[[], Counted], acknowledged: int) -> Counted:
    """Counts that hold everything acknowledged and have come to rest."""
    deadline = time.monotonic() + _DRAIN_SECONDS
    before = count()
    while time.monotonic() < deadline:
        time.sleep(0.5)
        counted = count()
        if counted == before and counted.total >= acknowledged:
            return counted
        before = counted
    return before


def _districts(
    settings: Settings, directory: DemoDirectory, url: str, headers: dict[str, str]
) -> list[DistrictResult]:
    """The KPI call over the simulated year, by district, in the order of the published table."""
    plan = directory.plan
    answer = httpx.get(
        f"{url}/v1/kpi",
        params={
            "by": "district",
            "from": plan.start.isoformat(),
            "to": plan.end.isoformat(),
            "as_of": plan.end.isoformat(),
        },
        headers=headers,
        timeout=60.0,
        trust_env=False,
    )
    if answer.status_code != 200:
        raise UnavailableError(f"the KPI call answered {answer.status_code}: {answer.text[:200]}")
    rows = {row["key"]: row for row in answer.json()["rows"]}
    names = {code: area["name_zh"] for code, area in read_areas(settings.catalogue_dir).items()}
    missing = [year.code for year in PUBLISHED_YEARS if year.code not in rows]
    if missing:
        raise ConfigurationError(f"the KPI call does not list district {missing[0]}")
    return [
        DistrictResult(
            year,
            names[year.code],
            rows[year.code]["cases"],
            rows[year.code]["closed"],
            rows[year.code]["closure_rate"],
            rows[year.code]["response_rate"],
        )
        for year in PUBLISHED_YEARS
    ]
