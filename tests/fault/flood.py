"""A flood: one and the same request as fast as it is answered, from a process that gives way to all others.

It is the test's own load, not what is tested: as threads of the test it took the cores from the gateway whose
answers the test times.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any, Final

import httpx

_THREADS: Final = 2
#: A tenth of the weight of a process that has none. Not less, or beside the work of others there is no flood.
_NICENESS: Final = 10


class Flood:
    """Runs from now until `stop`, or the end of its `with`; there once the process is about to send.

    events : the request, whose source `key` may speak for.
    """

    def __init__(self, url: str, key: str, events: list[dict[str, Any]]) -> None:
        self.events = events
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fault.flood"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # which can give way as one: `_give_way`
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"url": url, "key": key, "events": events}) + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "ready\n", "the flood did not begin"

    def __enter__(self) -> Flood:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            self._process.kill()  # nothing, where it was stopped

    def stop(self) -> tuple[Counter[int], list[dict[str, Any]]]:
        """How often each status was answered, and the events that were once answered 2xx."""
        output, _ = self._process.communicate(timeout=180)
        assert self._process.returncode == 0, f"a flood ended with {self._process.returncode}"
        told = json.loads(output)
        assert told["untold"] == 0, "refused without a word when to come again"
        answers = Counter({int(status): count for status, count in told["answers"].items()})
        return answers, [self.events[at] for at in told["taken"]]


def _give_way() -> None:
    """A tenth of what others get of a core that they want. Said twice: where the kernel groups processes by
    session, a niceness counts within its session, and the session's own between sessions."""
    os.nice(_NICENESS)
    autogroup = Path("/proc/self/autogroup")
    if autogroup.exists():
        autogroup.write_text(str(_NICENESS))


def main() -> None:
    """Sends what a line of the standard input says until that input ends; tells how it was answered."""
    given = json.loads(sys.stdin.readline())
    body = json.dumps(given["events"]).encode()
    headers = {"Authorization": f"Bearer {given['key']}", "Content-Type": "application/json"}
    answers: Counter[int] = Counter()
    taken: set[int] = set()
    untold, failed = 0, []
    stop, lock = threading.Event(), threading.Lock()

    def run() -> None:
        nonlocal untold
        try:
            with httpx.Client(timeout=60, trust_env=False) as client:
                while not stop.is_set():
                    answer = client.post(f"{given['url']}/v1/events", content=body, headers=headers)
                    with lock:
                        answers[answer.status_code] += 1
                        if answer.status_code == 202:
                            bad = {error["index"] for error in answer.json()["errors"]}
                            taken.update(set(range(len(given["events"]))) - bad)
                        elif int(answer.headers.get("retry-after", "0")) < 1:
                            untold += 1
        except Exception as error:  # told by the exit code: a flood that has quietly ended proves nothing
            failed.append(error)
            raise

    _give_way()
    threads = [threading.Thread(target=run) for _ in range(_THREADS)]
    print("ready", flush=True)
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()
    print(json.dumps({"answers": answers, "taken": sorted(taken), "untold": untold}))
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
