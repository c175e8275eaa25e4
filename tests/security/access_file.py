"""`access.sql` put in force on the embedded engine: one process, one user of the file.

The engine keeps no users of its own (`CREATE USER` finds no storage), but it reads a server's configuration:
profiles, roles, grants and row policies of a `users_config` hold for whoever opens it, and everybody who does
is its `default`. So what the file says about one user becomes the `default` of a configuration, and what that
user may do is what the store's process may do for everybody. Not played here: passwords and hosts, and the
grants on ClickHouse's own tables, which the embedded engine asks of nobody.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

FOLDER = Path(__file__).parents[2] / "infra" / "security" / "clickhouse"
PASSWORD = "k7Qx-2mV9_pLw4Zr8Tn"  # pragma: allowlist secret
_SECONDS = {"minute": 60, "hour": 3600}


def statements(database: str = "grid") -> list[str]:
    """Of `access.sql`, in its order, each on one line; every password is PASSWORD.

    database : in place of `grid`.
    """
    text = (FOLDER / "access.sql").read_text()
    text = re.sub(r"--.*", "", text)
    text = re.sub(r"\$\{\w+_SHA256\}", hashlib.sha256(PASSWORD.encode()).hexdigest(), text)
    text = re.sub(r"\bgrid\.", f"{database}.", text)
    return [" ".join(statement.split()) for statement in text.split(";") if statement.strip()]


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


@dataclass
class Access:
    """What `access.sql` says, statement by statement; raises ValueError at one that is not understood."""

    #: Profile → (setting, value, CONST or the largest value or None).
    profiles: dict[str, list[tuple[str, str, str | None]]] = field(default_factory=dict)
    #: Role → its profile, None without one.
    roles: dict[str, str | None] = field(default_factory=dict)
    users: list[str] = field(default_factory=list)
    #: Role → statements "GRANT … ON …".
    grants: dict[str, list[str]] = field(default_factory=dict)
    #: Role or user → roles that it was granted.
    member: dict[str, list[str]] = field(default_factory=dict)
    #: Table → (condition, roles).
    policies: dict[str, list[tuple[str, list[str]]]] = field(default_factory=dict)
    #: Role → (seconds, element of the configuration → limit).
    quotas: dict[str, tuple[int, dict[str, str]]] = field(default_factory=dict)

    @classmethod
    def read(cls, statements: Iterable[str]) -> Access:
        found = cls()
        for statement in statements:
            found._take(statement)
        return found

    def _take(self, text: str) -> None:
        if m := re.fullmatch(r"CREATE SETTINGS PROFILE IF NOT EXISTS (\w+)", text):
            self.profiles[m[1]] = []
        elif m := re.fullmatch(r"ALTER SETTINGS PROFILE (\w+) SETTINGS (.*)", text):
            self.profiles[m[1]] = [_setting(one) for one in _names(m[2])]
        elif m := re.fullmatch(r"CREATE ROLE IF NOT EXISTS (\w+)(?: SETTINGS PROFILE '(\w+)')?", text):
            self.roles[m[1]] = m[2]
        elif m := re.fullmatch(r"(GRANT .* ON \S+) TO (\w+)", text):
            self.grants.setdefault(m[2], []).append(m[1])
        elif m := re.fullmatch(r"GRANT ([\w, ]+) TO ([\w, ]+)", text):
            for name in _names(m[2]):
                self.member.setdefault(name, []).extend(_names(m[1]))
        elif m := re.fullmatch(r"REVOKE (.*) ON (\S+) FROM (\w+)", text):
            # Takes back what an older file gave: on a new site nothing that this one gives.
            assert f"GRANT {m[1]} ON {m[2]}" not in self.grants.get(m[3], []), text
        elif m := re.fullmatch(
            r"CREATE ROW POLICY OR REPLACE \w+ ON (\S+) FOR SELECT USING (.*) TO ([\w, ]+)", text
        ):
            self.policies.setdefault(m[1], []).append((m[2], _names(m[3])))
        elif m := re.fullmatch(
            r"CREATE QUOTA OR REPLACE \w+ KEYED BY user_name FOR INTERVAL 1 (\w+) MAX (.*) TO (\w+)", text
        ):
            limits = dict(one.replace(" ", "").split("=") for one in _names(m[2]))
            self.quotas[m[3]] = _SECONDS[m[1]], limits
        elif m := re.fullmatch(r"CREATE USER IF NOT EXISTS (\w+) IDENTIFIED WITH sha256_hash .*", text):
            self.users.append(m[1])
        elif not re.fullmatch(r"ALTER USER \w+ IDENTIFIED WITH sha256_hash BY '\w+' HOST IP '\S+'", text):
            raise ValueError(text)

    def roles_of(self, name: str) -> list[str]:
        """Roles of a user or role, those of its roles too."""
        found: list[str] = []
        waiting = list(self.member.get(name, []))
        while waiting:
            role = waiting.pop(0)
            if role not in found:
                found.append(role)
                waiting.extend(self.member.get(role, []))
        return found

    def configuration(self, roles: Iterable[str]) -> str:
        """`users.xml` of an engine that is open for somebody with these roles."""
        held = [*roles, *(further for role in roles for further in self.roles_of(role))]
        assert set(held) <= self.roles.keys(), held
        root = Element("clickhouse")
        profiles = SubElement(root, "profiles")
        (profile,) = {self.roles[role] for role in held if self.roles[role]} or {None}
        _add_profile(SubElement(profiles, "default"), self.profiles[profile] if profile else [])
        quota = SubElement(SubElement(root, "quotas"), "default")
        for seconds, limits in (self.quotas[role] for role in held if role in self.quotas):
            interval = SubElement(quota, "interval")
            for name, value in {"duration": str(seconds), **limits}.items():
                SubElement(interval, name).text = value
        made = SubElement(root, "roles")
        for role in self.roles:
            granted = SubElement(SubElement(made, role), "grants")
            for query in (
                *self.grants.get(role, []),
                *(f"GRANT {name}" for name in self.member.get(role, [])),
            ):
                SubElement(granted, "query").text = query
        user = SubElement(SubElement(root, "users"), "default")
        SubElement(user, "password").text = ""
        SubElement(SubElement(user, "networks"), "ip").text = "::/0"
        SubElement(user, "profile").text = "default"
        SubElement(user, "quota").text = "default"
        grants = SubElement(user, "grants")
        for role in roles:
            SubElement(grants, "query").text = f"GRANT {role}"
        databases = SubElement(user, "databases")
        for table, policies in self.policies.items():
            database, _, name = table.partition(".")
            place = databases.find(database)
            place = SubElement(databases, database) if place is None else place
            mine = [condition for condition, whose in policies if set(whose) & set(held)]
            # users_without_row_policies_can_read_rows = false
            SubElement(SubElement(place, name), "filter").text = (
                " OR ".join(f"({one})" for one in mine) or "0"
            )
        return ElementTree.tostring(root, encoding="unicode")


def _setting(text: str) -> tuple[str, str, str | None]:
    m = re.fullmatch(r"(\w+) = (\w+)(?: (CONST)| MAX (\w+))?", text)
    if m is None:
        raise ValueError(text)
    return m[1], m[2], m[3] or m[4]


def _add_profile(element: Element, settings: Iterable[tuple[str, str, str | None]]) -> None:
    constraints = Element("constraints")
    for name, value, bound in settings:
        SubElement(element, name).text = value
        if bound == "CONST":
            SubElement(SubElement(constraints, name), "const")
        elif bound:
            SubElement(SubElement(constraints, name), "max").text = bound
    element.append(constraints)


def write_configuration(directory: Path, access: Access, *roles: str) -> Path:
    """Configuration of an engine whose every caller is somebody with `roles`, in `directory`.

    Of the server's own file what the embedded engine has a use for: it opens no port and keeps no query log.
    """
    directory.mkdir(parents=True, exist_ok=True)
    users = directory / "users.xml"
    users.write_text(access.configuration(roles))
    root = ElementTree.parse(FOLDER / "server.xml").getroot()
    for element in list(root):
        if element.tag not in {"timezone", "access_control_improvements", "remote_url_allow_hosts"}:
            root.remove(element)
    SubElement(root, "users_config").text = str(users)
    path = directory / "config.xml"
    path.write_text(ElementTree.tostring(root, encoding="unicode"))
    return path
