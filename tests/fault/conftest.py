"""Fixtures of the fault tests. Those marked `fault` take minutes: `make test-fault` runs them."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.kafka.cluster import Cluster
from tests.fault.system import Store, System, system
from tests.kafka import JARS, embedded_broker, need_kafka

#: Rounds of each loop test.
ROUNDS = int(os.environ.get("ROUNDS", "20"))
_REPORTS: list[str] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("FAULT") == "1":
        return
    for item in items:
        needs = item.fixturenames if isinstance(item, pytest.Function) else []
        if "kafka_three" in needs or "[kafka" in item.name:
            item.add_marker(pytest.mark.skip(reason="on three Kafka nodes: make test-fault runs it"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _REPORTS:
        terminalreporter.section("fault tests")
        for line in _REPORTS:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def kafka_three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three Kafka nodes: three copies of each record, two before it is confirmed."""
    need_kafka()
    with Cluster(tmp_path_factory.mktemp("kafka-three"), nodes=3, jars=JARS, retention_ms=-1) as running:
        yield running


@pytest.fixture(scope="session")
def store_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    running = Store(tmp_path_factory.mktemp("store"))
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
    """SEED repeats a run."""
    return int(os.environ.get("SEED") or random.SystemRandom().randrange(10**6))


@pytest.fixture
def town(
    request: pytest.FixtureRequest, tmp_path: Path, bootstrap: str, store_process: Store, seed: int
) -> Iterator[System]:
    """A system with nothing running yet. What the test leaves in `notes` is printed in the summary."""
    print(f"seed {seed}")
    with system(tmp_path, bootstrap, store_process, seed=seed) as made:
        yield made


@pytest.fixture
def report(request: pytest.FixtureRequest, seed: int) -> Iterator[dict[str, object]]:
    """Figures of the run, for the summary."""
    figures: dict[str, object] = {}
    yield figures
    told = " ".join(f"{name}={value}" for name, value in figures.items())
    _REPORTS.append(f"{request.node.name}: seed={seed} {told}")
