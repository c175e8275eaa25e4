"""What a topic must be like for a 2xx: which are refused, which only warned of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipeline.runtime.topic_settings import TopicState, configuration, doubts, faults
from pipeline.settings import Settings

WEEK_MS = 7 * 24 * 3_600_000
SOUND = TopicState(
    12, 3, 2, unclean=False, retention_ms=WEEK_MS, retention_bytes=-1, cleanup="delete",
    timestamps="LogAppendTime",
)  # fmt: skip


def state(**changed: Any) -> TopicState:
    return replace(SOUND, **changed)


def test_a_topic_as_the_defaults_create_it_has_no_flaw() -> None:
    assert configuration(Settings()) == {
        "cleanup.policy": "delete",
        "message.timestamp.type": "LogAppendTime",
        "min.insync.replicas": "2",
        "retention.ms": str(WEEK_MS),
        "unclean.leader.election.enable": "false",
    }
    assert list(faults(Settings(), SOUND)) == []
    assert list(doubts(Settings(), SOUND)) == []


@pytest.mark.parametrize(
    ("changed", "what", "do"),
    [
        ({"replication": 1}, "replication 1", "GRIDPIPE_TOPIC_REPLICATION=1"),
        ({"replication": 2}, "replication 2", "kafka-reassign-partitions"),
        ({"min_insync": 1}, "min.insync.replicas 1", "--add-config min.insync.replicas=2"),
        ({"unclean": True}, "unclean", "--add-config unclean.leader.election.enable=false"),
        ({"cleanup": "compact,delete"}, "compacted", "--add-config cleanup.policy=delete"),
    ],
)
def test_a_topic_that_can_lose_answered_events_is_refused(
    changed: dict[str, Any], what: str, do: str
) -> None:
    (flaw,) = faults(Settings(), state(**changed))
    assert what in flaw.what
    assert do in flaw.do


def test_settings_that_promise_less_allow_it_and_say_so() -> None:
    """One setting is enough on one node: a single copy cannot be two, nor another one be elected."""
    allowed = Settings(topic_replication=1)
    found = state(replication=1, min_insync=1, unclean=True)
    assert list(faults(allowed, found)) == []
    (flaw,) = doubts(allowed, found)
    assert "one disk can lose answered events" in flaw.what
    assert configuration(allowed)["min.insync.replicas"] == "1"
    assert list(faults(Settings(topic_min_insync_replicas=1), state(min_insync=1))) == []
    assert list(faults(Settings(topic_replication=2), state(replication=2, unclean=True))) != []


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"retention_ms": -1}, "for ever"),
        ({"retention_ms": 2 * WEEK_MS}, "14 days, GRIDPIPE_TOPIC_RETENTION_DAYS is 7: personal data stay"),
        ({"retention_ms": WEEK_MS // 7}, "GRIDPIPE_TOPIC_RETENTION_DAYS is 7: what no worker has read"),
        ({"timestamps": "CreateTime"}, "the time that the writer of a record gives (CreateTime)"),
        ({"retention_bytes": 1_000}, "above 1000 bytes"),
        ({"partitions": 24}, "24 partitions, GRIDPIPE_PARTITIONS is 12"),
        ({"min_insync": None, "untold": "CLUSTER_AUTHORIZATION_FAILED"}, "(CLUSTER_AUTHORIZATION_FAILED)"),
    ],
)  # fmt: skip
def test_what_is_only_warned_of(changed: dict[str, Any], what: str) -> None:
    assert list(faults(Settings(), state(**changed))) == []
    (flaw,) = doubts(Settings(), state(**changed))
    assert what in flaw.what
    assert flaw.do


def test_a_longer_retention_than_the_privacy_pages_promise_is_told() -> None:
    (flaw,) = doubts(Settings(topic_retention_days=30), state(retention_ms=30 * WEEK_MS // 7))
    assert "docs/privacy.md says at most 7" in flaw.what
