"""Calls beside each other: all have ended when one that failed is told, also where the worker ends
meanwhile."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any, NoReturn

import pytest

from pipeline.process.threads import Threads


class _Store:
    """A client that is never asked."""

    def close(self) -> None: ...


def made() -> Threads:
    return Threads(1, _Store, threading.Event())  # type: ignore[arg-type]


def test_each_has_a_client_of_its_own_and_answers_in_order() -> None:
    threads, own = made(), _Store()
    both = threading.Barrier(3, timeout=10)

    def call(client: Any) -> Any:
        both.wait()  # they run at once
        return client

    clients = threads.at_once(own, [call, call, call])  # type: ignore[arg-type]
    assert clients[0] is own
    assert len({id(client) for client in clients}) == 3
    threads.close()


def test_a_failure_is_told_once_all_have_ended() -> None:
    threads, ended = made(), []

    def fail(_: Any) -> NoReturn:
        raise ValueError("the store is down")

    def slow(_: Any) -> None:
        time.sleep(0.2)
        ended.append(True)

    with pytest.raises(ValueError, match="the store is down"):
        threads.at_once(_Store(), [fail, slow])  # type: ignore[arg-type, list-item]
    assert ended == [True]
    threads.close()


@pytest.mark.timeout(30)
def test_a_worker_that_ends_leaves_nobody_waiting() -> None:
    """A call that no thread had taken up yet is cancelled, which `concurrent.futures.wait` does not take for
    done."""
    threads, busy, closed = made(), threading.Event(), threading.Event()
    threads._beside = ThreadPoolExecutor(1)
    threads._beside.submit(busy.wait, 10)

    def close(_: Any) -> None:
        threads.close()
        closed.set()

    with pytest.raises(CancelledError):
        threads.at_once(_Store(), [close, lambda _: None])  # type: ignore[arg-type]
    assert closed.is_set()
    busy.set()
