"""The page's files: what is vendored is what its makers published, and nothing comes from elsewhere."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from pipeline.page.assets import STATIC, Assets
from pipeline.page.routes import page_files

VENDOR = STATIC / "vendor"
MANIFEST: dict[str, Any] = json.loads((VENDOR / "manifest.json").read_text())
OURS = sorted(path for path in STATIC.glob("*") if path.suffix in {".js", ".css", ".html", ".svg"})
ROOT = Path(__file__).parents[2]


def client() -> httpx.AsyncClient:
    app = Starlette(routes=page_files(Assets.load(), None))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


def test_vendored_files_are_those_of_the_manifest() -> None:
    listed = {item["file"]: item["sha256"] for item in MANIFEST["files"]}
    assert listed == {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in VENDOR.glob("*.js")}
    for item in MANIFEST["files"]:
        assert item["version"].count(".") == 2
        assert item["integrity"].startswith("sha512-")
        texts = [*item["licence_files"], *(part["licence_file"] for part in item["contains"])]
        assert all((VENDOR / text).stat().st_size > 150 for text in texts)


@pytest.mark.slow
@pytest.mark.parametrize("item", MANIFEST["files"], ids=lambda item: item["file"])
def test_vendored_files_are_those_that_npm_hands_out(item: dict[str, Any], tmp_path: Path) -> None:
    """The manifest alone could be written beside a changed file: here the package is asked for again."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("needs npm, to compare with the published packages")
    package = f"{item['package']}@{item['version']}"
    done = subprocess.run(
        [npm, "pack", "--json", "--ignore-scripts", package],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"npm does not hand out {package} here: {done.stderr.strip()[-200:]}")
    (archive,) = tmp_path.glob("*.tgz")
    digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    assert f"sha512-{digest}" == item["integrity"]
    with tarfile.open(archive) as files:
        published = files.extractfile(f"package/{item['path']}")
        assert published is not None
        assert published.read() == (VENDOR / item["file"]).read_bytes()


#: What makes elements or code of a text.
MARKUP = re.compile(
    r"innerHTML|outerHTML|insertAdjacent|setHTML|parseHTML|srcdoc|DOMParser|createContextualFragment|x-html"
    r"|document\.write|\beval\(|new Function|javascript:"
)


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_our_files_name_no_other_host_and_never_make_markup(path: Path) -> None:
    text = path.read_text()
    hosts = {host for host in re.findall(r"https?://[^\s\"'/]+", text) if host != "http://www.w3.org"}
    assert hosts == set()
    assert not MARKUP.search(text)
    if path.suffix == ".html":
        # an element with data is never run, whatever stands in it
        code = text.replace('<script type="application/json" id="first-data">', "")
        assert not re.search(r"<script(?![^>]*\ssrc=)|\sstyle=|<style|\son\w+=", code)


async def test_the_page_allows_nothing_inline_and_nothing_from_elsewhere() -> None:
    async with client() as http:
        answer = await http.get("/", headers={"Accept-Encoding": "identity"})
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'self'; ")
    assert set(re.findall(r"(?<= )\S+(?=;|$)", policy)) == {"'self'", "'none'"}  # no data:, no "unsafe"
    assert not re.search(r"@[a-z_]+@", answer.text)
    assert answer.headers["cache-control"] == "no-cache"


async def test_files_are_compressed_and_kept_until_they_change() -> None:
    assets = Assets.load()
    assert gzip.decompress(assets.files["app.js"].packed) == (STATIC / "app.js").read_bytes()
    async with client() as http:
        answer = await http.get(f"/page/{assets.digest}/vendor/echarts.common.min.js")
        assert answer.headers["content-encoding"] == "gzip"
        assert "immutable" in answer.headers["cache-control"]
        assert answer.content == (VENDOR / "echarts.common.min.js").read_bytes()
        for wrong in (
            f"/page/{assets.digest}/%2e%2e/routes.py",
            f"/page/{assets.digest}/vendor/manifest.json",
            "/page/0/app.js",
        ):
            assert (await http.get(wrong)).status_code == 404, wrong


def test_a_changed_file_changes_every_address(tmp_path: Path) -> None:
    for name in ("index.html", "app.js"):
        (tmp_path / name).write_text("@assets@")
    first = Assets.load(tmp_path)
    (tmp_path / "app.js").write_text("// other")
    second = Assets.load(tmp_path)
    assert first.digest != second.digest
    assert first.index.body == f"/page/{first.digest}".encode()


def test_the_wheel_holds_the_page(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    served = {path.relative_to(ROOT).as_posix() for path in STATIC.rglob("*") if path.is_file()}
    assert served <= names


TOKENS = re.compile(r"--([\w-]+): (#[0-9a-f]{6})")


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_can_be_read(theme: int) -> None:
    """WCAG AA: 4.5 to 1."""
    blocks = re.findall(r":root[^{]*\{(.*?)\}", (STATIC / "style.css").read_text(), re.DOTALL)
    tokens = dict(TOKENS.findall(blocks[theme]))
    pairs = [
        (ink, ground) for ink in ("text", "quiet", "accent", "bad", "warn", "good") for ground in ("panel",)
    ]
    pairs += [("text", "bg"), ("quiet", "bg"), ("bad", "bad-soft")]
    pairs += [("on-v", f"{scale}{n}") for scale in "vqh" for n in range(1, 6)]
    least = dict.fromkeys(pairs, 4.5) | {("edge", "panel"): 3.0, ("edge", "bg"): 3.0}  # of fields: 3 to 1
    low = {pair: round(contrast(tokens[pair[0]], tokens[pair[1]]), 2) for pair in least}
    assert {pair: ratio for pair, ratio in low.items() if ratio < least[pair]} == {}
