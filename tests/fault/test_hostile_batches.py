"""Kafka batches that no library writes meet the Kafka client before they meet us: one of them, put into the
log by whoever may write there, must not stop the worker, nor cost an event of somebody else."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import replace

import pytest

from tests.fault import raw_batches as raw
from tests.fault.system import PARTITIONS, Process, System, share
from tests.hostile.memory import Peak

Report = dict[str, object]

_MB = 1 << 20
#: What the worker may grow while it reads them all, at any moment: three of them unpack to far more.
_GROWTH_BYTES = 100_000_000
#: Can be read for all that; the embedded broker takes it, refuses the next write once, and goes on.
NEGATIVE = "last offset before the first"


def _batches() -> dict[str, bytes]:
    """By name. Kafka itself refuses most of them, the embedded broker hardly any."""
    return {
        "no record in it": raw.batch(b"\x80\xff" * 40, 1),
        "nothing in it": raw.batch(b"", 1),
        "fewer records than it says": raw.batch(raw.record(b"a"), 3),
        "length beyond the end": raw.batch(raw.record(b"abc", length=100), 1),
        "name of a header is no text": raw.batch(raw.record(b"abc", headers=[(b"\xff\xfe", b"x")]), 1),
        "offset beyond the batch": raw.batch(raw.record(b"abc", delta=100_000), 1),
        NEGATIVE: raw.batch(raw.record(b"abc"), 1, last_delta=-1),
        "offset before the batch": raw.batch(raw.record(b"abc", delta=-5), 1),
        "one offset twice": raw.batch(raw.record(b"abc") + raw.record(b"abc"), 2),
        "no gzip": raw.batch(b"none at all", 1, codec=raw.GZIP),
        "no snappy": raw.batch(b"none at all", 1, codec=raw.SNAPPY),
        "no lz4": raw.batch(b"none at all", 1, codec=raw.LZ4),
        "no zstd": raw.batch(b"none at all", 1, codec=raw.ZSTD),
        "gzip of 500 MB": raw.batch(raw.bomb(raw.GZIP, 500 * _MB), 1, codec=raw.GZIP),
        "lz4 of 100 MB": raw.batch(raw.bomb(raw.LZ4, 100 * _MB), 1, codec=raw.LZ4),
        "zstd of 2 GB": raw.batch(raw.bomb(raw.ZSTD, 2_000 * _MB), 1, codec=raw.ZSTD),
        "snappy of 40 MB": raw.batch(raw.bomb(raw.SNAPPY, 40 * _MB), 1, codec=raw.SNAPPY),
    }


def _put(town: System, partition: int, made: bytes) -> bool:
    """Into the log past every client library; False if the broker refuses."""
    known = town.admin.list_topics(town.topic, timeout=10)
    leader = known.brokers[known.topics[town.topic].partitions[partition].leader]
    return raw.produce(f"{leader.host}:{leader.port}", town.topic, partition, made) == 0


def _until_told(worker: Process) -> int:
    """Offset at which the worker says that partition 0 stands still."""
    deadline = time.monotonic() + 60 * share()
    while True:
        for line in worker.log.read_text(errors="replace").splitlines():
            if '"partition_braked"' in line and (told := json.loads(line))["partition"] == 0:
                return int(told["offset"])
        assert worker.running and time.monotonic() < deadline, worker.tail()
        time.sleep(0.2)


@pytest.mark.timeout(300)
def test_53_hostile_batches_cost_nobody_anything(town: System, report: Report) -> None:
    """Each kind into a partition under load: it becomes a quarantined row, everything else is stored, and the
    worker neither ends nor grows by what such a batch would unpack to."""
    offered = _batches()
    town.start_gateway()
    worker = town.start_worker()
    town.start_load(pace=10)
    town.until_stored(200)  # as large as the load alone makes it
    with Peak(worker.pid) as memory:
        taken = [
            name
            for number, (name, made) in enumerate(offered.items())
            if _put(town, number % PARTITIONS, made)
        ]
        town.until_stored(100)
        town.drained()
    verdict = town.verdict()
    told = town.query("SELECT payload FROM quarantine WHERE content_type = 'application/x-unreadable-batch'")
    report |= {
        "taken": len(taken),
        "offered": len(offered),
        "grown_mb": round(memory.grown / 1e6),
        "verdict": verdict,
    }
    assert worker.running, worker.tail()
    assert taken
    assert len(told) == len(set(taken) - {NEGATIVE}), told
    assert verdict.quarantined - len(told) <= 3, "three of the batches begin with a record that can be read"
    assert replace(verdict, quarantined=0).zeros, verdict
    assert memory.samples, "nobody looked"
    assert memory.grown < _GROWTH_BYTES, f"{memory.grown / 1e6:.0f} MB at most"


@pytest.mark.fault
@pytest.mark.timeout(300)
@pytest.mark.parametrize("bootstrap", ["embedded"], indirect=True)  # Kafka refuses such a batch
def test_53_a_wrong_checksum_stops_its_partition_alone(town: System, report: Report) -> None:
    """The broker's copy is damaged, another may be sound: nothing is passed over. The other partitions go on,
    a restart asks again, and what stands before the damage is stored."""
    town.start_gateway()
    worker = town.start_worker()
    town.start_load(pace=10)
    town.until_stored(20)
    town.drained()
    assert _put(town, 0, raw.batch(raw.record(b"abc"), 1, crc=1))
    at = _until_told(worker)
    for _ in range(2):
        load = town.start_load(pace=10)
        town.until_stored(50)
        load.stop()
        assert worker.running, worker.tail()
        assert town.committed()[0] == at, "the partition went on"
        worker.signal(signal.SIGTERM)
        assert worker.wait(30 * share()) == 0, worker.tail()
        worker = town.start_worker()
        assert _until_told(worker) == at
    town.settled()  # the last worker still takes in what the others left
    verdict = town.verdict()
    waiting = town.query(f"SELECT count() FROM events WHERE _part = 0 AND _off >= {at}")[0][0]
    report |= {"stands_at": at, "verdict": verdict}
    assert waiting == 0
    assert replace(verdict, lost=0).zeros, verdict
