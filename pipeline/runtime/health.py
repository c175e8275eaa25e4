"""Readiness as it is: every check is asked now, and each says what is wrong."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from pipeline import logs
from pipeline.errors import GridpipeError, UnavailableError
from pipeline.pool import BoundedPool

#: A check's answer is kept this long, so that a flood of probes does not become a flood of queries.
_KEEP_SECONDS: Final = 0.25
_CHECK_SECONDS: Final = 3.0

log = logs.get_logger(__name__)

Check = Callable[[], Awaitable[str]]


@dataclass(frozen=True)
class Outcome:
    """detail : what was found, or what is wrong."""

    ok: bool
    detail: str


class Health:
    """Runs the checks of a process. A check returns a detail or raises GridpipeError with the reason."""

    def __init__(self, checks: dict[str, Check]) -> None:
        self._checks = checks
        self._lock = asyncio.Lock()
        self._outcomes: dict[str, Outcome] = {}
        self._asked_at = float("-inf")

    async def outcomes(self) -> dict[str, Outcome]:
        async with self._lock:
            if time.monotonic() - self._asked_at > _KEEP_SECONDS:
                found = await asyncio.gather(*(self._ask(*item) for item in self._checks.items()))
                self._outcomes = dict(zip(self._checks, found, strict=True))
                self._asked_at = time.monotonic()
            return self._outcomes

    @staticmethod
    async def _ask(name: str, check: Check) -> Outcome:
        try:
            async with asyncio.timeout(_CHECK_SECONDS):
                return Outcome(ok=True, detail=await check())
        except GridpipeError as error:
            return Outcome(ok=False, detail=str(error))
        except TimeoutError:
            return Outcome(ok=False, detail=f"no answer within {_CHECK_SECONDS:g} s")
        except Exception as error:
            # What others say may name hosts and users: it goes to the log, for anybody may ask here.
            log.warning("check_failed", check=name, error=f"{type(error).__name__}: {error}")
            return Outcome(ok=False, detail=f"failed with {type(error).__name__}; the log says why")

    def routes(self) -> list[BaseRoute]:
        """`/health/live` and `/health/ready`."""

        async def live(_: Request) -> Response:
            return JSONResponse({"status": "live"})

        async def ready(_: Request) -> Response:
            outcomes = await self.outcomes()
            ok = all(outcome.ok for outcome in outcomes.values())
            body: dict[str, Any] = {
                "status": "ready" if ok else "not ready",
                "checks": {name: {"ok": o.ok, "detail": o.detail} for name, o in outcomes.items()},
            }
            return JSONResponse(body, 200 if ok else 503, headers={} if ok else {"Retry-After": "1"})

        return [Route("/health/live", live, methods=["GET"]), Route("/health/ready", ready, methods=["GET"])]


def broker_check(bootstrap: str, topic: str, access: Mapping[str, str] | None = None) -> Check:
    """The broker answers and has the topic."""
    # its own: a gateway whose threads are busy with bodies is ready all the same
    thread = BoundedPool("readiness", threads=1, queue=1)
    admin = AdminClient(
        {"bootstrap.servers": bootstrap, "log_level": 0, "socket.timeout.ms": 2_000, **(access or {})}
    )

    def ask() -> str:
        try:
            partitions = admin.list_topics(topic, timeout=2.0).topics[topic].partitions
        except KafkaException as error:
            log.warning("check_failed", check="broker", bootstrap=bootstrap, error=error.args[0].name())
            raise UnavailableError("Kafka does not answer") from error  # anybody may ask here
        if not partitions:
            raise UnavailableError(f"topic {topic} does not exist; `gridpipe migrate` creates it")
        return f"{topic}: {len(partitions)} partitions"

    async def check() -> str:
        return await thread.run(ask)

    return check
