"""What the store process says about itself to the HTTP process: state and metrics."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass
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
    """worker : `assigned` once its partitions are assigned and recovered; catalogue : digest of the rules."""

    worker: Literal["starting", "assigned", "stopping"] = "starting"
    catalogue: str = ""
    revision: str = ""


class StatusBoard:
    """The status, written by the worker's thread, read by the control server's."""

    def __init__(self, status: Status) -> None:
        self._lock = threading.Lock()
        self._status = status

    def worker_is(self, state: Literal["starting", "assigned", "stopping"]) -> None:
        with self._lock:
            self._status = Status(state, self._status.catalogue, self._status.revision)

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
        worker = board.read().worker
        assigned = worker == "assigned"
        body = {
            "status": "ready" if assigned else "not ready",
            "checks": {"worker": {"ok": assigned, "detail": worker}},
        }
        return JSONResponse(body, 200 if assigned else 503)

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
