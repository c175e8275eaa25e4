"""Reads reference tables into frames. Whatever goes wrong here is a missing store, never a missing record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import polars as pl
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from pipeline.contract.privacy import first_line
from pipeline.errors import UnavailableError

#: Keys named in one query; 64 bytes each stays well under ClickHouse's max_query_size.
KEYS_PER_QUERY: Final = 1_000
#: `source_system` of the simulated city.
SIMULATED: Final = "simulated-city"


def read_frame(client: Client, query: str, keys: Sequence[str] | None = None) -> pl.DataFrame:
    """Rows of `query`, where `%(keys)s` stands for `keys`. Raises UnavailableError."""
    try:
        table = client.query_arrow(query, parameters={"keys": list(keys)} if keys is not None else None)
    except (ClickHouseError, OSError) as error:
        reason = first_line(error)
        raise UnavailableError(f"reference data cannot be read from ClickHouse: {reason}") from error
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def read_by_keys(client: Client, query: str, keys: Sequence[str]) -> Iterator[pl.DataFrame]:
    """`read_frame` for any number of keys, in portions; at least one frame, so that the schema is known."""
    for start in range(0, max(len(keys), 1), KEYS_PER_QUERY):
        yield read_frame(client, query, keys[start : start + KEYS_PER_QUERY])


def holds_real_reference(client: Client) -> bool:
    """Whether somebody loaded reference data that are not the simulated city's. Raises UnavailableError."""
    parts = " UNION ALL ".join(
        f"SELECT 1 AS real FROM {table} WHERE ifNull(source_system, '') != '{SIMULATED}' LIMIT 1"
        for table in ("ref_grids", "ref_units", "ref_staff", "ref_persons", "ref_organisations")
    )
    return bool(read_frame(client, f"SELECT count() AS real FROM ({parts})")["real"][0])


def holds_grids_and_staff(client: Client) -> bool:
    """Whether a report can be admitted at all. Raises UnavailableError."""
    counted = read_frame(
        client, "SELECT (SELECT count() FROM ref_grids) AS grids, (SELECT count() FROM ref_staff) AS staff"
    )
    return bool(counted["grids"][0] and counted["staff"][0])


def announced(client: Client) -> dict[str, str]:
    """Which loads that wrote rows were announced, by kind: a digest that every further announcement changes.

    It does not ask which is the newest: a long load, or one of a host whose clock is behind, is seen as well.
    Raises UnavailableError.
    """
    loads = read_frame(
        client,
        "SELECT toString(kind) AS kind, hex(groupBitXor(mark)) AS digest FROM "
        "(SELECT DISTINCT kind, cityHash64(load_id, loaded_at) AS mark FROM ref_loads WHERE rows > 0) "
        "GROUP BY kind ORDER BY kind",
    )
    return dict(zip(loads["kind"].to_list(), loads["digest"].to_list(), strict=True))
