"""Fixtures of the fault tests. Those marked `fault` take minutes: `make test-fault` runs them."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.fault import summary
from tests.fault.system import Server, Store, System, share, system
from tests.kafka import embedded_broker

#: Rounds of each loop test.
ROUNDS = int(os.environ.get("ROUNDS", "20"))


class _ByBroker(LoadScopeScheduling):  # type: ignore[misc]
    """With two test processes each broker stays with one of them, with more each file of a broker: every
    process starts brokers of its own. What shares neither, as the whole service under kills, goes to
    whichever is free."""

    def _split_scope(self, nodeid: str) -> str:
        broker = summary.broker_of(nodeid)
        if broker == "embedded" and "[embedded" not in nodeid:
            return nodeid
        return broker if self.numnodes <= 2 else f"{broker} {nodeid.partition('::')[0]}"


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> _ByBroker | None:
    return _ByBroker(config, log) if os.environ.get("FAULT") == "1" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("FAULT") == "1":
        return
    for item in items:
        # those that run on both brokers; what is about Kafka alone runs, if it takes seconds
        three = summary.broker_of(item.nodeid) == "kafka" and "bootstrap" in getattr(item, "fixturenames", ())
        if three and item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.skip(reason="on three Kafka nodes: make test-fault runs it"))


@pytest.fixture(scope="session")
def store_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    url = os.environ.get("TEST_CLICKHOUSE")
    running = Server(url) if url else Store(tmp_path_factory.mktemp("store"))
    yield running
    running.stop()


@pytest.fixture(scope="session")
def embedded() -> Iterator[str]:
    with embedded_broker() as address:
        yield address


@pytest.fixture(scope="session", params=["embedded", "kafka"])
def bootstrap(request: pytest.FixtureRequest) -> str:
    """Both brokers in turn: the embedded one, and three Kafka nodes."""
    if request.param == "kafka":
        return str(request.getfixturevalue("kafka_three").bootstrap)
    return str(request.getfixturevalue("embedded"))


@pytest.fixture
def seed() -> int:
    """SEED repeats a run. Printed here, so that every test tells it; the summary has it, too."""
    chosen = int(os.environ.get("SEED") or random.SystemRandom().randrange(10**6))
    print(f"seed {chosen}")
    return chosen


@pytest.fixture
def town(  # noqa: PLR0917  fixtures, by name
    request: pytest.FixtureRequest,
    tmp_path: Path,
    bootstrap: str,
    store_process: Store,
    seed: int,
    report: dict[str, object],
) -> Iterator[System]:
    embedded = summary.broker_of(request.node.nodeid) == "embedded"
    with system(tmp_path, bootstrap, store_process, seed=seed, embedded=embedded, report=report) as made:
        yield made


@pytest.fixture
def report(request: pytest.FixtureRequest, seed: int) -> Iterator[dict[str, object]]:
    """Figures of the run, for the summary: rounds, kills and verdict, and whatever else tells of it."""
    figures: dict[str, object] = {}
    started = time.monotonic()
    yield figures
    item = request.node
    summary.write(
        summary.row_of(
            item.name,
            summary.broker_of(item.nodeid),
            summary.outcome(item),
            figures,
            seconds=time.monotonic() - started,
            seed=seed,
            busy=share(),
        )
    )
