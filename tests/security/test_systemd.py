"""Units for the roles alone: started again whenever they end, with no more rights than they need."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "infra" / "systemd"
ROLES = ("gateway", "worker", "api")
#: A stop of a role takes at most this long.
DRAIN_SECONDS = 25


def unit(role: str) -> configparser.ConfigParser:
    read = configparser.ConfigParser(strict=False, interpolation=None)
    read.optionxform = str  # type: ignore[assignment,method-assign]
    read.read_string((FOLDER / f"gridpipe-{role}@.service").read_text())
    return read


@pytest.mark.parametrize("role", ROLES)
def test_a_role_is_started_again_whatever_ended_it_and_holds_no_rights(role: str) -> None:
    service = unit(role)["Service"]
    assert service["ExecStart"].endswith(f"/gridpipe {role}")
    assert (service["Restart"], unit(role)["Unit"]["StartLimitIntervalSec"]) == ("always", "0")
    assert int(service["TimeoutStopSec"]) > DRAIN_SECONDS
    assert service["User"] not in {"", "root"}
    assert (service["UMask"], service["LimitCORE"], service["CapabilityBoundingSet"]) == ("0077", "0", "")
    assert int(service["LimitNOFILE"]) >= 65_536
    for wanted in ("NoNewPrivileges", "PrivateTmp", "ProtectHome"):
        assert service[wanted] == "yes"
    assert service["ProtectSystem"] == "strict"
    assert not any("PASSWORD=" in line for line in (FOLDER / "gridpipe.env").read_text().splitlines())


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("role", ROLES)
def test_systemd_reads_the_unit(role: str, tmp_path: Path) -> None:
    text = (FOLDER / f"gridpipe-{role}@.service").read_text()
    (tmp_path / f"gridpipe-{role}@.service").write_text(
        text.replace("/opt/gridpipe/.venv/bin/gridpipe", "/bin/true")
    )
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / f"gridpipe-{role}@1.service")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"SYSTEMD_LOG_LEVEL": "warning", "PATH": "/usr/bin:/bin", "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )
    ours = [line for line in done.stderr.splitlines() if "gridpipe" in line]
    assert (done.returncode, ours) == (0, []), done.stderr
