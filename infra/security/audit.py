"""`make audit`: known vulnerabilities of the pinned packages, by pip-audit; says so when advisories are away.

Exit 0: none known; 1: some are; 3: the advisories could not be asked, nothing is known.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

REQUIREMENTS: Final = Path(__file__).parents[2] / "requirements" / "dev.txt"
#: Where advisories are asked for, in this order.
SERVICES: Final = ("pypi", "osv")
FOUND, UNREACHABLE = 1, 3
_SECONDS: Final = 600


def judge(report: dict[str, Any]) -> tuple[int, list[str]]:
    """(exit code, lines) for a report of pip-audit: every package asked for, found wanting, or not found."""
    packages = report["dependencies"]
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    lines = [
        f"{package['name']} {package['version']}: {vulnerability['id']}"
        + (f", fixed in {', '.join(vulnerability['fix_versions'])}" if vulnerability["fix_versions"] else "")
        for package in packages
        for vulnerability in package.get("vulns", ())
    ]
    known = len(packages) - len(skipped)
    lines.append(f"{known} packages audited, {len(lines)} known vulnerabilities")
    if skipped:
        lines.append(f"not audited, for the service does not know them: {', '.join(sorted(skipped))}")
    if len(lines) > 1 + bool(skipped):
        return FOUND, lines
    return (UNREACHABLE if skipped else 0), lines


def ask(requirements: Path, service: str) -> dict[str, Any] | None:
    """pip-audit's report, None where the service does not answer."""
    command = [
        sys.executable, "-m", "pip_audit", "--requirement", str(requirements), "--disable-pip", "--no-deps",
        "--vulnerability-service", service, "--format", "json", "--progress-spinner", "off", "--timeout=15",
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)  # noqa: S603
        report: dict[str, Any] = json.loads(done.stdout)
    except (ValueError, subprocess.TimeoutExpired):
        return None
    return report


def reachable(service: str) -> bool:
    """Whether the service knows a package that is certainly there: asked before the other two hundred."""
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / "requirements.txt"
        probe.write_text("pip==25.0\n")
        report = ask(probe, service)
    return report is not None and not any("skip_reason" in one for one in report["dependencies"])


def main() -> int:
    for service in SERVICES:
        if reachable(service):
            report = ask(REQUIREMENTS, service)
            if report is not None:
                code, lines = judge(report)
                print("\n".join(lines))  # noqa: T201
                return code
    print(f"advisories cannot be reached from here ({', '.join(SERVICES)}): nothing was audited")  # noqa: T201
    return UNREACHABLE


if __name__ == "__main__":
    sys.exit(main())
