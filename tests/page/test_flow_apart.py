"""The flow on the page of an api whose gateways and workers are processes of their own."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import orjson
import pytest
import structlog
from playwright.sync_api import Browser, Page, expect

from pipeline.errors import ConfigurationError
from pipeline.ingest.keys import KeyStore
from pipeline.page.figures import STUCK_SECONDS, Families, Figures, Sample, join, read_families
from pipeline.page.live import Live
from pipeline.page.watch import Look, Watch, watched_urls
from pipeline.runtime.control import Status, StatusBoard, control_routes
from pipeline.runtime.guard import check_start, unprotected
from pipeline.runtime.store import admin_listener
from pipeline.settings import Settings, load_settings
from tests.page.browser import id_of, quiet_page
from tests.page.canned import figures, open_canned, tell
from tests.security.certificates import make

if TYPE_CHECKING:
    from pipeline.page.board import Board

KEY = "gpk_0a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8s9T0u"  # pragma: allowlist secret


def _exposition(part: str, *statements: str) -> bytes:
    """What a process of its own writes that has counted so."""
    program = "\n".join(
        (
            "import sys",
            "from pipeline import metrics as m",
            "from pipeline.runtime.exposition import http_part, worker_part",
            *statements,
            f"sys.stdout.buffer.write({part})",
        )
    )
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout


def worker_page(events: int, partition: int, lag: int) -> bytes:
    return _exposition(
        "worker_part()",
        f"m.events.labels('admitted').inc({events})",
        f"m.committed_offset.labels('{partition}').set({events})",
        f"m.consumer_lag_records.labels('{partition}').set({lag})",
        f"m.consumer_lag_seconds.labels('{partition}').set({lag / 10})",
        f"for _ in range({events}): m.ingest_delay_seconds.observe(0.2)",
        f"m.sink_blocked_seconds.set({partition})",
    )


def gateway_page(accepted: int, held: int, waited: float) -> bytes:
    return _exposition(
        "http_part(reads=False)",
        f"m.gateway_events.labels('accepted').inc({accepted})",
        f"m.gateway_in_flight_bytes.set({held})",
        f"m.gateway_oldest_request_seconds.set({waited})",
    )


@pytest.fixture(scope="module")
def pages() -> dict[str, bytes]:
    return {
        "worker 1": worker_page(100, 0, 4),
        "worker 2": worker_page(40, 1, 6),
        "gateway 1": gateway_page(70, 1_000, 0.5),
        "gateway 2": gateway_page(80, 500, 0.0),
    }


def test_processes_are_added_and_their_partitions_joined(pages: dict[str, bytes]) -> None:
    found = join(read_families(page) for page in pages.values())
    assert found["events_total"]["admitted"] == 140
    assert found["gateway_events_total"]["accepted"] == 150
    assert found["gateway_in_flight_bytes"][""] == 1_500
    assert found["gateway_oldest_request_seconds"][""] == 0.5
    assert found["consumer_lag_records"] == {"0": 4, "1": 6}
    assert found["sink_blocked_seconds"][""] == 1
    assert found["ingest_delay_seconds_bucket"]["0.25"] == 140


def test_a_partition_that_two_tell_of_is_that_of_who_committed_further() -> None:
    lost: Families = {"committed_offset": {"3": 90.0}, "consumer_lag_records": {"3": 800.0}}
    has: Families = {"committed_offset": {"3": 95.0}, "consumer_lag_records": {"3": 1.0}}
    for order in ((lost, has), (has, lost)):
        assert join(order) == {"committed_offset": {"3": 95.0}, "consumer_lag_records": {"3": 1.0}}


def counted(at: float, **events: float) -> Sample:
    return Sample.of(at, {name: {"events_total": {"admitted": n}} for name, n in events.items()}, worker=True)


def test_a_worker_that_comes_goes_or_begins_anew_is_no_rate() -> None:
    figures = Figures()
    for at in range(6):
        figures.add(counted(at, one=1_000_000.0 + 10 * at, two=5.0 * at))
    assert figures.describe()["events_per_second"] == 15
    for at in range(6, 9):
        figures.add(counted(at, two=5.0 * at))
    assert figures.describe()["events_per_second"] == 5, "without the one that went"
    figures.add(counted(9, one=1_000_100.0, two=45.0))
    assert figures.describe()["events_per_second"] is None, "its million is no rate of this second"
    figures.add(counted(10, one=1_000_110.0, two=50.0))
    assert figures.describe()["events_per_second"] == 15
    # the other's events hide it in the sum
    figures.add(counted(11, one=1_000_200.0, two=1.0))
    assert figures.describe()["events_per_second"] is None


def test_what_stands_still_is_not_hidden_by_one_that_comes_and_goes_nor_by_one_that_goes_on() -> None:
    figures = Figures()
    for at in range(int(STUCK_SECONDS) + 3):
        told: dict[str, Families] = {
            "worker": {
                "events_total": {"admitted": 1.0},
                "committed_offset": {"3": 7.0},
                "consumer_lag_records": {"3": 2.0},
            },
            "quick": {"gateway_events_total": {"accepted": float(at)}},
            "slow": {
                "gateway_events_total": {"accepted": 4.0},
                "gateway_oldest_request_seconds": {"": float(at)},
            },
        }
        if at % 2:
            told["flapping"] = {"events_total": {"admitted": float(at)}}
        figures.add(Sample.of(at, told, worker=True))
    flow = figures.describe()["flow"]
    assert flow["topic"]["stuck_partitions"] == [3]
    assert flow["gateway"]["stuck"] is True


Answer = Callable[[bytes], Awaitable[bytes]]


@asynccontextmanager
async def serving(answer: Answer) -> Any:
    """A listener on loopback; `answer` is given the request's head. Yields host:port."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(await answer(await reader.readuntil(b"\r\n\r\n")))
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def ok(body: bytes, status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (
        status.encode(),
        len(body),
        body,
    )


def page_of(body: bytes) -> Answer:
    async def answer(_: bytes) -> bytes:
        return ok(body)

    return answer


def live_over(watch: Watch | None) -> Live:
    async def own() -> tuple[bytes, bytes | None]:
        return b"", None

    board = SimpleNamespace(reader=SimpleNamespace(clock=lambda: datetime(2026, 1, 1, tzinfo=UTC)))
    return Live(cast("Board", board), own, watch=watch, has_worker=False)


async def shown(live: Live, now: float) -> dict[str, Any]:
    await live._read_metrics(now)
    found: dict[str, Any] = orjson.loads(live.known(["figures"])["figures"])
    return found


async def test_the_page_of_an_api_shows_the_flow_of_processes_elsewhere(pages: dict[str, bytes]) -> None:
    more = {"worker 2": worker_page(90, 1, 0), "gateway 1": gateway_page(100, 0, 0.0)}
    now = dict(pages)

    def of(name: str) -> Answer:
        async def answer(_: bytes) -> bytes:
            return ok(now[name])

        return answer

    async with AsyncExitStack() as stack:
        at = {name: await stack.enter_async_context(serving(of(name))) for name in pages}
        live = live_over(Watch(load_settings(watch=" , ".join(at.values()))))
        first = await shown(live, 0.0)
        assert (first["worker"], first["gateway"], first["takes_events"]) == (True, True, False)
        assert (first["missing"], first["unwatched"]) == ([], [])
        assert first["totals"]["admitted"] == 140
        assert first["flow"]["topic"]["lag_records"] == 10
        now |= more
        then = await shown(live, 5.0)
        assert then["events_per_second"] == 10
        assert then["flow"]["gateway"]["accepted_per_second"] == 6
        assert 0.1 < then["delay_seconds"]["p50"] < 0.25
        assert then["delay_seconds"]["count"] == 50
        await live.end()


async def test_where_nothing_is_named_the_page_says_of_whom_it_knows_nothing(pages: dict[str, bytes]) -> None:
    alone = await shown(live_over(None), 0.0)
    assert (alone["unwatched"], alone["missing"]) == (["gateway", "worker"], [])
    async with serving(page_of(pages["worker 1"])) as at:
        live = live_over(Watch(load_settings(watch=at)))
        assert (await shown(live, 0.0))["unwatched"] == ["gateway"]
        await live.end()


async def test_who_does_not_answer_is_named_and_holds_nobody_up(pages: dict[str, bytes]) -> None:
    clock = [1_000.0]

    async def never(_: bytes) -> bytes:
        await asyncio.sleep(60)
        return b""

    async def endless(_: bytes) -> bytes:
        return ok(b"# nothing\n" * 500_000)

    down = False

    async def falls(_: bytes) -> bytes:
        return ok(b"", "503 Service Unavailable") if down else ok(pages["worker 2"])

    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        one = await enter(serving(page_of(pages["worker 1"])))
        mute, big = await enter(serving(never)), await enter(serving(endless))
        foreign, falling = await enter(serving(page_of(b"<html>"))), await enter(serving(falls))
        settings = load_settings(watch=f"{one},{mute},{big},{foreign},{falling},127.0.0.1:1")
        watch = Watch(settings, clock=lambda: clock[0])
        started = asyncio.get_running_loop().time()
        looks = await watch.look()
        assert asyncio.get_running_loop().time() - started < 5
        assert [look.why for look in looks] == [
            None,
            "no_answer",
            "no_metrics",
            "no_metrics",
            None,
            "no_answer",
        ]
        assert looks[4].families is not None
        live = live_over(watch)
        said = await shown(live, 0.0)
        assert said["totals"]["admitted"] == 140
        assert {"address": mute, "roles": [], "why": "no_answer"} in said["missing"]
        down = True
        clock[0] += 3
        assert (await watch.look())[4].families is not None, "late once is not silent"
        clock[0] += 3
        with structlog.testing.capture_logs() as lines:
            gone: Look = (await watch.look())[4]
            await watch.look()
        assert (gone.families, gone.roles, gone.why) == (None, {"worker"}, "no_metrics")
        assert [line for line in lines if line["address"] == falling] == [
            {
                "event": "watched_process_silent",
                "address": falling,
                "why": "no_metrics",
                "log_level": "warning",
            }
        ], "told once"
        await live.end()


async def test_a_refused_key_is_told_read_again_and_not_shown_each_second(
    pages: dict[str, bytes], tmp_path: Path
) -> None:
    """Who shows a hundred wrong keys a minute is locked out, with everybody at the address."""
    clock, heads = [0.0], list[bytes]()

    async def guarded(head: bytes) -> bytes:
        heads.append(head)
        allowed = f"authorization: bearer {KEY}x".encode().lower() in head.lower()
        return ok(pages["worker 1"]) if allowed else ok(b"", "401 Unauthorized")

    key = tmp_path / "key"
    key.write_text(KEY)
    key.chmod(0o600)
    async with serving(guarded) as at:
        with structlog.testing.capture_logs() as lines:
            watch = Watch(load_settings(watch=at, watch_key_file=key), clock=lambda: clock[0])
            key.write_text(f"{KEY}x\n")
            for _ in range(10):
                (look,) = await watch.look()
                clock[0] += 1
            assert (look.why, look.families, len(heads)) == ("refused", None, 1)
            clock[0] += 30
            (look,) = await watch.look()
        assert look.roles == {"worker"}
        assert KEY not in str(lines)
        await watch.close()


def test_addresses_are_looked_at_before_the_start(tmp_path: Path) -> None:
    given = load_settings(watch="10.0.0.1:9101, https://gw.example:9102 ,[::1]:9103")
    assert watched_urls(given) == ["http://10.0.0.1:9101", "https://gw.example:9102", "http://[::1]:9103"]
    secure = Settings(watch="10.0.0.1:9101,127.0.0.1:9102", tls_cert=tmp_path / "cert")
    assert watched_urls(secure) == ["https://10.0.0.1:9101", "http://127.0.0.1:9102"]
    for wrong in ("10.0.0.1", "ftp://a:1", "me:secret@a:1", "http://a:1/metrics"):
        with pytest.raises(ConfigurationError, match="GRIDPIPE_WATCH must be") as found:
            check_start(load_settings(watch=wrong, clickhouse="http://127.0.0.1:8123", data_dir=tmp_path))
        assert "secret" not in str(found.value)
    key = tmp_path / "key"
    key.write_text(KEY)
    key.chmod(0o644)
    open_key = load_settings(watch="10.0.0.1:9101", watch_key_file=key, data_dir=tmp_path)
    with pytest.raises(ConfigurationError, match="can be read by others"):
        check_start(open_key)
    assert any("GRIDPIPE_WATCH" in line for line in unprotected(open_key))
    key.chmod(0o600)
    check_start(open_key)


async def test_a_worker_that_shows_its_metrics_over_tls_to_a_key_is_read(tmp_path: Path) -> None:
    """Its own listener, as off loopback."""
    certificates = make(tmp_path / "tls")
    secure = {"tls_cert": certificates.cert, "tls_key": certificates.key}
    away = Settings(data_dir=tmp_path, admin_http="0.0.0.0:9101", **secure)
    shown_once = KeyStore(away.keys_path).create(roles=("admin",))
    key = tmp_path / "watch.key"
    key.write_text(f"{shown_once}\n")
    key.chmod(0o600)
    listener = socket.create_server(("127.0.0.1", 0))
    served = admin_listener(away, control_routes(StatusBoard(Status())), listener).start()
    address = f"https://127.0.0.1:{served.port}"
    try:
        for given, why in (
            ({"tls_ca": certificates.ca, "watch_key_file": key}, None),
            ({"tls_ca": certificates.ca}, "refused"),
            ({"watch_key_file": key}, "no_answer"),  # the system's authorities do not know it
        ):
            watch = Watch(load_settings(watch=address, data_dir=tmp_path / "api", **given))
            (look,) = await watch.look()
            assert look.why == why
            assert look.roles == (set() if why else {"worker"})
            await watch.close()
    finally:
        served.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with quiet_page(browser, viewport={"width": 1280, "height": 900}) as page:
        yield page


def test_the_panel_says_of_whom_nothing_is_known_and_what_to_set(page: Page) -> None:
    apart = figures(gateway=False, worker=False, expects_worker=False, takes_events=False)
    open_canned(page, figures=apart | {"unwatched": ["gateway", "worker"]})
    note = id_of(page, "flow-note")
    expect(note).to_have_text(
        "此处看不到网关和处理进程的运行数据：请在 api 的 GRIDPIPE_WATCH 中写明其管理地址"
    )
    id_of(page, "language").click()
    expect(note).to_have_text(
        "Nothing is known here of the gateways and workers: "
        "name the admin addresses in the api's GRIDPIPE_WATCH"
    )
    tell(page, "figures", figures(takes_events=False))
    expect(note).to_be_hidden()


def test_an_address_that_does_not_answer_is_named_at_its_arrow_and_in_the_banner(page: Page) -> None:
    missing = [
        {"address": "10.0.0.12:9101", "roles": ["worker"], "why": "no_answer"},
        {"address": "10.0.0.12:9102", "roles": ["gateway"], "why": "refused"},
    ]
    open_canned(page, figures=figures(missing=missing))
    expect(id_of(page, "flow-decode")).to_contain_text("无应答 10.0.0.12:9101")
    expect(id_of(page, "flow-decode")).to_have_class(re.compile("stuck"))
    expect(id_of(page, "flow-decode").locator(".rate")).to_have_text("7.0/秒")
    expect(id_of(page, "flow-gateway")).to_contain_text("拒绝了密钥 10.0.0.12:9102")
    expect(id_of(page, "flow-store").locator(".alarm")).to_be_hidden()
    banner = id_of(page, "banner")
    expect(banner).to_have_text("图中不含：10.0.0.12:9101 无应答、10.0.0.12:9102 拒绝了密钥")
    wide = "() => document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    assert page.evaluate(wide)
    id_of(page, "language").click()
    expect(banner).to_contain_text(
        "not in the figures: 10.0.0.12:9101 no answer, 10.0.0.12:9102 refuses the key"
    )
    # it never answered: whose it is is not known, and neither is anything of the workers
    never = missing[:1]
    never[0]["roles"] = []
    tell(page, "figures", figures(missing=never, worker=False, expects_worker=False))
    expect(id_of(page, "flow-decode")).to_contain_text("no answer 10.0.0.12:9101")
    expect(id_of(page, "flow-gateway").locator(".alarm")).to_be_hidden()
    tell(page, "figures", figures())
    expect(id_of(page, "banner")).to_be_hidden()


def test_no_test_event_where_no_gateway_is(page: Page) -> None:
    key = {"sources": ["handset"]}
    page.add_init_script("sessionStorage.setItem('gridpipe.key', 'gp_x')")
    open_canned(page, {"/v1/live/key": key}, figures=figures(takes_events=False))
    button = id_of(page, "test-event")
    id_of(page, "key").click()
    expect(id_of(page, "dialog")).to_contain_text("可发送的来源: handset · 请发到网关：此页的服务只供读取")
    expect(button).to_be_hidden()
    page.keyboard.press("Escape")
    tell(page, "figures", figures())
    expect(button).to_be_visible()


@pytest.mark.parametrize("status", [404, 405])
def test_a_test_event_that_no_gateway_took_is_no_id_that_is_missing(page: Page, status: int) -> None:
    """The page may be open since before the roles were parted."""
    page.add_init_script("sessionStorage.setItem('gridpipe.key', 'gp_x')")
    problem = {"code": "not_found", "message": "Not Found"}
    open_canned(
        page,
        {
            "/v1/live/key": {"sources": ["handset"]},
            "/v1/events": lambda route: route.fulfill(status=status, json=problem),
        },
    )
    id_of(page, "test-event").click()
    dialog = id_of(page, "dialog")
    dialog.get_by_role("button", name="发送", exact=True).click()
    expect(dialog).to_contain_text("请发到网关：此页的服务只供读取")
    expect(dialog).not_to_contain_text("没有这个编号")
