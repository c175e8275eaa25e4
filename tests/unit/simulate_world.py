"""A small simulated city, made once per session, and its scene."""

from __future__ import annotations

import atexit
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from pipeline.settings import load_settings
from pipeline.simulate.city import generate_city
from pipeline.simulate.scene import Scene

CATALOGUE: Path = load_settings().catalogue_dir


@cache
def small_city() -> Path:
    """3,000 residents; removed when the tests end."""
    out = Path(mkdtemp(prefix="simulated-city-"))
    atexit.register(shutil.rmtree, out, ignore_errors=True)
    generate_city(out, catalogue_dir=CATALOGUE, seed=5, persons=3_000)
    return out


@cache
def small_scene() -> Scene:
    return Scene.load(small_city(), CATALOGUE)
