"""Both brokers, for traps that each of them has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kafka import embedded_broker


@pytest.fixture(scope="module", params=["embedded", pytest.param("kafka", marks=pytest.mark.fault)])
def bootstrap(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "kafka":
        yield request.getfixturevalue("kafka_node").bootstrap
        return
    with embedded_broker() as address:
        yield address
