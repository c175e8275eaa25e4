"""The fault tests' proxy counts what it does: they ask for so many replies dropped."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from tests.fault.proxy import Proxy


def _answer_in_parts(listener: socket.socket, parts: int, done: threading.Event) -> None:
    far, _ = listener.accept()
    with far:
        far.recv(100)
        for _ in range(parts):
            far.sendall(b"part")
            time.sleep(0.2)  # so that each is a chunk of its own
    done.set()


@pytest.mark.parametrize("parts", [1, 2])
def test_a_dropped_reply_counts_once_in_however_many_parts_it_comes(parts: int) -> None:
    """A broker answers what was asked before on the same connection, too."""
    listener = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()
    far = threading.Thread(target=_answer_in_parts, args=(listener, parts, done))
    far.start()
    between = Proxy(listener.getsockname()[1])
    between.drop_reply_to(b"marked")
    with socket.create_connection(("127.0.0.1", between.port), timeout=20) as caller:
        caller.sendall(b"marked")
        with pytest.raises(ConnectionResetError):
            caller.recv(100)
        assert done.wait(20)
        time.sleep(0.2)
    far.join(20)
    listener.close()
    between.close()
    assert between.dropped == 1
