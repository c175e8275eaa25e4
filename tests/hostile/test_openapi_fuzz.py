"""Requests made from the API description, valid and spoilt, against the real service: every answer is one
that the description promises, none is a 5xx, none takes long, and the service stays as small as it was."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import psutil
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.fault.machine import core
from tests.hostile.memory import Peak
from tests.hostile.quick import INPUT_SECONDS
from tests.hostile.world import GROWTH_BYTES, World, open_world, patience

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3_600 if "FUZZ" in os.environ else 240)]

FUZZ: Final = int(os.environ.get("FUZZ", "1"))
#: Per operation and kind of data.
EXAMPLES: Final = 6
#: A stream without an end, and pages of another kind.
LEFT_OUT: Final = {"/v1/live"}
CHECKS: Final = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with open_world(tmp_path_factory.mktemp("openapi") / "data") as opened:
        yield opened


def _used(*processes: psutil.Process) -> float:
    """Seconds of processor time."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def _told(error: BaseException) -> str:
    """What went wrong: a group says it in its parts."""
    parts = error.exceptions if isinstance(error, BaseExceptionGroup) else (error,)
    return " | ".join(str(part) for part in parts)


@dataclass
class Told:
    """Answers by class, requests by operation, and what was wrong with an answer."""

    tried: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def _ask(world: World, examples: int) -> Told:
    """So many requests to each operation, of each kind of data."""
    schema = schemathesis.openapi.from_url(f"{world.service.url}/openapi.json")
    told = Told()
    headers = {"Authorization": f"Bearer {world.key}"}
    service = (world.http, world.worker)
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path in LEFT_OUT:
            continue
        told.asked[operation.label] += 0
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            strategy = operation.as_strategy(generation_mode=mode)

            @settings(
                max_examples=examples,
                deadline=None,
                database=None,
                derandomize=FUZZ == 1,
                phases=(Phase.generate,),
                suppress_health_check=list(HealthCheck),
            )
            @given(case=strategy, data=st.none())
            def ask(case: schemathesis.Case, data: None) -> None:
                used, began = _used(*service), time.monotonic()
                response = case.call(headers=headers)
                used, seconds = _used(*service) - used, time.monotonic() - began
                told.tried[f"{response.status_code // 100}xx"] += 1
                told.asked[operation.label] += 1  # noqa: B023  called before the next round
                assert used < INPUT_SECONDS * max(1.0, core()), f"{used:.1f} s of processor time"
                assert seconds < patience(), f"too slow: {seconds:.1f} s"
                case.validate_response(response, checks=list(CHECKS))

            try:
                ask()
            except (Exception, BaseExceptionGroup) as error:
                name = f"{operation.method.upper()} {operation.path} {mode.name}"
                if type(error).__name__ in {"Unsatisfiable", "SkipTest"}:
                    continue  # an operation without parameters has no wrong data
                told.problems.append(f"{name}: {type(error).__name__}: {_told(error)[:1500]}")
    return told


def test_every_answer_is_one_that_the_description_promises(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    _ask(world, 1)  # what is loaded and kept once is no growth
    with Peak(world.http.pid) as http, Peak(world.worker.pid) as worker:
        told = _ask(world, EXAMPLES * FUZZ)
    tried, asked, problems = told.tried, told.asked, told.problems
    with capsys.disabled():
        print(
            f"\nschemathesis: {sum(tried.values())} requests to {len(asked)} operations, "
            f"answers {dict(tried)}, problems {len(problems)}, memory of the HTTP process "
            f"{http.grown / 1e6:+.0f} MB, of the worker {worker.grown / 1e6:+.0f} MB at most",
            file=sys.stderr,  # the other stream of a test process beside others is lost
        )
    assert not problems, "\n\n".join(problems)
    assert sum(tried.values()) >= 50
    assert len(asked) > 5
    assert min(asked.values()) > 0, asked
    assert tried["5xx"] == 0
    assert http.samples, "nobody looked"
    assert http.grown < GROWTH_BYTES
    assert worker.grown < GROWTH_BYTES
    world.still_well()
