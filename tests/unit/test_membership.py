"""Reading again from an earlier offset, while Faust still hands on what it had fetched before."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP

from pipeline.process.membership import Membership
from pipeline.settings import Settings


@pytest.mark.parametrize(("bare", "expected"), [(False, [5, 6, 7, 5, 6, 7]), (True, [5, 6, 7, 7])])
async def test_records_that_are_read_again_arrive_whatever_was_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bare: bool, expected: list[int]
) -> None:
    """Faust drops what lies before the last record that it handed on. A rewind in the middle of a batch was
    forgotten with its next record, and the records asked for never came, however often they were."""
    member = Membership(Settings(data_dir=tmp_path), "127.0.0.1:1", None)  # type: ignore[arg-type]
    consumer: Any = member._app.consumer
    partition = TP(Settings().topic, 0)
    batches = [[5, 6, 7], [5, 6, 7]]
    arrived: list[int] = []

    if bare:
        monkeypatch.setattr(consumer, "_read_offset", defaultdict(lambda: None))

    async def fetched(timeout: float) -> AsyncIterator[tuple[TP, Any]]:  # noqa: ASYNC109
        for offset in batches.pop(0) if batches else []:
            yield partition, SimpleNamespace(offset=offset, topic=partition.topic, key=None, value=None)
        if not batches:
            fetcher._stopped.set()

    async def take(message: Any) -> None:
        arrived.append(message.offset)
        if arrived == [5]:  # the worker finds a hole, and asks for what is missing
            await member.rewind(0, 1)
            consumer._read_offset[partition] = None  # as Faust's own seek does

    async def in_the_thread(*_: Any) -> None: ...

    fetcher = SimpleNamespace(_stopped=asyncio.Event())
    monkeypatch.setattr(consumer, "getmany", fetched)
    monkeypatch.setattr(consumer, "callback", take)
    monkeypatch.setattr(member, "_call", in_the_thread)
    await asyncio.wait_for(consumer._drain_messages(fetcher), 10)
    assert arrived == expected
