"""What a 2xx rests on where the log is a Kafka: copies of each record, in how many, for how long.

The settings say what is promised. A topic that gridpipe creates gets it; one that is there already is looked
at when a gateway starts and by `doctor`. The embedded broker is exempt: its answers wait for the store.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import structlog
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigEntry, ConfigResource
from confluent_kafka.admin._metadata import TopicMetadata
from confluent_kafka.admin._resource import ResourceType

from pipeline.errors import ConfigurationError, UnavailableError
from pipeline.runtime import broker
from pipeline.settings import Settings, is_loopback

log = structlog.get_logger(__name__)

_CALL_SECONDS: Final = 5.0
_TRIES: Final = 6
_DAY_MS: Final = 24 * 3_600 * 1_000
#: With fewer copies an answered event is lost with one or two disks, whatever the settings say.
_SAFE_REPLICATION: Final = 3
_SAFE_MIN_INSYNC: Final = 2
_BROKERS_TIME: Final = "LogAppendTime"
#: Of docs/privacy.md.
_DOCUMENTED_DAYS: Final = 7
_ONLY: Final = "only where the loss of a disk may lose answered events set"


@dataclass(frozen=True)
class TopicState:
    """What the broker tells of a topic. None: it does not tell.

    replication : of the partition on the fewest nodes; retention_ms : -1, for ever; retention_bytes : of a
    partition, -1: no limit; timestamps : CreateTime (the writer's) or LogAppendTime; untold : why the
    configuration is not known.
    """

    partitions: int
    replication: int
    min_insync: int | None = None
    unclean: bool | None = None
    retention_ms: int | None = None
    retention_bytes: int | None = None
    cleanup: str | None = None
    timestamps: str | None = None
    untold: str = ""

    def __str__(self) -> str:
        asked = {
            "min.insync.replicas": self.min_insync,
            "unclean leader election": None if self.unclean is None else "on" if self.unclean else "off",
            "retention": None if self.retention_ms is None else _days(self.retention_ms),
        }
        told = [f"{name} {value}" for name, value in asked.items() if value is not None]
        return ", ".join([f"{self.partitions} partitions", f"replication {self.replication}", *told])


@dataclass(frozen=True)
class Flaw:
    """what : is wrong; do : what to do about it."""

    what: str
    do: str

    def __str__(self) -> str:
        return f"{self.what}: {self.do}"


def configuration(settings: Settings) -> dict[str, str]:
    """Configuration of a topic that we create.

    A record's time is when the broker took it: by its writer's, retention would delete an old record before
    it is read and keep a future one for ever, and its ids would be forgotten as soon as they are known.
    """
    return {
        "cleanup.policy": "delete",
        "message.timestamp.type": _BROKERS_TIME,
        "min.insync.replicas": str(settings.topic_min_insync),
        "retention.ms": str(round(settings.topic_retention_days * _DAY_MS)),
        "unclean.leader.election.enable": "false",
    }


def promised(settings: Settings, admin: AdminClient) -> Settings:
    """The settings; on a Kafka of this machine, unless the number of copies is set, with as many as there are
    nodes. They share its disks whatever their number, and whoever has a look should need no setting for it;
    `doubts` says what it is worth."""
    kafka = settings.kafka or ""
    hosts = [server.strip().rpartition(":")[0].strip("[]") for server in kafka.split(",")]
    if "topic_replication" in settings.model_fields_set or not all(map(is_loopback, hosts)):
        return settings
    nodes = len(admin.list_topics(timeout=_CALL_SECONDS).brokers)
    return settings.model_copy(update={"topic_replication": max(1, min(settings.topic_replication, nodes))})


def ensure_topic(admin: AdminClient, settings: Settings) -> int:
    """Create the topic as the settings say, unless it exists; returns its number of partitions. Raises as
    `broker.ensure_topic`."""
    settings = promised(settings, admin)
    return broker.ensure_topic(
        admin,
        settings.topic,
        settings.partitions,
        replication=settings.topic_replication,
        config=configuration(settings),
    )


def read_topic(admin: AdminClient, topic: str) -> TopicState:
    """Ask the broker. Raises UnavailableError, also where there is no such topic.

    Its configuration needs the right DESCRIBE_CONFIGS, which whoever writes may not have.
    """
    found = _found(admin, topic)
    # nodes, not entries: the embedded broker names its one node three times
    replication = min(len(set(partition.replicas)) for partition in found.partitions.values())
    asked = ConfigResource(ResourceType.TOPIC, topic)
    try:
        told = admin.describe_configs([asked], request_timeout=_CALL_SECONDS)[asked].result(2 * _CALL_SECONDS)
    except KafkaException as error:
        return TopicState(len(found.partitions), replication, untold=error.args[0].name())
    except TimeoutError:
        return TopicState(len(found.partitions), replication, untold="no answer")
    unclean = _value(told, "unclean.leader.election.enable")
    return TopicState(
        len(found.partitions),
        replication,
        min_insync=_number(told, "min.insync.replicas"),
        unclean=None if unclean is None else unclean == "true",
        retention_ms=_number(told, "retention.ms"),
        retention_bytes=_number(told, "retention.bytes"),
        cleanup=_value(told, "cleanup.policy"),
        timestamps=_value(told, "message.timestamp.type"),
        untold="" if told else "it is empty",
    )


def _found(admin: AdminClient, topic: str) -> TopicMetadata:
    """Whichever node is asked may not have heard of a topic that another one has just made. All are listed:
    a stock Kafka makes a topic that is asked for by name, with one copy."""
    for attempt in range(_TRIES):
        time.sleep(0.1 * attempt)
        try:
            found = admin.list_topics(timeout=_CALL_SECONDS).topics.get(topic)
        except KafkaException as error:
            raise UnavailableError(f"Kafka does not tell about {topic}: {error.args[0].str()}") from error
        if found is not None and found.error is None and found.partitions:
            return found
    raise UnavailableError(f"Kafka has no topic {topic}; run `gridpipe migrate --kafka …`")


def _value(told: dict[str, ConfigEntry], name: str) -> str | None:
    entry = told.get(name)
    return None if entry is None or entry.value is None else str(entry.value)


def _number(told: dict[str, ConfigEntry], name: str) -> int | None:
    value = _value(told, name)
    return None if value is None or not value.lstrip("-").isdigit() else int(value)


def faults(settings: Settings, found: TopicState) -> Iterator[Flaw]:
    """Why events written to this topic would not be as safe as their senders are told."""
    topic = f"topic {settings.topic}"
    if found.replication < settings.topic_replication:
        yield Flaw(
            f"{topic} has replication {found.replication}, the settings promise {settings.topic_replication}",
            f"give it more copies with kafka-reassign-partitions; {_ONLY} "
            f"GRIDPIPE_TOPIC_REPLICATION={found.replication}",
        )
    if found.min_insync is not None and found.min_insync < settings.topic_min_insync:
        yield Flaw(
            f"{topic} has min.insync.replicas {found.min_insync}, the settings promise "
            f"{settings.topic_min_insync}",
            f"{_alter(settings, 'min.insync.replicas', settings.topic_min_insync)}; {_ONLY} "
            f"GRIDPIPE_TOPIC_MIN_INSYNC_REPLICAS={found.min_insync}",
        )
    if found.unclean and found.replication > 1:  # a single copy has no other to elect
        yield Flaw(
            f"{topic} allows unclean leader election, which loses answered events",
            _alter(settings, "unclean.leader.election.enable", "false"),
        )
    if found.cleanup is not None and "compact" in found.cleanup:
        yield Flaw(
            f"{topic} is compacted: only the last block of each village would stay",
            _alter(settings, "cleanup.policy", "delete"),
        )


def doubts(settings: Settings, found: TopicState) -> Iterator[Flaw]:
    """What an operator should know, and what is no reason to refuse."""
    topic = f"topic {settings.topic}"
    if settings.topic_replication < _SAFE_REPLICATION or settings.topic_min_insync < _SAFE_MIN_INSYNC:
        yield Flaw(
            f"the settings allow replication {settings.topic_replication} and min.insync.replicas "
            f"{settings.topic_min_insync}: answers say `replicated`, and one disk can lose answered events",
            "production needs GRIDPIPE_TOPIC_REPLICATION=3 and GRIDPIPE_TOPIC_MIN_INSYNC_REPLICAS=2",
        )
    if found.untold:
        yield Flaw(
            f"the configuration of {topic} cannot be read ({found.untold}): whether it keeps answered events "
            "is not known",
            "allow DESCRIBE_CONFIGS on the topic (infra/security/kafka)",
        )
    if found.timestamps is not None and found.timestamps != _BROKERS_TIME:
        yield Flaw(
            f"{topic} takes the time that the writer of a record gives ({found.timestamps}): of old direct "
            "records copies may be stored twice, and retention may delete them unread",
            _alter(settings, "message.timestamp.type", _BROKERS_TIME),
        )
    if found.partitions != settings.partitions:
        yield Flaw(
            f"{topic} has {found.partitions} partitions, GRIDPIPE_PARTITIONS is {settings.partitions}; the "
            "topic's number counts",
            f"set {found.partitions}, or add partitions as docs/runbooks/GridpipeLagGrowing.md says",
        )
    wanted = round(settings.topic_retention_days * _DAY_MS)
    if found.retention_ms is not None and found.retention_ms != wanted:
        longer = found.retention_ms < 0 or found.retention_ms > wanted
        yield Flaw(
            f"{topic} keeps records {_days(found.retention_ms)}, GRIDPIPE_TOPIC_RETENTION_DAYS is "
            f"{settings.topic_retention_days:g}: "
            + ("personal data stay longer" if longer else "what no worker has read by then is lost"),
            _alter(settings, "retention.ms", wanted),
        )
    if settings.topic_retention_days > _DOCUMENTED_DAYS:
        yield Flaw(
            f"GRIDPIPE_TOPIC_RETENTION_DAYS is {settings.topic_retention_days:g}, docs/privacy.md says at "
            f"most {_DOCUMENTED_DAYS}",
            "shorten it, or change what your data map promises",
        )
    if found.retention_bytes is not None and found.retention_bytes >= 0:
        yield Flaw(
            f"{topic} drops records of a partition above {found.retention_bytes} bytes, read or not",
            _alter(settings, "retention.bytes", -1),
        )


def check_topic(admin: AdminClient, settings: Settings, *, refuse: bool = True) -> None:
    """Before the first event is taken: refuse a topic that cannot keep what is promised, warn of the rest.

    refuse : False for who only reads: not reading would make nothing safer.
    Raises ConfigurationError with every fault, UnavailableError.
    """
    settings = promised(settings, admin)
    found = read_topic(admin, settings.topic)
    wrong = list(faults(settings, found))
    if wrong and refuse:
        raise ConfigurationError([str(flaw) for flaw in wrong])
    for flaw in [*wrong, *doubts(settings, found)]:
        log.warning("topic_differs", what=flaw.what, do=flaw.do)


def _alter(settings: Settings, name: str, value: object) -> str:
    return f"kafka-configs --alter --topic {settings.topic} --add-config {name}={value}"


def _days(milliseconds: int) -> str:
    return "for ever" if milliseconds < 0 else f"{milliseconds / _DAY_MS:g} days"
