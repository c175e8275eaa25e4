"""What the peers are given: their environment, the reference data as Parquet, the events as one file."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import polars as pl

from benchmarks import cache
from benchmarks.harness import RunFailedError, out
from pipeline.settings import load_settings
from pipeline.simulate.scene import load_matters

REQUIREMENTS: Final = Path(__file__).parent / "peers" / "requirements.txt"
_VENV: Final = cache.ROOT / "var" / "peers-venv"


def interpreter() -> str:
    """The peers' Python; installs their pinned packages the first time and whenever the pins change.

    Raises RunFailedError.
    """
    python = _VENV / "bin" / "python"
    stamp = _VENV / "requirements.blake2b"
    digest = hashlib.blake2b(REQUIREMENTS.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != digest:
        out.print("installing the peers' packages (a minute the first time)")
        try:
            subprocess.run([sys.executable, "-m", "venv", str(_VENV)], check=True)
            subprocess.run(
                [str(python), "-m", "pip", "install", "-q", "--require-hashes", "-r", str(REQUIREMENTS)],
                check=True,
                env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
            )
        except subprocess.CalledProcessError as error:
            raise RunFailedError(f"the peers' packages were not installed: {error}") from error
        stamp.write_text(digest)
    return str(python)


def reference(persons: int) -> Path:
    """`matters`, `grids`, `persons` as Parquet: `key`, then the attributes of the common work."""
    city = cache.city(persons)
    directory = cache.CACHE / f"peer-reference-{city.name}-keyed"
    if not (directory / "persons.parquet").exists():
        directory.mkdir(parents=True, exist_ok=True)
        load_matters(load_settings().catalogue_dir).frame.select(
            pl.col("code").alias("key"), "category", "lead_department"
        ).write_parquet(directory / "matters.parquet")
        pl.read_parquet(city / "grids.parquet").select(
            pl.col("grid_code").alias("key"), "grid_name", "grid_type", "village_kind"
        ).write_parquet(directory / "grids.parquet")
        pl.scan_parquet(city / "persons.parquet").select(
            pl.col("id_number").alias("key"), "gender", "residence_kind"
        ).sink_parquet(directory / "persons.parquet")
    return directory


def ndjson(source: cache.Events) -> Path:
    """All events as one NDJSON file."""
    path = source.directory / "events.ndjson"
    if not path.exists():
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            for chunk in source.chunks():
                file.write(("\n".join(chunk["json"].to_list()) + "\n").encode())
        partial.replace(path)
    return path
