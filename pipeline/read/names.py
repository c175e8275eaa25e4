"""Chinese names of the keys of a KPI answer: areas from a file, codes from the catalogue, grids from data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import yaml
from clickhouse_connect.driver.client import Client

from pipeline.errors import ConfigurationError
from pipeline.rules.catalogue import Catalogues

#: A village has no row of its own; its name is what its grids' names begin with.
_VILLAGE: Final = re.compile(r".+?(?:社区|居委会|村委会|村)(?=第|.{0,4}网格|$)")


@dataclass(frozen=True)
class Areas:
    """City, districts and towns: code → Chinese name, each in the order in which reports list them."""

    city: Mapping[str, str]
    districts: Mapping[str, str]
    towns: Mapping[str, str]

    @classmethod
    def load(cls, catalogue_dir: Path) -> Areas:
        """Read `areas.yaml`. Raises ConfigurationError if it is missing or has another shape."""
        path = catalogue_dir / "areas.yaml"
        try:
            document = yaml.safe_load(path.read_text(encoding="utf-8"))
            districts = document["districts"]
            return cls(
                city={document["city"]["code"]: document["city"]["name_zh"]},
                districts={district["code"]: district["name_zh"] for district in districts},
                towns={town["code"]: town["name_zh"] for district in districts for town in district["towns"]},
            )
        except OSError:
            raise ConfigurationError(f"{path} is missing; restore it from the release") from None
        except (yaml.YAMLError, KeyError, TypeError) as error:
            raise ConfigurationError(
                f"{path}: {error!r}; it must hold city, districts and their towns"
            ) from error


class KpiNames:
    """`kpi.Names` for one call; grid names are read from `client` when grids or villages are asked for."""

    def __init__(self, areas: Areas, catalogues: Catalogues, client: Client) -> None:
        self._client = client
        self._fixed: Mapping[str, Mapping[str, str]] = {
            "city": areas.city,
            "district": areas.districts,
            "town": areas.towns,
            "matter": catalogues.matter_names_zh,
            "category": catalogues.category_names_zh,
            "department": catalogues.department_names_zh,
            "channel": catalogues.channel_names_zh,
        }
        self.channel_kinds: Mapping[str, str] = catalogues.channel_kind

    def listed_keys(self, by: str) -> Sequence[str]:
        """All keys of `city` and `district`, in their order; none for the others."""
        return tuple(self._fixed[by]) if by in {"city", "district"} else ()

    def name_zh(self, by: str, key: str) -> str | None:
        if by == "grid":
            return self._grids.get(key)
        if by == "village":
            return self._villages.get(key)
        return self._fixed[by].get(key)

    @cached_property
    def _grids(self) -> Mapping[str, str]:
        found = self._client.query(
            "SELECT grid_code, argMax(grid_name, (version, loaded_at)) FROM ref_grids GROUP BY grid_code"
        )
        return {str(grid_code): str(grid_name) for grid_code, grid_name in found.result_rows}

    @cached_property
    def _villages(self) -> Mapping[str, str]:
        names: dict[str, str] = {}
        for grid_code, grid_name in self._grids.items():
            village = _VILLAGE.match(grid_name)
            if village:
                names.setdefault(grid_code[:12], village.group())
        return names
