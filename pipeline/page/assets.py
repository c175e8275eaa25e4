"""The page's files, read once, compressed once, under an address that changes with their content."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

STATIC: Final = Path(__file__).parent / "static"
#: In index.html, the place of the address below which the other files lie.
PLACEHOLDER: Final = b"@assets@"

#: The page is packed anew with each new figure: at 9 it takes twice as long for a hundredth less.
_LEVEL: Final = 6

_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True)
class Asset:
    """media_type : with charset; body : as it is; packed : the same, gzip."""

    media_type: str
    body: bytes
    packed: bytes

    @classmethod
    def of(cls, media_type: str, body: bytes) -> Asset:
        return cls(media_type, body, gzip.compress(body, _LEVEL, mtime=0))


@dataclass(frozen=True)
class Assets:
    """digest : of all files; index : the page, its links pointing below `/page/<digest>/`."""

    digest: str
    index: Asset
    files: dict[str, Asset]

    @classmethod
    def load(cls, directory: Path = STATIC) -> Assets:
        """Read every servable file below `directory`."""
        paths = sorted(path for path in directory.rglob("*") if path.suffix in _TYPES and path.is_file())
        bodies = {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}
        hashed = hashlib.sha256()
        for name, body in bodies.items():
            hashed.update(name.encode() + b"\0" + hashlib.sha256(body).digest())
        digest = hashed.hexdigest()[:16]
        index = bodies.pop("index.html").replace(PLACEHOLDER, f"/page/{digest}".encode())
        return cls(digest, _asset("index.html", index), {n: _asset(n, b) for n, b in bodies.items()})


def _asset(name: str, body: bytes) -> Asset:
    return Asset.of(_TYPES[Path(name).suffix], body)
