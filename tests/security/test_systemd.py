"""Units for the roles alone: started again whenever they end, with no more rights than they need."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "infra" / "systemd"
ROLES = ("gateway", "worker", "api")
#: A stop of a role takes at most this long.
DRAIN_SECONDS = 25


def unit(name: str) -> configparser.ConfigParser:
    read = configparser.ConfigParser(strict=False, interpolation=None)
    read.optionxform = str  # type: ignore[assignment,method-assign]
    read.read_string((FOLDER / f"gridpipe-{name}").read_text())
    return read


@pytest.mark.parametrize("role", ROLES)
def test_a_role_is_started_again_whatever_ended_it_and_holds_no_rights(role: str) -> None:
    read = unit(f"{role}@.service")
    service = read["Service"]
    assert service["ExecStart"].endswith(f"/gridpipe {role}")
    assert (service["Restart"], read["Unit"]["StartLimitIntervalSec"]) == ("always", "0")
    assert int(service["TimeoutStopSec"]) > DRAIN_SECONDS
    assert int(service["LimitNOFILE"]) >= 65_536
    holds_no_rights(service)
    assert not any("PASSWORD=" in line for line in (FOLDER / "gridpipe.env").read_text().splitlines())


def test_what_is_over_is_deleted_every_night() -> None:
    service = unit("nightly.service")["Service"]
    assert service["ExecStart"].endswith("/gridpipe migrate")
    assert service["Type"] == "oneshot"
    # systemd takes these out last, whatever file they came from; the log is no concern of the deletion
    assert "GRIDPIPE_KAFKA" in service["UnsetEnvironment"].split()
    holds_no_rights(service)
    timer = unit("nightly.timer")
    assert timer["Timer"]["OnCalendar"].startswith("*-*-* ")
    assert (timer["Timer"]["Persistent"], timer["Install"]["WantedBy"]) == ("true", "timers.target")


def test_no_role_can_read_the_password_of_the_administrator() -> None:
    service = unit("nightly.service")["Service"]
    assert service["User"] not in {unit(f"{role}@.service")["Service"]["User"] for role in ROLES}
    # systemd would give the roles' directory to the unit's user
    assert "StateDirectory" not in service


def holds_no_rights(service: Mapping[str, str]) -> None:
    assert service["User"] not in {"", "root"}
    assert (service["UMask"], service["LimitCORE"], service["CapabilityBoundingSet"]) == ("0077", "0", "")
    for wanted in ("NoNewPrivileges", "PrivateTmp", "ProtectHome"):
        assert service[wanted] == "yes"
    assert service["ProtectSystem"] == "strict"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize(
    "name", [*(f"{role}@1.service" for role in ROLES), "nightly.service", "nightly.timer"]
)
def test_systemd_reads_the_unit(name: str, tmp_path: Path) -> None:
    for path in FOLDER.glob("gridpipe-*"):
        text = path.read_text().replace("/opt/gridpipe/.venv/bin/gridpipe", "/bin/true")
        (tmp_path / path.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / f"gridpipe-{name}")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"SYSTEMD_LOG_LEVEL": "warning", "PATH": "/usr/bin:/bin", "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )
    ours = [line for line in done.stderr.splitlines() if "gridpipe" in line]
    assert (done.returncode, ours) == (0, []), done.stderr
