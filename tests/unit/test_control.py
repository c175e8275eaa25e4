"""What the store process says of its worker."""

from __future__ import annotations

import httpx
from starlette.applications import Starlette

from pipeline.runtime.control import Status, StatusBoard, control_routes


async def test_a_worker_with_a_stopped_partition_is_not_ready_and_says_why() -> None:
    board = StatusBoard(Status(catalogue="c", revision="r"))
    transport = httpx.ASGITransport(app=Starlette(routes=control_routes(board)))
    async with httpx.AsyncClient(transport=transport, base_url="http://store") as client:

        async def worker() -> tuple[int, str]:
            answer = await client.get("/health/ready")
            return answer.status_code, answer.json()["checks"]["worker"]["detail"]

        assert await worker() == (503, "the worker is starting")
        board.worker_is("assigned")
        assert await worker() == (200, "assigned")
        board.braked_are({4: "more than 1000 unreadable records in a row"})
        assert await worker() == (
            503,
            "partition 4 stands still: more than 1000 unreadable records in a row",
        )
        status = Status(**(await client.get("/status")).json())
        assert status.problem == (await worker())[1]
        assert (await client.get("/health/live")).status_code == 200
        board.braked_are({})
        assert (await worker())[0] == 200
