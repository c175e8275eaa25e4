"""`gridpipe simulate`: the simulated city as reference files, its events as a file or as a live feed."""

from __future__ import annotations

import signal
import threading
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.common import key_of, print_json
from pipeline.cli.common import out as console
from pipeline.errors import ConfigurationError

simulate = typer.Typer(help="The simulated city: reference files, events, live feed.", no_args_is_help=True)

City = Annotated[Path, typer.Option("--city", help="Directory that `simulate city` wrote.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed; the same seed gives the same data.")]


@simulate.command("city")
def city(
    *,
    out: Annotated[Path, typer.Option(help="Directory to write grids, units, staff, … .parquet to.")],
    seed: Seed = None,
    persons: Annotated[
        int | None, typer.Option(min=0, max=5_000_000, help="Residents to simulate (default 20,000).")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print rows per file as JSON.")] = False,
) -> None:
    """Write the whole simulated city as reference files (Parquet)."""
    from rich.progress import Progress

    from pipeline.cli.common import err
    from pipeline.settings import load_settings
    from pipeline.simulate.city import generate_city

    settings = load_settings(simulate_seed=seed, simulated_persons=persons)
    with Progress(console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("residents", total=settings.simulated_persons)
        counts = generate_city(
            out,
            catalogue_dir=settings.catalogue_dir,
            seed=settings.simulate_seed,
            persons=settings.simulated_persons,
            progress=lambda _, done, total: bar.update(task, completed=done, total=total),
        )
    if json:
        print_json({"directory": str(out), "seed": settings.simulate_seed, "rows": counts})
        return
    for name, rows in counts.items():
        console.print(f"{name:<14}{rows:>10,}")
    console.print(f"simulated city (seed {settings.simulate_seed}) written to {out}")


@simulate.command("events")
def events(
    *,
    city: City,
    count: Annotated[int, typer.Option(min=1, max=5_000_000, help="Events to write, copies included.")],
    out: Annotated[Path, typer.Option(help="NDJSON file to write, one event a line, by arrival.")],
    seed: Seed = None,
    truth: Annotated[
        Path | None, typer.Option(help="JSON file for the ledger of what must come out.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=365, help="Days that the events cover.")] = 28,
    to: Annotated[
        str | None, typer.Option(help="End of these days, RFC 3339 (default: the last local midnight).")
    ] = None,
    source: Annotated[str, typer.Option(help="Feeding system named in the events.")] = "local",
    json: Annotated[bool, typer.Option("--json", help="Print the ledger as JSON.")] = False,
) -> None:
    """Write events of the simulated city and their ledger of truth.

    The same city, count, seed and end give the same file. Without a backfill key, events older than 30 days
    are rejected by the service: keep --days below 30.
    """
    from pipeline.settings import load_settings
    from pipeline.simulate.sample import write_sample

    settings = load_settings(simulate_seed=seed)
    ledger = write_sample(
        city_dir=city,
        catalogue_dir=settings.catalogue_dir,
        count=count,
        seed=settings.simulate_seed,
        end=_instant(to),
        days=days,
        source=source,
        out=out,
        truth=truth,
    )
    if json:
        print_json(ledger)
        return
    console.print(f"{ledger['events']['sent']:,} events written to {out}")
    if truth is not None:
        console.print(f"ledger of truth written to {truth}")


@simulate.command("feed")
def feed(
    *,
    city: City,
    url: Annotated[str, typer.Option(help="Address of the service.")] = "http://127.0.0.1:8080",
    admin_url: Annotated[
        str | None, typer.Option(help="Where its /metrics answers, if not at --url (its --admin-http).")
    ] = None,
    key: Annotated[
        str | None, typer.Option(envvar="GRIDPIPE_INTERNAL_KEY", help="Key for source `local`.")
    ] = None,
    seed: Seed = None,
    events_per_second: Annotated[float | None, typer.Option(min=0, help="Pace of new events.")] = None,
) -> None:
    """Feed live events of the simulated city to a running service until Ctrl-C."""
    from pipeline.settings import load_settings
    from pipeline.simulate.feed import run_city_feed

    settings = load_settings(simulate_seed=seed, simulate_events_per_second=events_per_second)
    key = key or key_of(settings)
    if key is None and not settings.local_key_path.exists():
        raise ConfigurationError(
            f"no key: give --key, or start the service that keeps {settings.local_key_path}"
        )
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    run_city_feed(
        url,
        key or settings.local_key_path.read_text(encoding="utf-8").strip(),
        city,
        settings.simulate_seed,
        settings.simulate_events_per_second,
        stop,
        catalogue_dir=settings.catalogue_dir,
        metrics_url=admin_url,
    )


def _instant(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigurationError(
            f"--to {text!r} is not an RFC 3339 time, for example 2026-03-01T00:00:00+08:00"
        ) from error
    if moment.tzinfo is None:
        raise ConfigurationError(f"--to {text!r} needs a zone, for example 2026-03-01T00:00:00+08:00")
    return moment


def register(app: typer.Typer) -> None:
    app.add_typer(simulate, name="simulate")
