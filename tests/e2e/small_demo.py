"""The demo with a fiftieth of its volume and small batches: `python -m tests.e2e.small_demo demo …`.

The same code as `gridpipe demo`, so that what a kill does can be tried in a minute.
"""

from __future__ import annotations

from dataclasses import replace

import typer

from pipeline.cli.demo import register
from pipeline.simulate import demo, plan
from pipeline.simulate.published import PUBLISHED_YEARS

SHARE = 50
YEARS = tuple(
    replace(year, received=year.received // SHARE, closed=year.closed // SHARE) for year in PUBLISHED_YEARS
)
BATCH_EVENTS = 400


def run() -> None:
    for module, name, value in (
        (plan, "PUBLISHED_YEARS", YEARS),
        (demo, "PUBLISHED_YEARS", YEARS),
        (demo, "BATCH_EVENTS", BATCH_EVENTS),
    ):
        setattr(module, name, value)
    app = typer.Typer(pretty_exceptions_enable=False)
    register(app)
    app.callback()(lambda: None)
    app()


if __name__ == "__main__":
    run()
