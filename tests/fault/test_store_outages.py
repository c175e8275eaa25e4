"""The store is away, slow, flapping, full, or answers into the void: nothing is lost, nothing is doubled.

The workers reach ClickHouse over a real socket, through a proxy that cuts, delays and answers.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import re
import signal
import time
from functools import partial
from itertools import pairwise

import httpx
import pytest

from pipeline.runtime import broker
from tests.fault.conftest import ROUNDS
from tests.fault.system import Memory, System, share

Report = dict[str, object]
#: Only inserts of the sink carry it, in the request line.
TOKEN = b"insert_deduplication_token"
BUFFER_BYTES = 1_000_000
#: What the rounds of a backlog may take on top, while it is drained.
DRAIN_BYTES = 500_000_000


def error_reply(code: int, name: str) -> bytes:
    """What ClickHouse's HTTP interface answers when a query fails with `code`."""
    body = f"Code: {code}. DB::Exception: injected. ({name})\n".encode()
    head = (
        "HTTP/1.1 500 Internal Server Error\r\nContent-Type: text/plain\r\n"
        f"X-ClickHouse-Exception-Code: {code}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


def finish(town: System, report: Report, **figures: object) -> None:
    """Drain, judge, note the figures."""
    drain = town.drained()
    verdict = town.verdict()
    report |= {**figures, "drain_seconds": round(drain, 1), "verdict": verdict}
    assert verdict.zeros, verdict
    assert verdict.acked > 0


@pytest.mark.fault
@pytest.mark.timeout(900)
def test_6_reply_of_an_insert_lost(town: System, report: Report) -> None:
    """The insert is done, its answer never arrives: the same token is sent again."""
    town.start_gateway()
    worker = town.start_worker()
    town.start_load()
    town.until_stored()
    for _ in range(ROUNDS):
        town.store_proxy.drop_reply_to(TOKEN)
        time.sleep(0.5)
    finish(town, report, rounds=ROUNDS, replies_dropped=town.store_proxy.dropped)
    assert town.store_proxy.dropped >= ROUNDS // 2
    assert worker.running


@pytest.mark.fault
@pytest.mark.timeout(900)
def test_7_insert_done_after_the_client_gave_up(town: System, report: Report) -> None:
    """Replies come after the client's time-out: each insert is sent again while the first one stands."""
    # the client waits half a minute longer; on a busy machine a sound insert takes longer than a second
    seconds = math.ceil(share())
    town.environment["GRIDPIPE_INSERT_TIMEOUT_SECONDS"] = str(seconds)
    town.start_gateway()
    worker = town.start_worker()
    town.start_load(pace=10)
    town.until_stored()
    town.store_proxy.delay_reply = seconds + 33.0
    time.sleep(seconds + 44)
    town.store_proxy.delay_reply = 0.0
    town.until_stored(5)
    finish(town, report, again=worker.said("does not take the block"))
    assert worker.said("does not take the block") > 0
    assert worker.running


@pytest.mark.fault
@pytest.mark.timeout(1200)
def test_8_store_down_then_drained(town: System, report: Report) -> None:
    """Down under load (DOWN seconds): memory flat, then quicker than the input. On Kafka nobody who sends
    notices; on the embedded broker, whose log is no promise, every request waits for its time and is told to
    come again, and nothing is answered that is not stored."""
    down = float(os.environ.get("DOWN", "60"))
    # what waits is far more than the worker may buffer, or flat memory would say nothing
    town.environment["GRIDPIPE_WORKER_BUFFER_BYTES"] = str(BUFFER_BYTES)
    gateway, admin = town.start_gateway(), broker.free_port()
    worker = town.start_worker(admin=admin)
    load = town.start_load(pace=20, text=600, timeout=60)
    town.until_stored(100)
    time.sleep(5)
    # how long the first requests take, while all processes begin, is not what is asked here
    load.statuses.clear()
    load.slowest.clear()
    town.store_proxy.up = False
    time.sleep(3)
    assert not (town.embedded and (left := town.answered_and_not_stored())), left
    acked, buffered, lag = len(town.ledger.acked), [], []
    started = time.monotonic()
    with Memory(worker, gateway) as memory:
        while time.monotonic() - started < down:
            buffered.append(_gauge(admin, "gridpipe_worker_buffer_bytes"))
            lag.append(_gauge(admin, "gridpipe_consumer_lag_records"))
            time.sleep(1)
        health = httpx.get(f"http://127.0.0.1:{admin}/health/live", trust_env=False).status_code
        ready = httpx.get(f"http://127.0.0.1:{admin}/health/ready", trust_env=False).json()
    meanwhile = len(town.ledger.acked) - acked
    assert not (town.embedded and (left := town.answered_and_not_stored())), left
    rate = meanwhile / (time.monotonic() - started)
    before = town.stored_ids()
    with town.ledger.lock:
        acknowledged = set(town.ledger.acked)
    town.store_proxy.up = True
    with Memory(worker, gateway) as draining:
        seconds = town.until_ids_stored(acknowledged, 300)
    # all that was stored in these seconds, what came in meanwhile included
    drain_rate = len(town.stored_ids() - before) / seconds
    # nothing of the backlog is left while the load goes on: what is answered now is stored within seconds
    with town.ledger.lock:
        acknowledged = set(town.ledger.acked)
    behind = town.until_ids_stored(acknowledged, 10)
    answers, slowest = dict(load.statuses), dict(load.slowest)
    finish(
        town, report, down_seconds=down, events_waiting=len(acknowledged - before),
        input_per_second=round(rate), drained_per_second=round(drain_rate), drained_in=round(seconds, 1),
        behind_seconds=round(behind, 1), acked_meanwhile=meanwhile, buffered=max(buffered),
        lag=f"{lag[0]} to {lag[-1]}",
        answers=answers, slowest=slowest, ready=ready["status"],
        memory_mb={name: round(size / 1e6) for name, size in memory.first.items()},
        memory_growth=memory.grown, memory_growth_draining=draining.grown,
    )  # fmt: skip
    assert worker.running
    # the backlog comes in rounds as large as they may be: more than a trickle takes, and bounded
    for name, size in draining.first.items():
        assert size * draining.grown[name] < DRAIN_BYTES, (name, draining.grown)
    assert memory.samples >= down // 2
    assert max(memory.grown.values()) < 0.10, f"memory grew while the store was down: {memory.grown}"
    assert ready["status"] == "not ready"
    assert health == 200
    # in part: some of a request's partitions were committed in its time
    assert set(answers) <= {202, 503, *(["202 in part"] if town.embedded else [])}, answers
    if town.embedded:
        assert answers.get(503, 0) > 0, "nobody was told to come again"
        assert slowest[503] <= town.settings.durability_timeout_seconds + 2 * share(), slowest
        return
    assert 503 not in answers, "the gateway needs the log alone: nobody who sends notices the outage"
    # one fetch may arrive when the limit is nearly reached
    assert BUFFER_BYTES / 2 < max(buffered) < 3 * BUFFER_BYTES, "the worker went on fetching"
    assert lag[-1] > 1.2 * lag[len(lag) // 2] > 0, f"what is not fetched waits, too: {lag}"
    assert drain_rate >= 2 * rate


def _gauge(admin: int, name: str) -> int:
    told = httpx.get(f"http://127.0.0.1:{admin}/metrics", trust_env=False).text
    return int(sum(map(float, re.findall(rf"^{name}\S* (\S+)", told, re.MULTILINE))))


@pytest.mark.fault
@pytest.mark.timeout(900)
def test_9_store_flapping(town: System, report: Report) -> None:
    """A second up, a second down, three times a round: nobody is called for every one of them. An alarm is
    a worker that begins to say that it is not ready, and a line of its log that says error."""
    town.start_gateway()
    port = broker.free_port()
    worker = town.start_worker(admin=port)
    town.start_load()
    town.until_stored()
    flaps, said = 3 * ROUNDS, [False]
    while not said[-1]:  # it has recovered every partition: from here on it is ready
        _until(time.monotonic() + 0.2, port, said)
    for _ in range(flaps):
        for up in (False, True):
            town.store_proxy.up = up
            _until(time.monotonic() + 1, port, said)
    flips = sum(before and not after for before, after in pairwise(said))
    refused, errors = worker.said("does not take the block"), worker.said('"level":"error"')
    finish(town, report, rounds=flaps, refused=refused, not_ready=flips, errors=errors, looked=len(said))
    assert refused >= flaps // 4, "it hardly noticed"
    assert len(said) > 2 * flaps, "nobody looked"
    # of sixty; a busy machine makes inserts so slow that they meet several outages
    assert flips + errors <= (3 if share() < 2 else 6)
    assert worker.running


def _until(ends: float, port: int, said: list[bool]) -> None:
    """Until then ask a worker whether it is ready."""
    while time.monotonic() < ends:
        with contextlib.suppress(httpx.TransportError):  # of a machine that is too busy
            ready = httpx.get(f"http://127.0.0.1:{port}/health/ready", trust_env=False, timeout=10)
            said.append(ready.status_code == 200)
        time.sleep(0.2)


@pytest.mark.fault
@pytest.mark.parametrize(("code", "name"), [(252, "TOO_MANY_PARTS"), (241, "MEMORY_LIMIT_EXCEEDED")])
def test_10_store_overloaded(town: System, report: Report, code: int, name: str) -> None:
    """Codes that pass by themselves are repeated, and no row is quarantined for them."""
    town.start_gateway()
    worker = town.start_worker()
    town.start_load()
    town.until_stored()
    town.store_proxy.answer(TOKEN, error_reply(code, name))
    time.sleep(5 * share())  # what was already with the store comes in
    before = town.stored()
    time.sleep(30)
    assert town.stored() == before, "inserts went through"
    town.store_proxy.answer(b"", None)
    town.until_stored(10)
    finish(town, report, answered=town.store_proxy.answered)
    assert town.store_proxy.answered > 0
    assert worker.running


@pytest.mark.fault
@pytest.mark.timeout(600)
def test_18_half_open_connection_to_the_store(town: System, report: Report) -> None:
    """Nothing is forwarded and nothing is closed: noticed after the time-out, sent again."""
    seconds = math.ceil(share())
    town.environment["GRIDPIPE_INSERT_TIMEOUT_SECONDS"] = str(seconds)
    town.start_gateway()
    worker = town.start_worker()
    town.start_load(pace=10)
    town.until_stored()
    before = worker.said("does not take the block")
    town.store_proxy.hold = True
    # the client waits half a minute longer than the store may take: only its own time-out can end this
    noticed, held = 0, time.monotonic()
    while not noticed and time.monotonic() - held < seconds + 30 + 10 * share():
        time.sleep(0.5)
        noticed = worker.said("does not take the block") - before
    detected = time.monotonic() - held
    town.store_proxy.hold = False
    town.until_stored(10)
    finish(town, report, detected_after=round(detected, 1))
    assert noticed > 0, "nobody noticed"
    assert worker.running


@pytest.mark.fault
@pytest.mark.timeout(600)
def test_19_slow_link_to_the_store(town: System, report: Report) -> None:
    """20 kB/s and 300 ms: what waits is bounded by the requests under way, or it waits in Kafka, so that
    nobody needs to be sent away; memory stays all the same."""
    gateway, worker = town.start_gateway(), town.start_worker()
    load = town.start_load(pace=4)
    town.until_stored()
    taken = load.statuses.get(202, 0)
    with Memory(worker, gateway) as memory:
        town.store_proxy.bytes_per_second = 20_000
        town.store_proxy.delay_reply = 0.3
        time.sleep(30)
        taken = load.statuses.get(202, 0) - taken
    town.store_proxy.bytes_per_second = None
    town.store_proxy.delay_reply = 0.0
    answers, slowest = load.statuses, load.slowest
    finish(town, report, answers=answers, slowest=slowest, taken_meanwhile=taken, grew_mb=memory.grown_mb)
    assert worker.running
    assert memory.samples >= 15
    assert max(memory.grown_mb.values()) < 100, memory.grown_mb
    assert taken > 0, "nothing was taken while the link was slow"
    # told to come again by a gateway that waits for the store, and by no other
    assert answers.keys() <= ({202, "202 in part", 503} if town.embedded else {202}), answers
    longest = town.settings.durability_timeout_seconds + 2
    assert max(slowest.values()) <= longest, slowest


@pytest.mark.fault
@pytest.mark.timeout(900)
def test_3_store_killed_while_it_inserts(town: System, report: Report, seed: int) -> None:
    """SIGKILL of ClickHouse itself, each while an insert is with it and not answered: what it had is there
    after its restart, the rest is sent again. It is the end of a month all the time: an insert has rows of
    two partitions, and what stands of it may be the rows of one."""
    if town.store.process is None:
        pytest.skip("kills the store: not done to a server of somebody else")
    rng = random.Random(seed)
    left: list[dict[tuple[object, ...], int]] = []
    with town.at_the_end_of_a_month():
        town.start_gateway()
        worker = town.start_worker()
        town.start_load()
        town.until_stored()
        for _ in range(ROUNDS):
            store = town.store.process
            time.sleep(rng.uniform(0.2, 2.0))
            # an insert takes some 10 ms, and longer on a busy machine
            town.store_proxy.within(
                TOKEN, rng.uniform(0.0, 0.03), partial(os.kill, store.pid, signal.SIGKILL)
            )
            deadline = time.monotonic() + 60 * share()
            while town.store_proxy.waits:
                assert time.monotonic() < deadline, "no insert took so long" + town.tails()
                time.sleep(0.01)
            store.kill()
            town.kills += 1
            town.store_proxy.hold = True  # nothing is sent again before we have looked
            town.store.start()
            town.client = town.store.client(town.database)
            left.append(_rows_by_month(town))
            town.store_proxy.hold = False
            town.until_stored(10)
        town.drained()
    whole = _rows_by_month(town)
    both = {at[:-1] for at in whole if at[:-1] in {other[:-1] for other in whole if other[-1] != at[-1]}}
    # one month's rows of an insert were there, all of them, and none of the other's
    torn = sum(
        0 < sum(at in rows for at in whole if at[:-1] == block) < sum(at[:-1] == block for at in whole)
        for rows in left
        for block in both
    )
    finish(town, report, rounds=ROUNDS, kills=town.kills, over_two_months=len(both), torn_between=torn)
    assert worker.running
    assert both, "no insert had rows of two months"


def _rows_by_month(town: System) -> dict[tuple[object, ...], int]:
    """(table, log, partition, first offset of the block, month) -> rows."""
    each = " UNION ALL ".join(
        f"SELECT '{table}', _inc, _part, _blk_lo, toYYYYMM(ingested_at), count() FROM {table} GROUP BY ALL"
        for table in ("events", "rejections")
    )
    return {tuple(row[:-1]): row[-1] for row in town.query(each)}
