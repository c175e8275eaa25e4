"""SASL, TLS and access rules on a real broker: the files of infra/security/kafka and our own clients."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AdminClient,
    NewTopic,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from structlog.testing import capture_logs

from infra.kafka.cluster import Cluster
from infra.security.kafka.apply import _found, apply, bindings, differences, elsewhere
from pipeline.errors import UnavailableError
from pipeline.ingest.blocks import Block
from pipeline.ingest.producer import KafkaProducer, Unwritten, Written
from pipeline.kafka_access import librdkafka_options
from pipeline.process.records import Record
from pipeline.process.topic import describe_topic
from pipeline.runtime import broker, topic_settings
from pipeline.settings import Settings
from tests.kafka import JARS, need_kafka
from tests.security.certificates import make

SERVER = Path(__file__).parents[2] / "infra" / "security" / "kafka" / "server.properties"
TOPIC, GROUP = "grid.events", "gridpipe"
PASSWORD = "k7Qx-2mV9_pLw4Zr8Tn"  # pragma: allowlist secret
#: Lines of server.properties that name machines, paths or other nodes: set for the test's one node.
OWN = {
    "listeners", "listener.security.protocol.map", "inter.broker.listener.name", "ssl.keystore.location",
    "sasl.mechanism.inter.broker.protocol", "ssl.truststore.location", "super.users",
    "default.replication.factor", "min.insync.replicas",
}  # fmt: skip


@dataclass
class Guarded:
    """A node with the rules of the files. admin : as super user, over a plain listener of the test only."""

    secure: str
    admin: AdminClient
    folder: Path
    ca: Path

    def settings(self, user: str, password: str = PASSWORD, **more: object) -> Settings:
        path = self.folder / f"{user}.password"
        path.write_text(password)
        path.chmod(0o600)
        values: dict[str, object] = {
            "kafka": self.secure,
            "kafka_security": "sasl_ssl",
            "kafka_username": user,
            "kafka_password_file": path,
            "kafka_ca": self.ca,
            "data_dir": self.folder,
        }
        return Settings(**(values | more))  # type: ignore[arg-type]

    def options(self, user: str, password: str = PASSWORD) -> dict[str, str | int]:
        return {
            "bootstrap.servers": self.secure,
            "log_level": 0,
            **librdkafka_options(self.settings(user, password)),
        }


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    need_kafka()
    folder = tmp_path_factory.mktemp("kafka-access")
    found = make(folder / "tls")
    together = folder / "tls" / "server-with-key.pem"
    together.write_text(found.key.read_text() + found.cert.read_text())
    given = dict(
        line.split("=", 1) for line in SERVER.read_text().splitlines() if line and not line.startswith("#")
    )
    cluster = Cluster(folder / "node", jars=JARS)
    (folder / "secrets.properties").write_text(f"password={PASSWORD}\n")
    login = next(name for name in given if name.endswith("sasl.jaas.config"))
    given[login] = given[login].replace("/etc/kafka/secrets.properties", str(folder / "secrets.properties"))
    node, secure = cluster.members[0], f"127.0.0.1:{broker.free_port()}"
    cluster.settings = {name: value for name, value in given.items() if name not in OWN} | {
        "listeners": f"PLAINTEXT://{node.address},SASL_SSL://{secure},CONTROLLER://127.0.0.1:{node.controller_port}",
        "advertised.listeners": f"PLAINTEXT://{node.address},SASL_SSL://{secure}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "ssl.keystore.location": str(together),
        "ssl.truststore.location": str(found.ca),
        "super.users": "User:ANONYMOUS",
    }
    with cluster:
        admin = AdminClient({"bootstrap.servers": cluster.bootstrap, "log_level": 0})
        admin.create_topics([NewTopic(TOPIC, 2), NewTopic("other", 1)])[TOPIC].result(20)
        credential = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        users = ("gridpipe-gateway", "gridpipe-worker", "platform", "gridpipe-admin", "stranger")
        made = admin.alter_user_scram_credentials(
            [UserScramCredentialUpsertion(user, credential, PASSWORD.encode()) for user in users]
        )
        for done in made.values():
            done.result(20)
        assert apply(admin, bindings(TOPIC, [GROUP]))[0] > 0
        _settled(admin)
        yield Guarded(secure, admin, folder, found.ca)


def _settled(admin: AdminClient) -> None:
    deadline = time.monotonic() + 20
    while differences(admin, bindings(TOPIC, [GROUP])) != ([], []):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def written(guarded: Guarded, user: str, topic: str = TOPIC, password: str = PASSWORD) -> str | None:
    """None if `user` could write to `topic`, else the error's name."""
    errors: list[str] = []
    producer = Producer(
        guarded.options(user, password)
        | {"message.timeout.ms": 8_000, "error_cb": lambda error: errors.append(error.name())}
    )
    reports: list[KafkaError | None] = []
    producer.produce(topic, b"x", partition=0, on_delivery=lambda error, _: reports.append(error))
    deadline = time.monotonic() + 12
    while not reports and "_AUTHENTICATION" not in errors and time.monotonic() < deadline:
        producer.poll(0.1)
    if not reports:
        return errors[0] if errors else "nothing"
    return None if reports[0] is None else reports[0].name()


def test_rules_are_applied_once_and_stale_ones_removed(guarded: Guarded) -> None:
    assert apply(guarded.admin, bindings(TOPIC, [GROUP])) == (0, 0)
    stale = [replaced(rule, operation=AclOperation.READ) for rule in rules_of("User:platform", TOPIC)[:1]]
    add(guarded, stale)
    assert apply(guarded.admin, bindings(TOPIC, [GROUP])) == (0, len(stale))
    _settled(guarded.admin)


def rules_of(principal: str, topic: str, groups: Sequence[str] = (GROUP,)) -> list[AclBinding]:
    return [rule for rule in bindings(topic, groups) if rule.principal == principal]


def replaced(rule: AclBinding, operation: AclOperation) -> AclBinding:
    return AclBinding(
        rule.restype,
        rule.name,
        rule.resource_pattern_type,
        rule.principal,
        rule.host,
        operation,
        rule.permission_type,
    )


def add(guarded: Guarded, rules: list[AclBinding]) -> None:
    for done in guarded.admin.create_acls(rules).values():
        done.result(20)
    deadline = time.monotonic() + 20
    while not set(rules) <= set(_found(guarded.admin, rules)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_rules_on_what_is_not_ours_stay(guarded: Guarded) -> None:
    """`platform` is everybody's user, and a worker may still be in its earlier group."""
    others = rules_of("User:platform", "other")
    add(guarded, others)
    second = bindings(TOPIC, ["second"])
    added, removed = apply(guarded.admin, second)
    assert (added, removed) == (2, 0), "the new group's two rules, and the first one's stay"
    for rules in (others, rules_of("User:gridpipe-worker", TOPIC), second):
        add(guarded, rules)  # all are there
    left = elsewhere(guarded.admin, second)
    assert set(left) == {*others, *(rule for rule in bindings(TOPIC, [GROUP]) if rule.name == GROUP)}
    assert differences(guarded.admin, bindings(TOPIC, [GROUP, "second"])) == ([], [])


def test_who_writes_and_reads_sees_what_the_topic_keeps_and_others_are_told_that_it_is_not_known(
    guarded: Guarded,
) -> None:
    allowed = {"topic_replication": 1}
    for user in ("gridpipe-gateway", "gridpipe-worker", "gridpipe-admin"):
        settings = guarded.settings(user, **allowed)
        found = topic_settings.read_topic(AdminClient(guarded.options(user)), TOPIC)
        assert (found.min_insync, found.untold) == (1, ""), user
        assert list(topic_settings.faults(settings, found)) == []
    admin = AdminClient(guarded.options("platform"))
    settings = guarded.settings("platform", **allowed)
    with capture_logs() as logs:
        topic_settings.check_topic(admin, settings)
    assert [line for line in logs if "TOPIC_AUTHORIZATION_FAILED" in line["what"]], logs


def test_gateway_and_platform_write_and_nobody_else(guarded: Guarded) -> None:
    assert written(guarded, "gridpipe-gateway") is None
    assert written(guarded, "platform") is None
    assert written(guarded, "gridpipe-worker") == "TOPIC_AUTHORIZATION_FAILED"
    assert written(guarded, "stranger") == "TOPIC_AUTHORIZATION_FAILED"
    assert written(guarded, "gridpipe-gateway", "other") == "TOPIC_AUTHORIZATION_FAILED"
    assert written(guarded, "gridpipe-gateway", password="w" + PASSWORD) == "_AUTHENTICATION"


async def test_the_gateways_own_producer_writes_over_sasl_and_tls(guarded: Guarded) -> None:
    """Idempotent, which asks the broker for a right of its own; and what a refused user's sender is told."""
    written_by: dict[str, list[object]] = {}
    for user in ("gridpipe-gateway", "gridpipe-worker"):
        producer = KafkaProducer(guarded.settings(user), guarded.secure, idempotent=True)
        try:
            assert await producer.partitions() == 2
            blocks = [Block(partition, np.arange(1), b"{}", b"440703001001") for partition in (0, 1)]
            written_by[user] = [type(each) for each in await producer.send(blocks)]
        finally:
            await producer.close()
    assert written_by == {"gridpipe-gateway": [Written] * 2, "gridpipe-worker": [Unwritten] * 2}


def test_plain_text_and_an_unknown_authority_are_no_way_in(guarded: Guarded, tmp_path: Path) -> None:
    plain = AdminClient(
        {"bootstrap.servers": guarded.secure, "log_level": 0, "socket.connection.setup.timeout.ms": 2_000}
    )
    with pytest.raises(KafkaException):
        plain.list_topics(timeout=3)
    other = guarded.settings("gridpipe-worker", kafka_ca=make(tmp_path / "other").ca)
    with pytest.raises(UnavailableError):
        broker.wait_until_up(guarded.secure, seconds=2, access=librdkafka_options(other))


def test_gateway_cannot_read(guarded: Guarded) -> None:
    reader = Consumer(
        guarded.options("gridpipe-gateway") | {"group.id": GROUP, "auto.offset.reset": "earliest"}
    )
    reader.subscribe([TOPIC])
    deadline, error = time.monotonic() + 15, None
    while error is None and time.monotonic() < deadline:
        message = reader.poll(0.5)
        error = message.error() if message is not None else None
        assert message is None or error is not None
    reader.close()
    assert error is not None
    assert error.name() in {"TOPIC_AUTHORIZATION_FAILED", "GROUP_AUTHORIZATION_FAILED"}


@dataclass
class Taken:
    """What a member of the group was given."""

    records: list[Record] = field(default_factory=list)
    partitions: set[int] = field(default_factory=set)
    ready: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, partition: int, record: Record) -> None:
        self.records.append(record)
        self.ready.set()

    async def assigned(self, partitions: set[int]) -> None:
        self.partitions |= partitions

    async def revoked(self, partitions: set[int]) -> None:
        self.partitions -= partitions


async def test_worker_joins_reads_and_commits_over_sasl_and_tls(guarded: Guarded) -> None:
    from pipeline.process.membership import Membership

    assert written(guarded, "gridpipe-gateway") is None
    settings = guarded.settings("gridpipe-worker")
    facts = await asyncio.to_thread(
        describe_topic, guarded.secure, TOPIC, access=librdkafka_options(settings)
    )
    assert len(facts.end_offsets) == 2
    broker.wait_for_topic(guarded.secure, TOPIC, seconds=10, access=librdkafka_options(settings))
    taken = Taken()
    member = Membership(settings, guarded.secure, taken)
    await member.start()
    try:
        async with asyncio.timeout(60):
            await taken.ready.wait()
            last = taken.records[-1].offset + 1
            await member.commit({0: last})
            assert await member.committed(0) == last
    finally:
        with contextlib.suppress(Exception):
            await member.stop(10)
