"""Bring a cluster's access rules to those of acls.yaml: adds what is missing, removes what is not listed.

    python -m infra.security.kafka.apply --config admin.properties [--topic T] [--group G …] [--check]

admin.properties : librdkafka properties of an administrator (bootstrap.servers, security.protocol, …), 0600.
--group may be given several times: while workers change to another group both need their rules.
With --check nothing is changed; exit 1 if something would be. Rules are removed only of the users in
acls.yaml, and only on this topic and these groups: what such a user may do elsewhere (an earlier group,
another program's topic) is printed and left alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from confluent_kafka import KafkaException
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

ACLS = Path(__file__).parent / "acls.yaml"
_SECONDS = 15.0


def bindings(topic: str, groups: Sequence[str], path: Path = ACLS) -> list[AclBinding]:
    """The rules of the file for one topic and some groups. Raises ValueError, KeyError on a rule that is
    none."""
    rules: list[dict[str, Any]] = yaml.safe_load(path.read_text())
    return [
        AclBinding(
            ResourceType[rule["resource"].upper()],
            name,
            ResourcePatternType.LITERAL,
            rule["principal"],
            "*",
            AclOperation[operation],
            AclPermissionType.ALLOW,
        )
        for rule in rules
        for name in dict.fromkeys(rule["name"].format(topic=topic, group=group) for group in groups)
        for operation in rule["operations"]
    ]


def differences(admin: AdminClient, wanted: list[AclBinding]) -> tuple[list[AclBinding], list[AclBinding]]:
    """(missing, superfluous) rules of the principals in `wanted` on the resources in `wanted`. Raises
    KafkaException."""
    ours = {_resource(rule) for rule in wanted}
    found = _found(admin, wanted)
    missing = [rule for rule in wanted if rule not in found]
    return missing, [rule for rule in found if rule not in wanted and _resource(rule) in ours]


def elsewhere(admin: AdminClient, wanted: list[AclBinding]) -> list[AclBinding]:
    """Rules of the principals in `wanted` on other resources, patterns that cover ours among them. Raises
    KafkaException."""
    ours = {_resource(rule) for rule in wanted}
    return [rule for rule in _found(admin, wanted) if _resource(rule) not in ours]


def _resource(rule: AclBinding) -> tuple[ResourceType, str, ResourcePatternType]:
    return rule.restype, rule.name, rule.resource_pattern_type


def _found(admin: AdminClient, wanted: list[AclBinding]) -> list[AclBinding]:
    anything = AclBindingFilter(
        ResourceType.ANY, None, ResourcePatternType.ANY, None, None, AclOperation.ANY, AclPermissionType.ANY
    )
    users = {rule.principal for rule in wanted}
    return [rule for rule in admin.describe_acls(anything).result(_SECONDS) if rule.principal in users]


def apply(admin: AdminClient, wanted: list[AclBinding]) -> tuple[int, int]:
    """Add and remove; returns how many. Raises KafkaException."""
    missing, superfluous = differences(admin, wanted)
    if missing:
        for done in admin.create_acls(missing).values():
            done.result(_SECONDS)
    for rule in superfluous:
        exactly = AclBindingFilter(
            rule.restype,
            rule.name,
            rule.resource_pattern_type,
            rule.principal,
            rule.host,
            rule.operation,
            rule.permission_type,
        )
        admin.delete_acls([exactly])[exactly].result(_SECONDS)
    return len(missing), len(superfluous)


def _text(rule: AclBinding) -> str:
    pattern = "" if rule.resource_pattern_type == ResourcePatternType.LITERAL else " (prefix)"
    words = (rule.permission_type.name, rule.principal, rule.operation.name, rule.restype.name)
    return f"{' '.join(words)} {rule.name}{pattern}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.security.kafka.apply", description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--topic", default="grid.events")
    parser.add_argument("--group", action="append", help="may be repeated (default: gridpipe)")
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    lines = [line.strip() for line in given.config.read_text().splitlines()]
    options = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    admin = AdminClient(options)
    wanted = bindings(given.topic, given.group or ["gridpipe"])
    try:
        for rule in elsewhere(admin, wanted):
            print(f"left alone: {_text(rule)}")  # noqa: T201
        if given.check:
            missing, superfluous = differences(admin, wanted)
            print(f"{len(missing)} rules missing, {len(superfluous)} too many")  # noqa: T201
            return 1 if missing or superfluous else 0
        added, removed = apply(admin, wanted)
    except KafkaException as error:
        print(f"error: {error.args[0].str()}", file=sys.stderr)  # noqa: T201
        return 3
    print(f"{added} rules added, {removed} removed")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
