"""The hooks before a commit are parts of `make check`, and refuse what it refuses."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
HOOKS = {
    hook["id"]: hook
    for repository in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    for hook in repository["hooks"]
}
PARTS = {
    "ruff-check": "ruff check",
    "ruff-format": "ruff format --check",
    "detect-secrets": "detect-secrets-hook --baseline",  # pragma: allowlist secret
}
#: Refused by each hook, and made here so that no file of ours holds them.
REFUSED = {
    "ruff-check": "import os\n",
    "ruff-format": "a = [1,2]\n",
    "detect-secrets": "key = '" + "AKIA" + "IOSFODNN7EXAMPLX" + "'\n",
}


def run(hook: str, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*shlex.split(HOOKS[hook]["entry"]), str(path)], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_they_are_parts_of_make_check() -> None:
    check = re.search(r"^check:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert check is not None
    assert HOOKS.keys() == PARTS.keys()
    for hook, part in PARTS.items():
        assert f"$(BIN)/{part}" in check[1]
        assert f".venv/bin/{part}" in HOOKS[hook]["entry"]


@pytest.mark.skipif(not (ROOT / ".venv").exists(), reason="the hooks use what `make setup` installs")
@pytest.mark.parametrize("hook", PARTS)
def test_a_hook_refuses_what_make_check_refuses(hook: str, tmp_path: Path) -> None:
    path = tmp_path / "example.py"
    path.write_text(REFUSED[hook])
    refused = run(hook, path)
    assert refused.returncode == 1, refused.stdout + refused.stderr
    path.write_text("EXAMPLE = 1\n")
    assert run(hook, path).returncode == 0
