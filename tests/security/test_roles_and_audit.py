"""Roles of keys on listeners that are not loopback, and the audit log of reads of personal data."""

from __future__ import annotations

import os
import re
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from typer.testing import CliRunner

from pipeline.audit import AuditLog, operator
from pipeline.cli import keys as keys_commands
from pipeline.errors import ConfigurationError
from pipeline.ingest.keys import KeyStore
from pipeline.ingest.quota import Quotas
from pipeline.ingest.signing import Signatures, SigningAuth
from pipeline.rules.catalogue import load_catalogues
from pipeline.runtime.access import AuditReads, ReadKeys, RoleKeys, check_listeners
from pipeline.runtime.http import Parts, build_app
from pipeline.settings import Settings, load_settings
from tests.security.fakes import fake_id
from tests.unit.gateway_world import event, make_world

NOW = datetime(2026, 3, 1, 8, tzinfo=UTC)
ID_NUMBER = fake_id(7)


async def _hello(_: Request) -> Response:
    return PlainTextResponse("hello")


def app() -> Starlette:
    paths = ("/v1/events/{source}/{event_id}", "/v1/cases/{case_id}", "/v1/kpi", "/v1/rejections")
    return Starlette(routes=[Route(path, _hello) for path in paths])


def client(wrapped: Any, **options: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(wrapped, client=("192.0.2.7", 1)), base_url="http://api", **options
    )


def lines(directory: Path) -> list[dict[str, Any]]:
    files = sorted(directory.glob("*.jsonl"))
    return [orjson.loads(line) for path in files for line in path.read_bytes().splitlines()]


# --- roles


def test_roles_of_keys(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.json")
    for arguments, roles in (
        ({"source": "12345"}, {"ingest"}),
        ({"source": "read"}, {"read"}),
        ({"source": ["local", "read"]}, {"ingest", "read"}),
        ({"roles": ["read"]}, {"read"}),
        ({"roles": ["admin", "read"]}, {"admin", "read"}),
        ({"source": "12345", "roles": ["ingest", "read"]}, {"ingest", "read"}),
    ):
        credential = store.verify(store.create(**arguments))  # type: ignore[arg-type]
        assert credential is not None
        assert credential.roles == roles
    for wrong in ({}, {"roles": ["root"]}, {"roles": ["read"], "source": "12345"}, {"roles": ["ingest"]}):
        with pytest.raises(ConfigurationError):
            store.create(**wrong)  # type: ignore[arg-type]


def test_entries_of_earlier_versions_keep_their_rights(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    store = KeyStore(path)
    key = store.create(["local", "read"])
    entry = orjson.loads(path.read_bytes())
    for name in ("roles", "signed", "expires_at"):
        del entry["keys"][0][name]
    path.write_bytes(orjson.dumps(entry))
    credential = KeyStore(path).verify(key)
    assert credential is not None
    assert credential.roles == {"ingest", "read"}


async def test_only_ingest_keys_send(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    for role in ("read", "admin"):
        async with world.client(world.keys.create(roles=[role])) as http:
            answer = await http.post("/v1/events", json=event(1))
        assert (answer.status_code, answer.json()["code"]) == (403, "not_an_ingest_key")
    assert world.stored().is_empty()


async def test_reading_takes_signed_requests_too(tmp_path: Path) -> None:
    keys = KeyStore(tmp_path / "keys.json")
    key = keys.create(roles=["read"], signed=True)
    wrapped = ReadKeys(app(), keys, signatures=Signatures(keys, tmp_path / "nonces.sqlite"))
    async with client(wrapped, auth=SigningAuth(key)) as http:
        assert (await http.get("/v1/kpi?by=city")).status_code == 200
        assert (await http.get("/v1/kpi")).status_code == 200
    async with client(wrapped, auth=SigningAuth(keys.create("12345", signed=True))) as http:
        assert (await http.get("/v1/kpi")).json()["code"] == "not_a_read_key"


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("role", "path"), [("read", "/v1/kpi"), ("admin", "/metrics")])
async def test_a_hundred_wrong_credentials_lock_their_sender_out(
    tmp_path: Path, role: str, path: str, signed: bool
) -> None:
    keys = KeyStore(tmp_path / "keys.json")
    key = keys.create(roles=[role], signed=signed)
    signatures = Signatures(keys, tmp_path / "nonces.sqlite")
    quotas = Quotas(Settings(data_dir=tmp_path))
    wrapped = RoleKeys(app(), keys, role, (path,), signatures=signatures, quotas=quotas)

    def shown(secret: str) -> dict[str, Any]:
        return {"auth": SigningAuth(secret)} if signed else {"headers": {"Authorization": f"Bearer {secret}"}}

    guessed = "_".join([*key.split("_")[:2], "B" * 43])
    async with client(wrapped, **shown(guessed)) as http:
        answers = [await http.get(path) for _ in range(105)]
    assert [answer.status_code for answer in answers] == [401] * 100 + [429] * 5
    assert int(answers[-1].headers["Retry-After"]) >= 1
    async with client(wrapped, **shown(key)) as http:  # same address, same key id, the right secret
        assert (await http.get(path)).status_code != 429
    async with client(wrapped) as http:
        assert (await http.get(path)).status_code == 401  # without a credential nothing is guessed


def parts_of(settings: Settings) -> Parts:
    catalogues = load_catalogues(settings.catalogue_dir)
    return Parts(settings, catalogues, KeyStore(settings.keys_path), None, None, None, {})


async def test_public_metrics_need_an_admin_key(tmp_path: Path) -> None:
    keys = KeyStore(tmp_path / "keys.json")
    settings = load_settings(data_dir=tmp_path, http="127.0.0.1:0", admin_http="0.0.0.0:9090")
    with pytest.raises(ConfigurationError, match="keys add --role admin"):
        check_listeners(settings)
    admin, reader, feeder = keys.create(roles=["admin"]), keys.create(roles=["read"]), keys.create("12345")
    check_listeners(settings)
    public, separate = build_app(parts_of(settings))
    assert separate is not None
    async with client(separate) as http:
        assert (await http.get("/health/live")).status_code == 200
        assert (await http.get("/metrics")).status_code == 401
        for key, status in ((reader, 403), (feeder, 403), (admin, 200)):
            answer = await http.get("/metrics", headers={"Authorization": f"Bearer {key}"})
            assert answer.status_code == status
    async with httpx.AsyncClient(transport=httpx.ASGITransport(public), base_url="http://127.0.0.1") as http:
        assert (await http.get("/metrics")).status_code == 404


PROXIES = [
    {"X-Forwarded-For": "203.0.113.9"},
    {"Forwarded": "for=203.0.113.9"},
    {"X-Real-IP": "203.0.113.9"},
    {"Via": "1.1 proxy"},
    {"X-Forwarded-Proto": "https"},
]


@pytest.mark.parametrize("passed_on", PROXIES, ids=str)
@pytest.mark.parametrize("admin_http", [None, "127.0.0.1:0"])
async def test_a_proxy_on_this_machine_opens_nothing(
    tmp_path: Path, passed_on: dict[str, str], admin_http: str | None
) -> None:
    """Its connections come from loopback, and nginx sends the listener's own name as Host."""
    keys = KeyStore(tmp_path / "keys.json")
    reader, admin = keys.create(roles=["read"]), keys.create(roles=["admin"])
    public, separate = build_app(parts_of(load_settings(data_dir=tmp_path, admin_http=admin_http)))
    http = httpx.AsyncClient(transport=httpx.ASGITransport(public), base_url="http://127.0.0.1:8080")
    metrics = httpx.AsyncClient(transport=httpx.ASGITransport(separate or public), base_url=http.base_url)
    for client_of, path, role, key, other in (
        (http, "/v1/kpi", "read", reader, admin),
        (metrics, "/metrics", "admin", admin, reader),
    ):
        refused = await client_of.get(path, headers=passed_on)
        assert (refused.status_code, refused.json()["code"]) == (401, "unauthorised")
        assert f"gridpipe keys add --role {role}" in refused.json()["detail"]
        wrong = await client_of.get(path, headers={**passed_on, "Authorization": f"Bearer {other}"})
        assert wrong.status_code == 403
        for headers in ({}, {**passed_on, "Authorization": f"Bearer {key}"}):
            assert (await client_of.get(path, headers=headers)).status_code in {200, 404}  # no api here
    assert (await metrics.get("/health/live", headers=passed_on)).status_code == 200


def test_expired_and_revoked_keys_do_not_open_a_listener(tmp_path: Path) -> None:
    settings = load_settings(data_dir=tmp_path, http="0.0.0.0:8080", admin_http="127.0.0.1:9090")
    past = KeyStore(settings.keys_path, clock=lambda: NOW - timedelta(days=900))
    past.create(roles=["read"], expires_at=NOW - timedelta(days=800))
    keys = KeyStore(settings.keys_path)
    keys.revoke(keys.create(roles=["read"]).split("_")[1])
    with pytest.raises(ConfigurationError, match="needs a read key"):
        check_listeners(settings)


def test_command_makes_every_kind_of_key(tmp_path: Path) -> None:
    run, place = CliRunner().invoke, ["--data-dir", str(tmp_path), "--json"]
    made = orjson.loads(run(keys_commands.keys, ["add", "--role", "read", *place]).stdout)
    assert (made["roles"], made["sources"]) == (["read"], [])
    signed = orjson.loads(
        run(
            keys_commands.keys,
            ["add", "--source", "a", "--signed", "--expires", "2126-03-01", *place],
        ).stdout
    )
    assert signed["key"].startswith("gps_")
    assert signed["expires_at"] == "2126-02-28T16:00:00Z"  # midnight in the city
    listed = orjson.loads(run(keys_commands.keys, ["list", *place]).stdout)
    assert [(item["roles"], item["signed"]) for item in listed] == [(["read"], False), (["ingest"], True)]
    assert [line["call"] for line in lines(tmp_path / "audit")] == ["keys add", "keys add"]
    assert (
        signed["key"].split("_", 2)[2]
        not in (tmp_path / "audit").joinpath(f"{datetime.now(UTC).date()}.jsonl").read_text()
    )


# --- audit


async def test_every_read_of_one_person_s_data_leaves_a_line(tmp_path: Path) -> None:
    keys = KeyStore(tmp_path / "keys.json")
    key = keys.create(roles=["read"])
    audit = AuditLog(tmp_path / "audit", keep_days=1, clock=lambda: NOW)
    wrapped = ReadKeys(AuditReads(app(), audit, keys), keys)
    async with client(wrapped, headers={"Authorization": f"Bearer {key}"}) as http:
        assert (await http.get("/v1/events/12345/e-1")).text == "hello"
        await http.get("/v1/cases/c-1")
        await http.get("/v1/rejections?reason=TOO_OLD")
        await http.get("/v1/kpi")  # figures, no person
        await http.get("/v1/cases/c-1/nothing")
        await http.head("/v1/cases/c-1")  # its length tells, too
    async with client(wrapped) as http:
        assert (await http.get("/v1/cases/c-1")).status_code == 401  # not read
    who = f"key {key.split('_')[1]}"
    found = [
        (line["who"], line["call"], line["subject"], line["status"]) for line in lines(tmp_path / "audit")
    ]
    assert found == [
        (who, "GET /v1/events", "12345/e-1", 200),
        (who, "GET /v1/cases", "c-1", 200),
        (who, "GET /v1/rejections", None, 200),
        (who, "GET /v1/cases", "c-1/nothing", 404),
        (who, "HEAD /v1/cases", "c-1", 200),
    ]
    first = lines(tmp_path / "audit")[0]
    assert (first["at"], first["address"]) == ("2026-03-01T08:00:00.000+00:00", "192.0.2.7")
    assert lines(tmp_path / "audit")[2]["query"] == "reason=TOO_OLD"


async def test_audit_holds_no_personal_number(tmp_path: Path) -> None:
    keys = KeyStore(tmp_path / "keys.json")
    wrapped = AuditReads(app(), AuditLog(tmp_path / "audit", keep_days=1), keys)
    async with client(wrapped) as http:
        await http.get(f"/v1/cases/{ID_NUMBER}")
        await http.get("/v1/cases/13800001234")
        await http.get(f"/v1/rejections?reason=%20{ID_NUMBER}")
        await http.get("/v1/cases/" + "x" * 5_000)
    written = next((tmp_path / "audit").glob("*.jsonl")).read_text()
    assert ID_NUMBER not in written
    assert "13800001234" not in written
    assert len(written) < 3_000
    assert {line["who"] for line in lines(tmp_path / "audit")} == {"loopback"}


def test_audit_holds_no_half_of_a_number_that_is_cut(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path / "audit", keep_days=1)
    for kept in (1, 10, 17, 18):
        for number in (ID_NUMBER, "13800001234", "粤J8K2M7"):
            audit.record(who="key 1", call="GET /v1/events", subject=f"x{' ' * (199 - kept)}{number} y")
            audit.record(
                who="key 1", call="GET /v1/events", query="粤J8K2M7," * 5 + "x" * (155 - kept) + number
            )
    audit.close()
    subjects = [f"{line['subject']} {line.get('query')}" for line in lines(tmp_path / "audit")]
    assert len(subjects) == 24
    assert [text for text in subjects if re.search("[0-9]|粤", text)] == []
    assert all(len(text) < 220 for text in subjects)


async def test_no_line_no_answer(tmp_path: Path) -> None:
    keys = KeyStore(tmp_path / "keys.json")
    (tmp_path / "audit").write_text("a file where the directory should be")
    wrapped = AuditReads(app(), AuditLog(tmp_path / "audit", keep_days=1), keys)
    async with client(wrapped) as http:
        answer = await http.get("/v1/cases/c-1")
        assert (answer.status_code, answer.json()["code"]) == (503, "not_audited")
        assert "hello" not in answer.text
        assert (await http.get("/v1/kpi")).text == "hello"


async def test_the_http_process_audits(tmp_path: Path) -> None:
    settings = load_settings(data_dir=tmp_path, http="127.0.0.1:0")
    public, _ = build_app(parts_of(settings))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(public), base_url="http://127.0.0.1") as http:
        await http.get("/v1/cases/c-9")
    assert [line["subject"] for line in lines(settings.audit_dir)] == ["c-9"]


def test_a_file_a_day_private_and_deleted_in_time(tmp_path: Path) -> None:
    now = NOW
    audit = AuditLog(tmp_path / "audit", keep_days=30, clock=lambda: now)
    for _ in range(45):
        audit.record(who="key 1", call="GET /v1/cases", subject="c-1")
        now += timedelta(days=1)
    names = sorted(path.name for path in (tmp_path / "audit").iterdir())
    assert names[-1] == "2026-04-14.jsonl"
    assert len(names) == 31
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "audit").iterdir()} == {0o600}
    audit.close()


def test_several_processes_share_a_file(tmp_path: Path) -> None:
    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            audit = AuditLog(tmp_path / "audit", keep_days=1, clock=lambda: NOW)
            for _ in range(500):
                audit.record(who=f"key {number}", call="GET /v1/cases", subject="c-1" * 20)
            os._exit(0)
        children.append(child)
    assert all(os.waitpid(child, 0)[1] == 0 for child in children)
    assert len(lines(tmp_path / "audit")) == 2_000


async def test_whose_data_a_key_read_is_found_as_the_handbook_says(tmp_path: Path) -> None:
    handbook = (Path(__file__).parents[2] / "docs" / "privacy.md").read_text()
    who, command = re.findall(r"^WHO='(.*)'\n(cat var/audit/.*)$", handbook, re.MULTILINE)[0]
    keys = KeyStore(tmp_path / "keys.json")
    stolen, other = keys.create(roles=["read"]), keys.create(roles=["read"])
    audit = AuditLog(tmp_path / "var" / "audit", keep_days=1)
    wrapped = ReadKeys(AuditReads(app(), audit, keys), keys)
    for key, paths in (
        (
            stolen,
            ("events/12345/e-1", "events/12345/e-1", "cases/c-1", "rejections?reason=A", "cases/c/none"),
        ),
        (other, ("events/12345/e-2",)),
    ):
        async with client(wrapped, headers={"Authorization": f"Bearer {key}"}) as http:
            for path in paths:
                await http.get(f"/v1/{path}")
    # as `gridpipe case` without a service does
    audit.record(who=operator(), call="case", subject="c-7", query=None, address=None, status=200)

    def found(name: str) -> list[str]:
        script = f"WHO='{name}'\n{command}"
        result = subprocess.run(
            ["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return [" ".join(line.split()) for line in result.stdout.splitlines()]

    assert re.fullmatch(r"key [0-9a-f]{12}", who)
    assert found(f"key {stolen.split('_')[1]}") == [
        '1 GET /v1/cases "c-1" null',
        '2 GET /v1/events "12345/e-1" null',
        '1 GET /v1/rejections null "reason=A"',
    ]
    assert found(operator()) == ['1 case "c-7" null']
    assert found("key 000000000000") == []
