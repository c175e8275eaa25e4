"""`gridpipe demo`: the districts' published year through the whole service, side by side with its figures."""

from __future__ import annotations

import contextlib
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.common import EXIT_SOME_REFUSED, err, out, print_json, print_table
from pipeline.errors import ConfigurationError
from pipeline.read.percent import percent_text

if TYPE_CHECKING:
    from pipeline.simulate.demo import DemoResult

_LINE_SECONDS = 10.0


def demo(
    *,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    data_dir: Annotated[
        Path, typer.Option("--data-dir", help="Directory for everything that the demo writes.")
    ] = Path("var/demo"),
    keep_running: Annotated[
        bool, typer.Option("--keep-running", help="Leave the service running at the end, until Ctrl-C.")
    ] = False,
) -> None:
    """Feed the districts' published year and compare what the pipeline measures with what was published.

    A finished demo starts from an empty directory next time; an interrupted one goes on.
    """
    from pipeline import logs
    from pipeline.runtime.process import harden, obey_signals
    from pipeline.settings import load_settings
    from pipeline.simulate.demo import PATIENCE_SECONDS, free_http, run_demo
    from pipeline.simulate.year import DemoDirectory

    harden()
    # reference data are loaded before every feed, so workers look often; the feed is patient, so that a slow
    # machine answers late instead of asking for everything again; no canary among the rows that are compared
    settings = load_settings(
        data_dir=data_dir,
        reference_refresh_seconds=1.0,
        durability_timeout_seconds=PATIENCE_SECONDS,
        canary_interval_seconds=0.0,
    )
    if settings.kafka is not None or settings.clickhouse is not None:
        raise ConfigurationError(
            "the demo feeds a simulated year and needs stores of its own: "
            "unset GRIDPIPE_KAFKA and GRIDPIPE_CLICKHOUSE"
        )
    settings = settings.model_copy(update={"http": free_http(settings.http)})
    stop = threading.Event()
    obey_signals(stop.set, last_words="ended at once; the next demo goes on from here")

    def after(url: str, result: DemoResult) -> None:
        if json:
            print_json(result.as_dict())
        else:
            _print(result)
        for problem in result.problems:
            err.print(f"[red]differs:[/] {problem}", soft_wrap=True)
        if keep_running:
            err.print(f"the service keeps running on {url}; Ctrl-C stops it")
            stop.wait()

    bar = _Bar()
    with contextlib.closing(DemoDirectory.open(settings)) as directory, bar:
        logs.configure(level=settings.log_level, role="demo", log_dir=settings.log_dir, console=False)
        result = run_demo(
            settings,
            directory,
            say=lambda line: err.print(line, soft_wrap=True),
            advance=bar.advance,
            stop=stop,
            after=after,
        )
    if result.problems:
        raise typer.Exit(EXIT_SOME_REFUSED)


class _Bar:
    """Progress on stderr: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._bar = Progress(
            TextColumn("feeding the year"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            console=err, transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task("events", total=None, visible=False)
        self._said_at = time.monotonic()

    def __enter__(self) -> None:
        self._context: AbstractContextManager[object] = self._bar if err.is_terminal else nullcontext()
        self._context.__enter__()

    def __exit__(self, *_: object) -> None:
        self._context.__exit__(None, None, None)

    def advance(self, settled: int, total: int) -> None:
        self._bar.update(self._task, completed=settled, total=total, visible=settled < total)
        if not err.is_terminal and time.monotonic() - self._said_at > _LINE_SECONDS:
            self._said_at = time.monotonic()
            err.print(f"{settled:,} of {total:,} events answered")


def _print(result: DemoResult) -> None:
    from rich import box
    from rich.table import Table

    from pipeline.simulate.published import YEAR_LABEL

    table = Table(
        title=f"办结率 closure rate, 响应率 response rate: {YEAR_LABEL}",
        caption="公布 published: received, closed, rates; 实测 measured in ClickHouse: cases, closed, rates",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("区 district", no_wrap=True)
    for said in ("公布", "实测"):
        for what in ("收件" if said == "公布" else "案件", "办结", "办结率", "响应率"):
            table.add_column(said + what, justify="right", no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    for district in result.districts:
        year = district.year
        table.add_row(
            f"{year.code} {district.name_zh}",
            f"{year.received:,}",
            f"{year.closed:,}",
            _rate(year.closure_rate),
            _rate(year.response_rate),
            f"{district.cases:,}",
            f"{district.closed:,}",
            _rate(district.closure_rate),
            _rate(district.response_rate),
            "≠" if district.differences else "=",
        )
    print_table(table)
    for district in result.districts:
        year = district.year
        out.print(f"  {year.code} {year.source_file} ({year.source_month}): {year.what}", soft_wrap=True)
    counted = result.counted
    out.print(
        f"events: {result.sent:,} sent = {counted.stored:,} stored + {counted.duplicates:,} duplicates + "
        f"{counted.rejected:,} rejected + {counted.quarantined:,} quarantined; {result.seconds:.1f} s",
        soft_wrap=True,
    )


def _rate(rate: float | None) -> str:
    return "not stated" if rate is None else f"{percent_text(rate)}%"


def register(app: typer.Typer) -> None:
    app.command("demo")(demo)
