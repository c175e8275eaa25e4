"""`gridpipe send` and `gridpipe validate`: a file of events, one JSON object per line."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Final, cast

import msgspec
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.cli.common import EXIT_SOME_REFUSED, KeyFile, err, key_of, out, print_json
from pipeline.errors import ConfigurationError, UnavailableError

if TYPE_CHECKING:
    from ssl import SSLContext

    from pipeline.ingest.client import EventClient, Line
    from pipeline.settings import Settings

DEFAULT_URL: Final = "http://127.0.0.1:8080"
#: Refused events that are shown, and that a JSON report lists; the count is always exact.
_SHOWN: Final = 20
_LISTED: Final = 10_000
#: Waits that are told also where no bar is shown, seconds.
_LONG_WAIT: Final = 10.0

_File = Annotated[Path, typer.Argument(help="NDJSON file of events; .gz and .zst are read as they are.")]
_Url = Annotated[str, typer.Option("--url", help="Address of the running service.")]
_Key = Annotated[
    str | None,
    typer.Option(
        "--key",
        help="Key of the feeding system, seen in process lists; better --key-file. Default: local.key.",
    ),
]
_BatchSize = Annotated[int, typer.Option("--batch-size", min=1, max=5000, help="Events in one request.")]
_DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Where local.key is.")]
_Json = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]


class SendState(msgspec.Struct):
    """How far a file has been sent; written after every answered batch, removed at the end."""

    fingerprint: str
    url: str
    lines_done: int = 0
    accepted: int = 0
    rejected: int = 0
    errors: list[dict[str, Any]] = []


# --- reading


class Source:
    """A file of lines, plain, gzip or zstd; `position` and `size` in bytes on disk."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ConfigurationError(f"{path}: no such file")
        self.path = path
        self.size = path.stat().st_size
        self._raw: IO[bytes] | None = None

    @property
    def position(self) -> int:
        return self._raw.tell() if self._raw is not None and not self._raw.closed else self.size

    def fingerprint(self) -> str:
        """Digest of name, size and beginning: another file under the same name starts anew.

        Raises ConfigurationError where it cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                head = file.read(65_536)
        except OSError as error:
            raise ConfigurationError(f"{self.path}: cannot be read: {error.strerror}") from error
        return hashlib.sha256(f"{self.path.name}:{self.size}:".encode() + head).hexdigest()[:32]

    def lines(self, skip: int = 0) -> Iterator[Line]:
        """Lines after the first `skip`, numbered from 1. ConfigurationError: damaged compression."""
        from zstandard import ZstdDecompressor, ZstdError

        from pipeline.ingest.client import Line

        with self.path.open("rb") as self._raw:
            plain: IO[bytes] = self._raw
            if self.path.suffix == ".gz":
                plain = cast("IO[bytes]", gzip.open(self._raw))  # noqa: SIM115 (closed with the file)
            elif self.path.suffix in (".zst", ".zstd"):
                reader = ZstdDecompressor().stream_reader(self._raw, read_across_frames=True, closefd=False)
                plain = io.BufferedReader(reader)
            try:
                for number, text in enumerate(plain, start=1):
                    if number > skip:
                        yield Line(number, text.rstrip(b"\r\n"))
            except (EOFError, OSError, ZstdError) as error:
                raise ConfigurationError(f"{self.path}: cannot be read to the end: {error}") from error


def read_key(key: str | None, settings: Settings) -> str:
    """The key given, else that of the key file, else the one that `gridpipe up` keeps for this machine."""
    key = key if key is not None else key_of(settings)
    if key is not None:
        return key
    try:
        return settings.local_key_path.read_text().strip()
    except OSError:
        raise ConfigurationError(
            "no key: give --key-file, or --data-dir of the running service "
            f"(looked for {settings.local_key_path})"
        ) from None


# --- send


def _state_path(path: Path, settings: Settings) -> Path:
    """Beside the file; under the data directory where that cannot be written."""
    beside = path.with_name(path.name + ".sent")
    try:
        beside.touch()
    except OSError:
        digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
        settings.run_dir.mkdir(parents=True, exist_ok=True)
        return settings.run_dir / f"sent-{digest}.json"
    return beside


def _load_state(path: Path, fingerprint: str, url: str) -> SendState:
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        state = msgspec.json.decode(path.read_bytes(), type=SendState)
        if (state.fingerprint, state.url) == (fingerprint, url):
            return state
    return SendState(fingerprint, url)


def _save_state(path: Path, state: SendState) -> None:
    """Raises ConfigurationError where it cannot be written."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(msgspec.json.encode(state))
        temporary.replace(path)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}; how far it is sent cannot be kept.") from error


def send(
    file: _File,
    *,
    url: _Url = DEFAULT_URL,
    key: _Key = None,
    key_file: KeyFile = None,
    batch_size: _BatchSize = 2000,
    restart: Annotated[bool, typer.Option("--restart", help="Send from the first line again.")] = False,
    data_dir: _DataDir = None,
    json: _Json = False,
) -> None:
    """Send a file; an interrupted one goes on where it stopped. Exit 1 if some events were refused."""
    from pipeline.ingest.client import EventClient
    from pipeline.settings import load_settings
    from pipeline.tls import verify_for

    settings = load_settings(data_dir=data_dir, key_file=key_file)
    source = Source(file)
    fingerprint, verify = source.fingerprint(), verify_for(settings, url)
    if not _answers(url, verify):
        raise UnavailableError(f"no service answers at {url}; start one with `gridpipe up`")
    key = read_key(key, settings)
    state_path = _state_path(file, settings)
    state = _load_state(state_path, fingerprint, url)
    if restart:
        state = SendState(state.fingerprint, url)
    resumed = state.lines_done
    if resumed:
        err.print(f"going on after line {resumed:,}; --restart begins anew", highlight=False)
    started = time.perf_counter()
    bar = _Bar(source)
    with bar.progress, EventClient(url, key, on_wait=bar.waiting, verify=verify) as client:
        try:
            _send_all(client, source, state, state_path, batch_size=batch_size, bar=bar)
        except (UnavailableError, ConfigurationError) as error:
            if state.lines_done:
                raise type(error)(
                    f"{error} Sent up to line {state.lines_done}; run it again to go on."
                ) from error
            raise
        finally:
            if not state.lines_done:
                state_path.unlink(missing_ok=True)
    state_path.unlink(missing_ok=True)
    _print_sent(state, file, resumed, time.perf_counter() - started, json)
    if state.rejected:
        raise typer.Exit(EXIT_SOME_REFUSED)


def _send_all(
    client: EventClient, source: Source, state: SendState, state_path: Path, *, batch_size: int, bar: _Bar
) -> None:
    from pipeline.ingest.client import batches

    for batch in batches(source.lines(skip=state.lines_done), batch_size):
        answer = client.send(batch)
        state.lines_done = batch[-1].number
        state.accepted += answer.accepted
        state.rejected += len(answer.refused)
        for number, error in sorted(answer.refused, key=lambda item: item[0]):
            if len(state.errors) < _LISTED:
                state.errors.append({"line": number, **{k: v for k, v in error.items() if k != "index"}})
        _save_state(state_path, state)
        bar.advance()


def _print_sent(state: SendState, file: Path, resumed: int, seconds: float, json: bool) -> None:
    if json:
        print_json(
            {
                "file": str(file),
                "sent": state.accepted + state.rejected,
                "accepted": state.accepted,
                "rejected": state.rejected,
                "resumed_after_line": resumed,
                "errors": state.errors,
                "seconds": round(seconds, 3),
            }
        )
        return
    _print_errors(state.errors, state.rejected)
    out.print(
        f"{state.accepted:,} events taken, {state.rejected:,} refused, {seconds:.1f} s", highlight=False
    )


def _print_errors(errors: list[dict[str, Any]], total: int) -> None:
    for error in errors[:_SHOWN]:
        name = f" {error['event_id']}" if error.get("event_id") else ""
        out.print(
            f"line {error['line']}{name}: {error['code']}: {error['message']}", markup=False, soft_wrap=True
        )
    if total > _SHOWN:
        out.print(f"… and {total - min(_SHOWN, len(errors)):,} more")


class _Bar:
    """A bar over the file's bytes on stderr, with a note while the service keeps us waiting."""

    def __init__(self, source: Source) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self._source = source
        self.progress = Progress(*columns, console=err, transient=True)
        self._task = self.progress.add_task(source.path.name, total=max(source.size, 1), note="")

    def advance(self) -> None:
        self.progress.update(self._task, completed=self._source.position, note="")

    def waiting(self, reason: str, seconds: float, asked: bool) -> None:
        note = f"{reason}; waiting {seconds:.0f} s, as the service asks"
        if not asked:
            note = f"{reason}; waiting {seconds:.1f} s"
        elif not err.is_terminal and seconds >= _LONG_WAIT:
            err.print(note, markup=False, soft_wrap=True)  # there is no bar to show it
        self.progress.update(self._task, note=note)


# --- validate


def validate(
    file: _File,
    *,
    url: _Url = DEFAULT_URL,
    key: _Key = None,
    key_file: KeyFile = None,
    batch_size: _BatchSize = 1000,
    data_dir: _DataDir = None,
    json: _Json = False,
) -> None:
    """Tell what would become of a file's events; nothing is written. Exit 1 if some would be refused."""
    from pipeline.ingest.client import EventClient
    from pipeline.settings import load_settings
    from pipeline.tls import verify_for

    settings = load_settings(data_dir=data_dir, key_file=key_file)
    check = _Check()
    source = Source(file)
    verify = verify_for(settings, url)
    if _answers(url, verify):
        bar = _Bar(source)
        with (
            bar.progress,
            EventClient(url, read_key(key, settings), on_wait=bar.waiting, verify=verify) as client,
        ):
            _validate_there(check, source, client, batch_size, bar)
    else:
        check = _Check(reference=False)
        _validate_here(check, source, batch_size, settings)
    if json:
        print_json(check.report(file))
    else:
        check.show()
    if check.refused or check.outcomes.get("rejected"):
        raise typer.Exit(EXIT_SOME_REFUSED)


class _Check:
    """What `validate` found. reference : whether the rules that need reference data were judged."""

    def __init__(self, *, reference: bool = True) -> None:
        self.reference = reference
        self.refused = 0
        self.outcomes: dict[str, int] = {}
        self.errors: list[dict[str, Any]] = []
        self.decisions: list[dict[str, Any]] = []

    def add(self, batch: list[Line], report: dict[str, Any]) -> None:
        for error in report["errors"]:
            self.refused += 1
            if len(self.errors) < _LISTED:
                number = batch[error["index"]].number
                self.errors.append({"line": number, **{k: v for k, v in error.items() if k != "index"}})
        for decision in report.get("decisions", ()):
            self.outcomes[decision["outcome"]] = self.outcomes.get(decision["outcome"], 0) + 1
            if len(self.decisions) < _LISTED:
                number = batch[decision["index"]].number
                self.decisions.append({"line": number, **{k: v for k, v in decision.items() if k != "index"}})

    def report(self, file: Path) -> dict[str, Any]:
        return {
            "file": str(file),
            "reference_rules": "judged" if self.reference else "unknown",
            "refused": self.refused,
            "outcomes": self.outcomes,
            "errors": self.errors,
            "decisions": self.decisions,
        }

    def show(self) -> None:
        if not self.reference:
            err.print(
                "no service answers: contract and catalogue are checked; rules that need reference data "
                "(grids, staff, persons, modes) are unknown",
                soft_wrap=True,
            )
        _print_errors(self.errors, self.refused)
        rejected = [item for item in self.decisions if item["outcome"] == "rejected"]
        for item in rejected[:_SHOWN]:
            fields = f" ({', '.join(item['missing_fields'])})" if item["missing_fields"] else ""
            reasons = ", ".join(item["reasons"])
            out.print(
                f"line {item['line']} {item['event_id']}: would be rejected: {reasons}{fields}", markup=False
            )
        if len(rejected) > _SHOWN:
            out.print(f"… and {len(rejected) - _SHOWN:,} more")
        counts = ", ".join(f"{number:,} {outcome}" for outcome, number in sorted(self.outcomes.items()))
        out.print(f"{self.refused:,} break the contract; of the others {counts or 'none'}", highlight=False)


def _answers(url: str, verify: SSLContext | bool) -> bool:
    """Whether anything listens at `url`. Raises ConfigurationError, also for a certificate that is not
    trusted: a service is there."""
    import httpx

    from pipeline.tls import failed_in_tls

    try:
        patience = httpx.Timeout(2.0, connect=5.0)
        httpx.get(f"{url}/health/live", timeout=patience, trust_env=False, verify=verify)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise ConfigurationError(f"--url {url}: {error}") from error
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        if failed_in_tls(error):
            raise ConfigurationError(f"{url}: {error}") from error
        return False
    except httpx.TransportError:
        pass  # slow, or no HTTP: it says more itself
    return True


def _validate_there(check: _Check, source: Source, client: EventClient, batch_size: int, bar: _Bar) -> None:
    from pipeline.ingest.client import batches

    for batch in batches(source.lines(), batch_size):
        check.add(batch, client.validate(batch))
        bar.advance()


def _validate_here(check: _Check, source: Source, batch_size: int, settings: Settings) -> None:
    from pipeline.ingest.client import batches
    from pipeline.ingest.validate import LocalCheck

    local = LocalCheck(settings)
    for batch in batches(source.lines(), batch_size):
        check.add(batch, local.check(b"\n".join(line.text for line in batch)))


def register(app: typer.Typer) -> None:
    app.command("send")(send)
    app.command("validate")(validate)
