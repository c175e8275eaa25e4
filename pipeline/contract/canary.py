"""The canary event: a synthetic event that shows, minute by minute, that the way to ClickHouse is open.

It is an ordinary event of the contract but for four things. Its source is reserved: no key covers it. It is a
DISCOVERED, so that the admission rules have nothing to judge. Its grid lies in region 999999, which no area
has. And it belongs to no case and is counted nowhere: not in a KPI, not in the counters of events.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from pipeline.contract.event import Actor, Event

CANARY_SOURCE: Final = "gridpipe-canary"
#: No district of the country begins like this.
CANARY_REGION: Final = "999999"


def canary_grid(village: int) -> str:
    """Grid code of a village of the canary's region, by a number below a million."""
    return f"{CANARY_REGION}{village:06d}001"


def canary_event(event_id: str, village: int, occurred_at: datetime) -> Event:
    """village : of `canary_grid`; it decides the partition."""
    return Event(
        event_id=event_id,
        source=CANARY_SOURCE,
        event_type="DISCOVERED",
        case_id=event_id,
        occurred_at=occurred_at,
        channel="iot_sensor",
        grid_code=canary_grid(village),
        actor=Actor(type="system"),
        attributes={"canary": True},
    )
