"""One Prometheus page for all roles: each metric family comes from the process that counts it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, disable_created_metrics, generate_latest
from prometheus_client.metrics_core import Metric

from pipeline.metrics import REGISTRY

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
#: Creation times double the page and mean nothing across restarts of a child.
disable_created_metrics()  # type: ignore[no-untyped-call]

_HTTP_PREFIXES: Final = (
    "gridpipe_http_",
    "gridpipe_gateway_",
    "gridpipe_balance_",
    "gridpipe_embedded_log_",
    "gridpipe_process_up",
    "gridpipe_canary_",
    "gridpipe_store_disk_",
)
#: Set by an api alone.
_API_GAUGES: Final = frozenset(
    {
        "gridpipe_held_cases",
        "gridpipe_held_bytes",
        "gridpipe_closure_ratio",
        "gridpipe_response_ratio",
        "gridpipe_open_cases",
        "gridpipe_overdue_cases",
        "gridpipe_response_seconds",
        "gridpipe_response_breached_cases",
        "gridpipe_response_breaches_last_hour_cases",
        "gridpipe_life_safety_rejections_last_hour_reports",
        "gridpipe_business_as_of_timestamp_seconds",
    }
)


def counted_by_http(family: str) -> bool:
    """Whether gateway and api count this family; all others are the worker's. Every process knows every
    family, so that without this rule a page joined from two would hold each of them twice."""
    return family.startswith(_HTTP_PREFIXES) or family in _API_GAUGES


class _Part(CollectorRegistry):
    """The families of a registry that one role counts."""

    def __init__(self, wanted: Callable[[str], bool]) -> None:
        super().__init__()
        self._wanted = wanted

    def collect(self) -> Iterator[Metric]:
        return (family for family in REGISTRY.collect() if self._wanted(family.name))


def http_part(*, reads: bool = True) -> bytes:
    """Exposition of what gateway and api count.

    reads : whether this process is an api. Nobody else sets its gauges: a gateway alone would tell the zeros
    they begin with, as figures of 1970 and as cases that are not held.
    """
    return generate_latest(
        _Part(lambda family: counted_by_http(family) and (reads or family not in _API_GAUGES))
    )


def worker_part() -> bytes:
    """Exposition of what the worker counts."""
    return generate_latest(_Part(lambda family: not counted_by_http(family)))
