"""The demo's bookkeeping: ledger across kills, reconciliation that can fail, directory rules, sender."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import orjson
import polars as pl
import pytest

from pipeline.errors import ConfigurationError, ContractError
from pipeline.settings import Settings, load_settings
from pipeline.simulate.demo import DistrictResult, free_http
from pipeline.simulate.ledger import History, Ledger
from pipeline.simulate.published import PUBLISHED_YEARS
from pipeline.simulate.sender import Sender
from pipeline.simulate.verify import reconcile
from pipeline.simulate.year import DemoDirectory
from pipeline.store.lock import DirectoryLock

LINES = pl.DataFrame({"lane": [0, 0, 0, 1], "line": [0, 1, 2, 0], "event_id": ["a", "b", "a", "c"]})


def held(**copies: int) -> pl.DataFrame:
    return pl.DataFrame(
        {"event_id": list(copies), "held": list(copies.values())},
        schema={"event_id": pl.String, "held": pl.Int64},
    )


def copies_of(path: Path) -> list[tuple[int, ...]]:
    return History(path).copies().rows()


# --- ledger


def test_answered_lines_are_acknowledged_and_others_are_not(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    with Ledger(path) as ledger:
        ledger.sent(0, 0, [0, 1, 2])
        ledger.answered(0, 0, [1])  # the service asks for line 1 again
        ledger.sent(0, 1, [1])
    assert copies_of(path) == [(0, 0, 1, 0), (0, 1, 0, 2), (0, 2, 1, 0)]
    history = History(path)
    assert history.settled(0, 3).tolist() == [True, False, True]
    assert history.next_attempt[0] == 2


def test_a_torn_last_line_is_as_if_never_written(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    with Ledger(path) as ledger:
        ledger.sent(1, 0, [0])
        ledger.answered(1, 0, [])
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert copies_of(path) == [(1, 0, 0, 1)]
    with Ledger(path) as ledger:
        ledger.sent(1, 1, [0])
        ledger.answered(1, 1, [])
    assert copies_of(path) == [(1, 0, 1, 1)]


# --- reconciliation


def all_answered(tmp_path: Path) -> pl.DataFrame:
    with Ledger(tmp_path / "ledger") as ledger:
        ledger.sent(0, 0, [0, 1, 2])
        ledger.answered(0, 0, [])
        ledger.sent(1, 0, [0])
        ledger.answered(1, 0, [])
    return History(tmp_path / "ledger").copies()


def test_everything_answered_and_held_is_reconciled(tmp_path: Path) -> None:
    result = reconcile(LINES, all_answered(tmp_path), held(a=2, b=1, c=1))
    assert (result.sent, result.problems) == (4, [])


def test_an_acknowledged_event_that_is_not_held_is_a_problem(tmp_path: Path) -> None:
    result = reconcile(LINES, all_answered(tmp_path), held(a=2, c=1))
    assert result.sent == 4
    assert result.problems == ["1 event ids acknowledged but not held, for example b"]


def test_an_event_held_more_often_than_sent_is_a_problem(tmp_path: Path) -> None:
    result = reconcile(LINES, all_answered(tmp_path), held(a=2, b=1, c=2, d=1))
    assert result.sent == 4
    assert result.problems[0].startswith("2 event ids held more often than sent")


@pytest.mark.parametrize(("arrived", "sent"), [(1, 4), (2, 5)])
def test_a_copy_without_an_answer_counts_only_if_it_arrived(tmp_path: Path, arrived: int, sent: int) -> None:
    all_answered(tmp_path)
    path = tmp_path / "interrupted"
    with Ledger(path) as ledger:
        ledger.sent(1, 0, [0])  # killed before the answer
        ledger.sent(0, 0, [0, 1, 2])
        ledger.answered(0, 0, [])
        ledger.sent(1, 1, [0])
        ledger.answered(1, 1, [])
    result = reconcile(LINES, History(path).copies(), held(a=2, b=1, c=arrived))
    assert (result.sent, result.problems) == (sent, [])


def test_an_event_that_was_never_acknowledged_is_a_problem(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger") as ledger:
        ledger.sent(0, 0, [0, 1, 2])
        ledger.answered(0, 0, [])
    result = reconcile(LINES, History(tmp_path / "ledger").copies(), held(a=2, b=1))
    assert result.problems == ["1 events were never acknowledged"]


# --- results


def test_a_district_is_equal_only_with_the_same_volumes_and_rates() -> None:
    jianghai = next(year for year in PUBLISHED_YEARS if year.code == "440704")
    heshan = next(year for year in PUBLISHED_YEARS if year.code == "440784")
    assert DistrictResult(jianghai, "江海区", 16_000, 15_920, 0.995, 1.0).differences == []
    assert DistrictResult(jianghai, "江海区", 16_000, 15_919, 15_919 / 16_000, 1.0).differences == [
        "closed 15919, published 15920",
        "closure rate 0.9949375, published 0.995",
    ]
    assert DistrictResult(jianghai, "江海区", 16_000, 15_920, None, 1.0).differences == [
        "closure rate None, published 0.995"
    ]
    assert DistrictResult(jianghai, "江海区", 16_000, 15_920, 0.995, 0.998).differences == [
        "response rate 0.998, published 1.0"
    ]
    stated_none = DistrictResult(heshan, "鹤山市", 2_000, 2_000, 1.0, 0.9)
    assert stated_none.differences == []
    assert stated_none.as_dict()["published"]["closure_rate"] is None


# --- directory


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(data_dir=tmp_path / "demo", simulated_persons=2_000)


def test_an_interrupted_demo_goes_on_and_a_finished_one_starts_anew(settings: Settings) -> None:
    first = DemoDirectory.open(settings)
    (settings.data_dir / "kept").touch()
    first.close()
    second = DemoDirectory.open(settings)
    assert (second.resumed, second.started_at) == (True, first.started_at)
    assert (settings.data_dir / "kept").exists()
    second.finish()
    second.close()
    third = DemoDirectory.open(settings)
    assert (third.resumed, (settings.data_dir / "kept").exists()) == (False, False)
    assert third.started_at > first.started_at
    third.close()


def test_two_demos_do_not_share_a_directory(settings: Settings) -> None:
    first = DemoDirectory.open(settings)
    with pytest.raises(ConfigurationError, match="is used by gridpipe pid"):
        DemoDirectory.open(settings)
    first.close()


def test_a_directory_with_other_data_or_a_running_service_is_left_alone(settings: Settings) -> None:
    settings.data_dir.mkdir()
    (settings.data_dir / "clickhouse").mkdir()
    with pytest.raises(ConfigurationError, match="other data than a demo's"):
        DemoDirectory.open(settings)
    (settings.data_dir / "clickhouse").rmdir()
    running = DirectoryLock(settings.run_dir / "gridpipe.lock", settings.data_dir)
    (settings.data_dir / "demo.json").write_bytes(
        orjson.dumps({"started_at": "2026-01-01T00:00:00+00:00", "seed": 1, "finished": True})
    )
    with pytest.raises(ConfigurationError, match="is used by gridpipe pid"):
        DemoDirectory.open(settings)
    running.release()


def test_a_taken_port_is_replaced_by_a_free_one() -> None:
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    address = f"127.0.0.1:{server.server_port}"
    assert free_http(address) == "127.0.0.1:0"
    server.server_close()
    assert free_http(address) == address


# --- sender, against a real HTTP server that says what it is told to


class Scripted(BaseHTTPRequestHandler):
    answers: list[tuple[int, dict[str, str], bytes]]
    bodies: list[bytes]

    def do_POST(self) -> None:
        self.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        status, headers, body = self.answers.pop(0)
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def scripted() -> Iterator[tuple[type[Scripted], str]]:
    handler = type("Handler", (Scripted,), {"answers": [], "bodies": []})
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_sender_tells_settled_events_from_those_to_send_again(scripted: tuple[type[Scripted], str]) -> None:
    handler, url = scripted
    errors = [
        {"index": 0, "code": "not_written", "retryable": True},
        {"index": 2, "code": "bad_type", "retryable": False},
    ]
    handler.answers.append((202, {}, orjson.dumps({"accepted": 1, "errors": errors})))
    with Sender(url, "key") as sender:
        answer = sender.post(["{}", "[]", "1"])
    assert (answer.taken, answer.again, answer.refused) == (True, (0,), ((2, "bad_type"),))
    assert handler.bodies == [b"{}\n[]\n1"]


def test_sender_waits_as_long_as_it_is_told_to_but_not_for_ever(scripted: tuple[type[Scripted], str]) -> None:
    handler, url = scripted
    handler.answers += [(503, {"Retry-After": "2"}, b"{}"), (429, {"Retry-After": "3600"}, b"{}")]
    with Sender(url, "key") as sender:
        first, second = sender.post(["{}"]), sender.post(["{}"])
    assert (first.taken, first.wait_seconds) == (False, 2.0)
    assert (second.taken, second.wait_seconds) == (False, 5.0)


def test_sender_takes_a_service_that_is_away_for_no_answer() -> None:
    with Sender("http://127.0.0.1:9", "key") as sender:
        assert not sender.post(["{}"]).taken


def test_sender_gives_up_on_a_refused_key(scripted: tuple[type[Scripted], str]) -> None:
    handler, url = scripted
    handler.answers.append((401, {}, orjson.dumps({"title": "a valid key is needed"})))
    with Sender(url, "key") as sender, pytest.raises(ContractError, match="401: a valid key is needed"):
        sender.post(["{}"])
