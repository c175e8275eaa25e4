"""Signed requests: what is covered, what is refused, and that nothing is taken twice."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from starlette.types import Message

from pipeline.errors import ConfigurationError
from pipeline.ingest.client import EventClient, Line
from pipeline.ingest.keys import KeyStore
from pipeline.ingest.routes import gateway_calls
from pipeline.ingest.signing import Claim, Nonces, Signatures, Signed, SigningAuth, signature
from tests.unit.gateway_world import NOW, World, event, make_world

BODY = orjson.dumps([event(1)])
JSON = {"Content-Type": "application/json"}


def moment(shift: float = 0.0) -> float:
    return NOW.timestamp() + shift


class Auth(SigningAuth):
    """Signs as the client does, then changes the request that is sent."""

    def __init__(self, key: str, shift: float = 0.0) -> None:
        super().__init__(key, clock=lambda: moment(shift))


def client(world: World) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(world.app, client=("192.0.2.7", 1)), base_url="http://gateway"
    )


async def signed_request(key: str, *, shift: float = 0.0, body: bytes = BODY) -> httpx.Request:
    request = httpx.Request("POST", "http://gateway/v1/events", headers=JSON, content=body)
    return next(Auth(key, shift).auth_flow(request))


async def test_signed_request_is_taken_once(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    request = await signed_request(world.keys.create("12345", signed=True))
    async with client(world) as http:
        assert (await http.send(request)).status_code == 202
        again = await http.send(request)
    assert (again.status_code, again.json()["code"]) == (409, "replayed")
    assert world.stored().height == 1


async def test_a_409_says_nothing_about_the_first_try_and_signed_anew_the_events_are_taken(
    tmp_path: Path,
) -> None:
    world = make_world(tmp_path)
    key = world.keys.create("12345", signed=True)
    request = await signed_request(key)
    world.log.down = True
    async with client(world) as http:
        assert (await http.send(request)).status_code == 503
        world.log.down = False
        again = await http.send(request)
        assert (again.status_code, again.json()["code"]) == (409, "replayed")
        assert "may be stored or not" in again.json()["message"]
        assert world.stored().is_empty()
        assert (await http.send(await signed_request(key))).status_code == 202
    assert world.stored().height == 1


async def test_restart_does_not_reopen_the_window(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    request = await signed_request(world.keys.create("12345", signed=True))
    async with client(world) as http:
        assert (await http.send(request)).status_code == 202
    world.gateway.signatures.close()
    restarted = make_world(tmp_path)
    async with client(restarted) as http:
        assert (await http.send(request)).status_code == 409


@pytest.mark.parametrize(
    "spoil",
    [
        lambda r: httpx.Request("POST", r.url, headers=r.headers, content=BODY.replace(b"e-1", b"e-2")),
        lambda r: httpx.Request("POST", str(r.url) + ":validate", headers=r.headers, content=BODY),
        lambda r: httpx.Request("POST", str(r.url) + "?x=1", headers=r.headers, content=BODY),
        lambda r: _with(r, "Content-Type", "application/x-ndjson"),
        lambda r: _with(r, "Content-Encoding", "identity"),
        lambda r: _edited(r, "time=", "time=1"),
        lambda r: _edited(r, "nonce=", "nonce=x"),
        lambda r: _edited(r, "signature=", "signature=" + "0" * 64 + ",x="),
        lambda r: _edited(r, "GRIDPIPE-HMAC-SHA256", "GRIDPIPE-HMAC-MD5"),
        lambda r: _edited(r, "GRIDPIPE-HMAC-SHA256 ", "GRIDPIPE-HMAC-SHA256 alg=none,"),
        lambda r: _with(r, "Authorization", "GRIDPIPE-HMAC-SHA256"),
        lambda r: _with(r, "Authorization", ""),
    ],
)
async def test_anything_else_than_what_was_signed_is_refused(tmp_path: Path, spoil: object) -> None:
    world = make_world(tmp_path)
    assert callable(spoil)
    request = spoil(await signed_request(world.keys.create("12345", signed=True)))
    async with client(world) as http:
        answer = await http.send(request)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorised")
    assert world.stored().is_empty()


async def test_an_empty_secret_and_a_header_left_out_are_refused(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    request = await signed_request(world.keys.create("12345", signed=True))
    claim = Claim.of(request.headers["authorization"])
    assert claim is not None
    signed = Signed("POST", "/v1/events", "application/json", "", BODY)
    forged = _edited(request, claim.signature, signature(b"", claim.time, claim.nonce, signed))
    headers = {name: value for name, value in request.headers.items() if name != "content-type"}
    bare = httpx.Request("POST", request.url, headers=headers, content=BODY)
    async with client(world) as http:
        assert (await http.send(forged)).status_code == 401
        assert (await http.send(bare)).status_code in {401, 415}
    assert world.stored().is_empty()


async def test_signatures_are_compared_in_equal_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`==` ends at the first letter that differs, which tells a forger how far the guess was right."""
    compared: list[tuple[str, str]] = []
    compare = hmac.compare_digest

    def watched(expected: str, given: str) -> bool:
        compared.append((expected, given))
        return compare(expected, given)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    world = make_world(tmp_path)
    request = await signed_request(world.keys.create("12345", signed=True))
    claim = Claim.of(request.headers["authorization"])
    assert claim is not None
    forged = _edited(request, claim.signature, "0" * 64)
    async with client(world) as http:
        assert (await http.send(forged)).status_code == 401
        assert (await http.send(request)).status_code == 202
    assert compared == [(claim.signature, "0" * 64), (claim.signature, claim.signature)]


def _with(request: httpx.Request, name: str, value: str) -> httpx.Request:
    headers = {**request.headers, name.lower(): value}
    return httpx.Request("POST", request.url, headers=headers, content=request.content)


def _edited(request: httpx.Request, old: str, new: str) -> httpx.Request:
    header = request.headers["authorization"]
    assert old in header
    return _with(request, "authorization", header.replace(old, new, 1))


@pytest.mark.parametrize(("shift", "status"), [(-301, 401), (-299, 202), (299, 202), (301, 401)])
async def test_time_must_be_near_ours(tmp_path: Path, shift: float, status: int) -> None:
    world = make_world(tmp_path)
    request = await signed_request(world.keys.create("12345", signed=True), shift=shift)
    async with client(world) as http:
        answer = await http.send(request)
    assert answer.status_code == status
    if status == 401:
        assert answer.json()["code"] == "stale_signature"
        assert str(int(moment())) in answer.json()["message"]


async def test_unknown_revoked_expired_and_bearer_keys_sign_nothing(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    revoked = world.keys.create("12345", signed=True)
    world.keys.revoke(revoked.split("_")[1])
    bearer = "gps_" + world.key.removeprefix("gp_")
    unknown = "gps_" + "0" * 12 + "_" + "A" * 43
    answers = []
    async with client(world) as http:
        for key in (revoked, bearer, unknown):
            answers.append(await http.send(await signed_request(key)))
    assert {answer.status_code for answer in answers} == {401}
    texts = {(a.json()["code"], a.json()["message"]) for a in answers}
    assert len(texts) == 1  # nobody learns which keys exist


async def test_signing_key_is_no_bearer_key(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    key = world.keys.create("12345", signed=True)
    async with client(world) as http:
        for shown in (key, key.replace("gps_", "gp_")):
            headers = JSON | {"Authorization": f"Bearer {shown}"}
            assert (await http.post("/v1/events", content=BODY, headers=headers)).status_code == 401


def test_secret_is_derived_and_the_key_file_alone_is_worth_nothing(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.json")
    key = store.create("12345", signed=True)
    assert key.split("_", 2)[2] not in (tmp_path / "keys.json").read_text()
    assert (tmp_path / "secrets" / "signing.v1").stat().st_mode & 0o777 == 0o600
    assert store.signing(key.split("_")[1])[0].decode() == key.split("_", 2)[2]
    (tmp_path / "secrets" / "signing.v1").unlink()
    with pytest.raises(ConfigurationError, match=r"signing\.v1"):
        KeyStore(tmp_path / "keys.json").signing(key.split("_")[1])


def test_canonical_string_is_the_documented_one() -> None:
    """Written out, so that a client in another language can be checked against it."""
    body = b'{"a":1}'
    head = [
        "GRIDPIPE-HMAC-SHA256",
        "1772352000",
        "abcdefghijklmnop",
        "POST",
        "/v1/events",
        "application/json",
        "",
    ]
    lines = "\n".join([*head, hashlib.sha256(body).hexdigest()])
    expected = hmac.new(b"k" * 43, lines.encode(), "sha256").hexdigest()
    request = Signed("post", "/v1/events", "application/json", "", body)
    assert signature(b"k" * 43, "1772352000", "abcdefghijklmnop", request) == expected


def test_nonces_are_kept_for_both_ends_of_the_window_and_then_forgotten(tmp_path: Path) -> None:
    nonces = Nonces(tmp_path / "n.sqlite")
    assert nonces.take("k", "n" * 16, 1_000.0)
    assert not nonces.take("k", "n" * 16, 1_599.0)
    assert nonces.take("other key", "n" * 16, 1_599.0)
    assert nonces.take("k", "n" * 16, 1_700.0)  # its time has passed long ago: refused as stale before
    assert (tmp_path / "n.sqlite").stat().st_mode & 0o777 == 0o600
    nonces.close()


async def test_without_a_place_for_nonces_nothing_signed_is_taken(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    world.gateway.signatures = Signatures(world.keys, tmp_path / "keys.json", clock=moment)  # no database
    request = await signed_request(world.keys.create("12345", signed=True))
    async with client(world) as http:
        answer = await http.send(request)
    assert answer.status_code == 503
    assert world.stored().is_empty()


async def test_unverified_request_takes_no_room_of_the_key_it_names(tmp_path: Path) -> None:
    """Whoever knows a key's id could else keep its owner out."""
    world = make_world(tmp_path)
    taken: list[str] = []
    take = world.gateway.budget.take

    def noting(key_id: str, size: int, *, verified: bool = True) -> None:
        taken.append(key_id)
        take(key_id, size, verified=verified)

    world.gateway.budget.take = noting  # type: ignore[method-assign]
    key = world.keys.create("12345", signed=True)
    async with client(world) as http:
        await http.send(await signed_request(key))
    transport = httpx.ASGITransport(world.app, client=("2001:db8::7", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
        await http.send(await signed_request(key))
    assert set(taken) == {"address 192.0.2.7", "address 2001:db8::/64"}


async def test_unverified_requests_hold_what_arrived_and_leave_room_for_the_keys(tmp_path: Path) -> None:
    """A length is declared for nothing, and bodies of nobody may come from many addresses."""
    world = make_world(tmp_path, in_flight_limit_bytes=4_000_000)
    call = gateway_calls(world.gateway)["/v1/events"]
    ends = asyncio.Event()
    statuses: list[int] = []

    async def claim(address: str, body: bytes) -> None:
        credential = f"key={'0' * 12},time=1,nonce={'a' * 16},signature={'0' * 64}"
        head = [
            (b"authorization", f"GRIDPIPE-HMAC-SHA256 {credential}".encode()),
            (b"content-type", b"application/json"),
            (b"content-length", b"3000000"),
        ]
        messages = [{"type": "http.request", "body": body, "more_body": True}] if body else []

        async def receive() -> Message:
            if messages:
                return messages.pop()
            await ends.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/events",
            "headers": head,
            "client": (address, 1),
        }
        await call(scope, receive, send)

    silent = [asyncio.create_task(claim(f"192.0.2.{number}", b"")) for number in range(60)]
    loud = [asyncio.create_task(claim(f"198.51.100.{number}", b"x" * 400_000)) for number in range(60)]
    await asyncio.sleep(0.1)
    assert statuses == [503] * 58  # a quarter of the limit is two of them
    assert (await world.post(event(1))).status_code == 202
    assert (await world.post([event(2, description="a" * 1_000_000)])).status_code == 422
    ends.set()
    await asyncio.gather(*silent, *loud)
    assert statuses == [503] * 58 + [400] * 62
    world.gateway.budget.take("a key", 4_000_000)  # all of it was given back


async def test_a_request_leaves_the_room_of_the_unverified_once_its_signature_is_verified(
    tmp_path: Path,
) -> None:
    """It may wait long for its blocks to be written; others' signatures are verified meanwhile."""
    world = make_world(tmp_path)
    budget, write = world.gateway.budget, world.gateway.writer.write
    held: list[tuple[int, bool]] = []

    async def noting(*arguments: Any, **options: Any) -> Any:
        held.append((budget._unverified, budget._used > 0))
        return await write(*arguments, **options)

    world.gateway.writer.write = noting  # type: ignore[method-assign]
    async with client(world) as http:
        answer = await http.send(await signed_request(world.keys.create("12345", signed=True)))
    assert answer.status_code == 202
    assert held == [(0, True)]
    assert (budget._unverified, budget._used) == (0, 0)


def test_event_client_signs_each_try_anew() -> None:
    key = "gps_" + "0" * 12 + "_" + "A" * 43
    seen: list[Claim] = []

    def answer(request: httpx.Request) -> httpx.Response:
        claim = Claim.of(request.headers["authorization"])
        assert claim is not None
        given = Signed(
            "POST", "/v1/events", "application/x-ndjson", request.headers["content-encoding"], request.content
        )
        assert signature(b"A" * 43, claim.time, claim.nonce, given) == claim.signature
        seen.append(claim)
        match len(seen):
            case 1:
                raise httpx.ReadTimeout("no answer")
            case 2:
                return httpx.Response(503, json={"message": "busy"})
            case 3:  # somebody between us sent the third try twice: nothing about its events is known
                return httpx.Response(409, json={"code": "replayed", "message": "received before"})
        return httpx.Response(202, json={"accepted": 1, "errors": []})

    transport = httpx.MockTransport(answer)
    with EventClient("http://gateway", key, transport=transport, sleep=lambda _: None) as sender:
        answer_of_all = sender.send([Line(1, b"{}")])
    assert (answer_of_all.accepted, answer_of_all.refused) == (1, [])
    assert len({claim.nonce for claim in seen}) == len(seen) == 4
    with pytest.raises(ConfigurationError, match="signing key"):
        EventClient("http://gateway", "gps_damaged")


def test_expired_key_stops(tmp_path: Path) -> None:
    now = NOW
    store = KeyStore(tmp_path / "keys.json", clock=lambda: now)
    plain = store.create("12345", expires_at=NOW + timedelta(days=1))
    signed = store.create("12345", signed=True, expires_at=NOW + timedelta(days=1))
    assert store.verify(plain) is not None
    assert store.signing(signed.split("_")[1])[1] is not None
    now = NOW + timedelta(days=1)
    assert store.verify(plain) is None  # also from the cache of right keys
    assert store.signing(signed.split("_")[1])[1] is None
    with pytest.raises(ConfigurationError, match="expired already"):
        store.create("12345", expires_at=NOW)
