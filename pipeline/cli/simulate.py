"""`gridpipe simulate`: the simulated city as reference files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.common import out as console
from pipeline.cli.common import print_json

simulate = typer.Typer(help="The simulated city: reference files, events, live feed.", no_args_is_help=True)


@simulate.command("city")
def city(
    out: Annotated[Path, typer.Option(help="Directory to write grids, units, staff, … .parquet to.")],
    seed: Annotated[int | None, typer.Option(min=0, help="Seed; the same seed gives the same city.")] = None,
    persons: Annotated[
        int | None, typer.Option(min=0, max=5_000_000, help="Residents to simulate (default 20,000).")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print rows per file as JSON.")] = False,
) -> None:
    """Write the whole simulated city as reference files (Parquet)."""
    from pipeline.settings import load_settings
    from pipeline.simulate.city import generate_city

    settings = load_settings(simulate_seed=seed, simulated_persons=persons)
    counts = generate_city(
        out,
        catalogue_dir=settings.catalogue_dir,
        seed=settings.simulate_seed,
        persons=settings.simulated_persons,
    )
    if json:
        print_json({"directory": str(out), "seed": settings.simulate_seed, "rows": counts})
        return
    for name, rows in counts.items():
        console.print(f"{name:<14}{rows:>10,}")
    console.print(f"simulated city (seed {settings.simulate_seed}) written to {out}")


def register(app: typer.Typer) -> None:
    app.add_typer(simulate, name="simulate")
