"""ClickHouse: users, grants and row policies, parsed by the engine and held to the schema; run on the server
that GRIDPIPE_TEST_CLICKHOUSE names, for the embedded engine has no users."""

from __future__ import annotations

import os
import re
from pathlib import Path
from xml.etree import ElementTree

import clickhouse_connect
import pytest
import yaml
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from tests.security.access_file import FOLDER, PASSWORD, statements

#: Columns that may tell of a person: granted to no analyst.
SENSITIVE = {
    "actor_key", "actor_name", "actor_phone", "persons", "person_facts", "lon", "lat", "address", "photos",
    "title", "description", "void_reason", "attributes", "submission_id", "payload", "person_key",
    "name_masked", "phone_masked", "household_key",
}  # fmt: skip


def test_every_statement_is_what_the_engine_reads(open_client: Client) -> None:
    kinds = (
        "CREATE SETTINGS PROFILE",
        "ALTER SETTINGS PROFILE",
        "CREATE ROLE",
        "GRANT",
        "REVOKE",
        "CREATE QUOTA",
        "CREATE ROW POLICY",
        "CREATE USER",
        "ALTER USER",
    )
    seen = set()
    for statement in statements():
        formatted = open_client.query(
            "SELECT formatQuerySingleLine({s:String})", {"s": statement}
        ).result_rows[0][0]
        kind = next((kind for kind in kinds if formatted.startswith(kind)), None)
        assert kind is not None, formatted
        seen.add(kind)
    assert seen == set(kinds)
    with pytest.raises(ClickHouseError):
        open_client.query("SELECT formatQuerySingleLine({s:String})", {"s": "GRANT SELECT grid.events TO x"})


def test_run_again_it_sets_what_it_says() -> None:
    """IF NOT EXISTS alone would leave an old password, an old limit and an old policy in force."""
    told = statements()
    for kind in ("USER", "SETTINGS PROFILE"):
        made = {s.split(" IF NOT EXISTS ")[1].split()[0] for s in told if s.startswith(f"CREATE {kind} ")}
        altered = {s.split()[len(kind.split()) + 1] for s in told if s.startswith(f"ALTER {kind} ")}
        assert made == altered != set(), kind
    for kind in ("ROW POLICY", "QUOTA"):
        made_anew = [s for s in told if s.startswith(f"CREATE {kind} ")]
        assert made_anew
        assert all(s.startswith(f"CREATE {kind} OR REPLACE ") for s in made_anew), kind


def test_grants_name_what_is_there_and_analysts_see_no_person(clickhouse: Client) -> None:
    database = str(clickhouse.database)
    schema: dict[str, set[str]] = {}
    for table, column in clickhouse.query(
        "SELECT table, name FROM system.columns WHERE database = {d:String}", {"d": database}
    ).result_rows:
        schema.setdefault(table, set()).add(column)
    tables = {
        name
        for (name,) in clickhouse.query(
            "SELECT name FROM system.tables WHERE database = {d:String}", {"d": database}
        ).result_rows
    }
    analyst: set[str] = set()
    for statement in statements():
        for table in re.findall(r"\bgrid\.(\w+)", statement):
            assert table in tables, statement
        granted = re.match(r"GRANT SELECT \(([^)]*)\) ON grid\.(\w+) TO grid_analyst$", statement)
        if granted:
            columns = {name.strip() for name in granted[1].split(",")}
            assert columns <= schema[granted[2]], columns - schema[granted[2]]
            assert not columns & SENSITIVE
            # as its sender wrote it; a case keeps of a level only what names nobody
            assert granted[2] not in {"events", "rejections"} or "level" not in columns
            left_out = schema[granted[2]] - columns
            comment = re.search(rf"--   {granted[2]}: (.*)", (FOLDER / "access.sql").read_text())
            assert comment is not None
            assert left_out == {name.strip() for name in comment[1].split(",")}, granted[2]
        whole = re.match(r"GRANT SELECT ON grid\.(\w+) TO grid_analyst$", statement)
        if whole:
            analyst.add(whole[1])
            assert not schema.get(whole[1], set()) & SENSITIVE, whole[1]
    assert {"cases", "case_events", "kpi_cohort", "kpi_flow"} <= analyst
    assert not analyst & {
        "ref_persons",
        "ref_staff",
        "quarantine",
        "ref_erasures",
        "events",
        "pseudonym_keys",
    }
    written = set(re.findall(r"GRANT INSERT ON grid\.(\w+) TO grid_ingest", "\n".join(statements())))
    assert written == {
        "events", "rejections", "duplicates", "quarantine", "case_events", "cases", "incarnations",
        "ref_matters", "rule_sets", "pseudonym_keys",
    }  # fmt: skip


#: Granted to analysts of every district as a whole: no row of theirs is of a case, a report or a person.
OF_THE_WHOLE_CITY = {"ref_grids", "ref_units", "ref_matters", "ref_modes"}


def test_every_table_of_cases_has_a_policy_for_each_district(clickhouse: Client) -> None:
    """Views read with the rights of who asks: the policies of their tables hold in them."""
    views = {"case_current", "case_as_of", "kpi_cohort", "kpi_flow"}
    text = "\n".join(statements(str(clickhouse.database)))
    database = str(clickhouse.database)
    granted = set(
        re.findall(rf"GRANT SELECT(?: \([^)]*\))? ON {database}\.(\w+) TO grid_analyst$", text, re.MULTILINE)
    )
    roles = set(re.findall(r"CREATE ROLE IF NOT EXISTS grid_analyst_(\d{6})", text))
    assert len(roles) == 7
    found: dict[str, set[str]] = {}
    for name, table, condition, role in re.findall(
        rf"CREATE ROW POLICY OR REPLACE d(\d+) ON {database}\.(\w+) FOR SELECT USING (.*) "
        r"TO grid_analyst_(\d+)$",
        text,
        re.MULTILINE,
    ):
        assert name == role
        assert f"'{role}'" in condition
        clickhouse.query(f"SELECT count() FROM {table} WHERE {condition}")  # it fits the table
        found.setdefault(table, set()).add(role)
    assert found.keys() == granted - views - OF_THE_WHOLE_CITY
    assert all(districts == roles for districts in found.values()), found


#: Who reads ClickHouse's own tables: file → the roles whose users run it. `doctor` runs where api, gateway
#: and worker run, as their user.
READERS = {
    "infra/grafana/sink.py": {"grid_city"},
    "pipeline/page/board.py": {"grid_api"},
    "pipeline/read/gauges.py": {"grid_api"},
    "pipeline/read/held/parts.py": {"grid_api"},
    "pipeline/runtime/doctor.py": {"grid_api", "grid_ingest"},
    "pipeline/store/erase.py": {"grid_eraser"},
    "pipeline/store/migrate.py": {"grid_ingest"},
    "pipeline/store/retention.py": {"grid_ingest"},
    "pipeline/store/windows.py": {"grid_api", "grid_ingest"},
}


def test_who_reads_a_system_table_may_and_nobody_else() -> None:
    """server.xml has a grant required for each (select_from_system_db_requires_grant)."""
    root = Path(__file__).parents[2]
    read: dict[str, set[str]] = {}
    files = set()
    for path in [*root.glob("pipeline/**/*.py"), *root.glob("infra/grafana/*.py")]:
        tables = set(re.findall(r"(?<![\w.])system\.([a-z_]+)", path.read_text()))
        if tables:
            files.add(name := path.relative_to(root).as_posix())
            for role in READERS.get(name, ()):
                read.setdefault(role, set()).update(tables)
    assert files == READERS.keys()
    granted: dict[str, set[str]] = {}
    for table, role in re.findall(r"^GRANT SELECT ON system\.(\w+) TO (\w+)$", "\n".join(statements()), re.M):
        granted.setdefault(role, set()).add(table)
    assert granted == read


def test_nobody_may_call_out() -> None:
    text = "\n".join(statements()).upper()
    for source in ("URL", "FILE", "REMOTE", "S3", "EXECUTABLE", "MYSQL", "SOURCES"):
        assert not re.search(rf"GRANT [^;]*\b{source}\b", text), source


def test_server_files_are_well_formed() -> None:
    server = ElementTree.parse(FOLDER / "server.xml").getroot()
    for name in ("http_port", "tcp_port", "interserver_http_port"):
        port = server.find(name)
        assert port is not None
        assert port.get("remove") == "remove", name
    rows = server.find("access_control_improvements/users_without_row_policies_can_read_rows")
    assert rows is not None
    assert rows.text == "false"
    default = ElementTree.parse(FOLDER / "default-off.xml").getroot().find("users/default")
    assert default is not None
    assert default.get("remove") == "remove"


def test_grafana_asks_the_port_that_the_server_has() -> None:
    files = FOLDER.parents[1] / "grafana" / "provisioning" / "datasources"
    sources = yaml.safe_load((files / "gridpipe.yml").read_text())["datasources"]
    (options,) = [one["jsonData"] for one in sources if one["type"] == "grafana-clickhouse-datasource"]
    server = ElementTree.parse(FOLDER / "server.xml").getroot()
    assert (options["protocol"], options["secure"]) == ("native", True)
    assert str(options["port"]) == server.findtext("tcp_port_secure")


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md", "docs/upgrade.md", "docs/restore.md"])
def test_a_page_names_users_that_are_there(page: str) -> None:
    users = set(re.findall(r"CREATE USER IF NOT EXISTS (\w+)", "\n".join(statements())))
    named = re.findall(r"https://(\w+)@", (FOLDER.parents[2] / page).read_text())
    assert named
    assert set(named) <= users


@pytest.mark.skipif(
    "TEST_CLICKHOUSE" not in os.environ,
    reason="needs a ClickHouse server with access management: GRIDPIPE_TEST_CLICKHOUSE=URL",
)
def test_a_server_holds_users_to_their_grants(clickhouse: Client) -> None:
    url = os.environ["TEST_CLICKHOUSE"]
    database = str(clickhouse.database)
    for statement in statements(database):
        clickhouse.command(statement.replace("'10.0.0.0/8'", "'::/0'"))
    clickhouse.command(
        "INSERT INTO events (_part, _off, event_id, district_code, actor_name) VALUES "
        "(0, 1, 'a', '440703', '陈**'), (0, 2, 'b', '440704', '李**')"
    )
    clickhouse.command(
        f"CREATE USER IF NOT EXISTS district IDENTIFIED WITH plaintext_password BY '{PASSWORD}'"
    )
    clickhouse.command("GRANT grid_analyst_440703 TO district")

    def as_user(name: str) -> Client:
        parts = clickhouse_connect.get_client(dsn=url)
        host, port = parts.url.split("://")[1].split(":")  # type: ignore[attr-defined]
        parts.close()
        return clickhouse_connect.get_client(
            host=host, port=int(port), username=name, password=PASSWORD, database=database
        )

    district = as_user("district")
    assert district.query("SELECT event_id FROM events").result_rows == [("a",)]
    with pytest.raises(ClickHouseError, match="Not enough privileges"):
        district.query("SELECT actor_name FROM events")
    with pytest.raises(ClickHouseError, match="Not enough privileges"):
        district.query("SELECT * FROM url('http://127.0.0.1:1/', CSV, 'a String')")
    assert as_user("gridpipe_grafana").query("SELECT count() FROM events").result_rows == [(2,)]
    worker = as_user("gridpipe_worker")
    for refused in (
        "DROP TABLE events",
        "ALTER TABLE events DELETE WHERE 1",
        "CREATE TABLE x (a Int8) ENGINE = Memory",
    ):
        with pytest.raises(ClickHouseError):
            worker.command(refused)
