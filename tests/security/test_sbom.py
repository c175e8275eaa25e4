"""`make sbom`: a valid CycloneDX document that names every package, hash and foreign file, and no other."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from infra.security import sbom


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    text = JsonV1Dot6(sbom.build()).output_as_string()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    found: dict[str, Any] = json.loads(text)
    return found


def test_every_pinned_package_with_its_hashes(document: dict[str, Any]) -> None:
    listed = {
        part["purl"]: {hash_["content"] for hash_ in part.get("hashes", ())}
        for part in document["components"]
        if part["purl"].startswith("pkg:pypi/")
    }
    text = sbom.REQUIREMENTS.read_text()
    assert len(listed) == len(re.findall(r"(?m)^\S+==", text)) > 80
    assert set().union(*listed.values()) == set(re.findall(r"sha256:([0-9a-f]{64})", text))
    assert all(listed.values()), "a package without a hash"
    assert "pkg:pypi/faust-streaming@0.15.3" in listed


def test_what_packages_and_page_bring_along(document: dict[str, Any]) -> None:
    found = {part["name"]: part for part in document["components"]}
    assert {"tansu", "echarts", "zrender", "@alpinejs/csp"} <= set(found)
    assert found["tansu"]["hashes"]
    assert found["echarts"]["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    unlicensed = sorted(name for name, part in found.items() if not part.get("licenses"))
    assert unlicensed == ["colorama", "polars-hash"], "packages that do not say their licence here"


def test_everything_depends_on_the_service(document: dict[str, Any]) -> None:
    assert document["metadata"]["component"]["name"] == "gridpipe"
    (uses,) = [one["dependsOn"] for one in document["dependencies"] if one["ref"] == "gridpipe"]
    assert len(uses) == len(document["components"])


def test_markers_and_names_of_a_requirements_file() -> None:
    text = "a-b==1.0 \\\n    --hash=sha256:" + "0" * 64 + "\nc==2 ; sys_platform == 'win32' \\\n"
    text += "    --hash=sha256:" + "1" * 64 + " \\\n    --hash=sha256:" + "2" * 64 + "\n"
    assert list(sbom.pinned(text)) == [
        ("a-b", "1.0", "", ["0" * 64]),
        ("c", "2", "sys_platform == 'win32'", ["1" * 64, "2" * 64]),
    ]
