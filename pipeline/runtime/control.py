"""What the store process says about itself to the HTTP process: state and metrics."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Final, Literal

import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from pipeline.errors import UnavailableError
from pipeline.runtime.exposition import CONTENT_TYPE, worker_part

_ASK_SECONDS: Final = 2.0


@dataclass(frozen=True)
class Status:
    """worker : `assigned` once its partitions are assigned and recovered; catalogue : digest of the rules;
    braked : the partitions that stand still for their unreadable records, and why; "" if none does."""

    worker: Literal["starting", "assigned", "stopping"] = "starting"
    catalogue: str = ""
    revision: str = ""
    braked: str = ""

    @property
    def problem(self) -> str | None:
        """Why the worker is not ready, None if it is."""
        if self.worker != "assigned":
            return f"the worker is {self.worker}"
        return self.braked or None


class StatusBoard:
    """The status, written by the worker's thread, read by the control server's."""

    def __init__(self, status: Status) -> None:
        self._lock = threading.Lock()
        self._status = status

    def worker_is(self, state: Literal["starting", "assigned", "stopping"]) -> None:
        with self._lock:
            self._status = replace(self._status, worker=state)

    def braked_are(self, partitions: Mapping[int, str]) -> None:
        """Partitions that stand still -> why."""
        told = "; ".join(f"partition {number} stands still: {why}" for number, why in partitions.items())
        with self._lock:
            self._status = replace(self._status, braked=told)

    def read(self) -> Status:
        with self._lock:
            return self._status


def control_routes(board: StatusBoard) -> list[BaseRoute]:
    """`/status`, `/metrics` and `/health` of the store process, or of a worker alone."""

    async def status(_: Request) -> Response:
        return JSONResponse(asdict(board.read()))

    async def metrics(_: Request) -> Response:
        return Response(worker_part(), media_type=CONTENT_TYPE)

    async def live(_: Request) -> Response:
        return JSONResponse({"status": "live"})

    async def ready(_: Request) -> Response:
        found = board.read()
        problem = found.problem
        body = {
            "status": "not ready" if problem else "ready",
            "checks": {"worker": {"ok": problem is None, "detail": problem or found.worker}},
        }
        return JSONResponse(body, 503 if problem else 200)

    return [
        Route("/status", status, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
        Route("/health/live", live, methods=["GET"]),
        Route("/health/ready", ready, methods=["GET"]),
    ]


class ControlClient:
    """Asks the store process. One per event loop."""

    def __init__(self, url: str, token: str) -> None:
        self._client = httpx.AsyncClient(
            base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=_ASK_SECONDS, trust_env=False
        )

    async def status(self) -> Status:
        """Raises UnavailableError when the store process does not answer."""
        return Status(**(await self._get("/status")).json())

    async def metrics(self) -> bytes:
        """Raises UnavailableError when the store process does not answer."""
        return (await self._get("/metrics")).content

    async def _get(self, path: str) -> httpx.Response:
        try:
            return (await self._client.get(path)).raise_for_status()
        except httpx.HTTPError as error:
            raise UnavailableError("the store process does not answer") from error

    async def close(self) -> None:
        await self._client.aclose()
