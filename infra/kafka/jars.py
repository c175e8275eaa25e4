"""Kafka's server jars from Maven Central, copied once; later starts need no network."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO

from pipeline.errors import UnavailableError

HERE = Path(__file__).parent
_POM = HERE / "pom.xml"
_FETCH_SECONDS = 600
_JAVA_AT_LEAST = 17


def fetch(directory: Path, *, seconds: float = _FETCH_SECONDS) -> Path:
    """The directory below `directory` that holds the jars of pom.xml; Maven fills it the first time.

    Processes may ask at once: one of them downloads, the others wait for it.
    seconds : how long all of this may take, waiting included.

    Raises UnavailableError, in one line, without Java 17, without Maven, or if Maven reaches no repository.
    """
    deadline = time.monotonic() + seconds
    java()
    directory = directory.resolve()  # Maven takes paths from where its pom lies
    target = directory / f"jars-{hashlib.sha256(_POM.read_bytes()).hexdigest()[:12]}"
    if target.is_dir():
        return target
    maven = shutil.which("mvn")
    if maven is None:
        raise UnavailableError("Kafka's jars come through Maven, and there is no mvn here; install Maven")
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "jars.lock").open("w") as lock:
        while not _locked(lock):
            if time.monotonic() > deadline:
                raise UnavailableError(f"another process did not fetch Kafka's jars within {seconds:g} s")
            time.sleep(0.1)
        if not target.is_dir():
            _download(maven, target, deadline, seconds)
    return target


def _locked(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _download(maven: str, target: Path, deadline: float, seconds: float) -> None:
    """Fill a directory that nobody else knows, then give it its name: by that name it is complete."""
    for left in target.parent.glob(f"{target.name}.*"):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    # a name of its own: the Maven of a killed process may still write to the one before
    with tempfile.TemporaryDirectory(
        prefix=f"{target.name}.", dir=target.parent, ignore_cleanup_errors=True
    ) as temporary:
        fresh = Path(temporary) / "jars"
        arguments = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={fresh}"]
        try:
            done = subprocess.run(  # noqa: S603  a tool of the machine with arguments of our own
                [maven, "-q", "-B", "-f", str(_POM), *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=max(0.0, deadline - time.monotonic()),
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise UnavailableError(f"Maven did not fetch Kafka's jars within {seconds:g} s") from error
        if done.returncode != 0:
            reason = next((line for line in done.stdout.splitlines() if "ERROR" in line), "no reason given")
            raise UnavailableError(f"Maven cannot fetch Kafka's jars: {reason.strip()[:300]}")
        fresh.rename(target)


def java() -> str:
    """Path of a Java that runs Kafka's server. Raises UnavailableError."""
    found = shutil.which("java")
    if found is None:
        raise UnavailableError(f"Kafka needs Java {_JAVA_AT_LEAST} or newer, and there is no java here")
    told = subprocess.run(  # noqa: S603  a tool of the machine
        [found, "-XshowSettings:properties", "-version"], capture_output=True, text=True, check=False
    ).stderr
    version = next(
        (line.split("=")[1].strip() for line in told.splitlines() if "java.specification.version" in line),
        "0",
    )
    if float(version) < _JAVA_AT_LEAST:
        raise UnavailableError(f"Kafka needs Java {_JAVA_AT_LEAST} or newer; this is {version}")
    return found
