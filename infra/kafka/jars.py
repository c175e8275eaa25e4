"""Kafka's server jars from Maven Central, copied once; later starts need no network."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

from pipeline.errors import UnavailableError

HERE = Path(__file__).parent
_POM = HERE / "pom.xml"
_FETCH_SECONDS = 600
_JAVA_AT_LEAST = 17


def fetch(directory: Path) -> Path:
    """The directory below `directory` that holds the jars of pom.xml; Maven fills it the first time.

    Raises UnavailableError, in one line, without Java 17, without Maven, or if Maven reaches no repository.
    """
    java()
    target = directory / f"jars-{hashlib.sha256(_POM.read_bytes()).hexdigest()[:12]}"
    if target.is_dir():
        return target
    maven = shutil.which("mvn")
    if maven is None:
        raise UnavailableError("Kafka's jars come through Maven, and there is no mvn here; install Maven")
    directory.mkdir(parents=True, exist_ok=True)
    fresh = target.with_suffix(".new")
    shutil.rmtree(fresh, ignore_errors=True)
    arguments = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={fresh}"]
    try:
        done = subprocess.run(  # noqa: S603  a tool of the machine with arguments of our own
            [maven, "-q", "-B", "-f", str(_POM), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_FETCH_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"Maven did not fetch Kafka's jars within {_FETCH_SECONDS} s") from error
    if done.returncode != 0:
        reason = next((line for line in done.stdout.splitlines() if "ERROR" in line), "no reason given")
        raise UnavailableError(f"Maven cannot fetch Kafka's jars: {reason.strip()[:300]}")
    fresh.rename(target)
    return target


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
