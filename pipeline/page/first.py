"""The page with the figures that are known already: they are seen before any script has run.

Waiting for the script, its walk over the page and the stream made the first figures come three times later
than the first paint. The tiles are text in the page; the same figures lie beside them as JSON, from which the
script goes on. Only totals of the city and its districts, and only where reading needs no key.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any, Final

import orjson

from pipeline.page.assets import Asset
from pipeline.page.live import Live
from pipeline.read.percent import percent_text

#: What of the stream lies in the page. Nothing of single events: reading those is audited.
_TOPICS: Final = ("store", "city", "district", "trend")
_RATES: Final = (
    "closure_rate",
    "response_rate",
    "timely_response_rate",
    "closure_on_time_rate",
    "handling_on_time_rate",
)
#: In index.html, the place of the JSON; `@closure_rate@` and the like are the places of the figures.
_DATA: Final = b"@data@"
_UNKNOWN: Final = "—"


class FirstPage:
    """index : the page with its places open; live : None where figures must not stand in the page."""

    def __init__(self, index: Asset, live: Live | None) -> None:
        self._index = index
        self._live = live
        self._known: dict[str, bytes] | None = None
        self._page = self._filled({})

    def now(self) -> Asset:
        """The page with the newest figures; made anew only when they are others."""
        known = self._live.known(_TOPICS) if self._live is not None else {}
        if known != self._known:
            self._known = known
            self._page = self._filled(known)
        return self._page

    def _filled(self, known: Mapping[str, bytes]) -> Asset:
        body = self._index.body
        for place, text in _texts(known.get("city")).items():
            body = body.replace(b"@%b@" % place.encode(), html.escape(text).encode())
        members = b",".join(b'"%b":%b' % (topic.encode(), data) for topic, data in known.items())
        # no "<" in it, so that nothing ends the element that it stands in
        body = body.replace(_DATA, b"{%b}" % members.replace(b"<", b"\\u003c"))
        return Asset.of(self._index.media_type, body)


def _texts(city: bytes | None) -> dict[str, str]:
    """Place → figure as the page shows it (format.js, tileFoot)."""
    row: dict[str, Any] | None = orjson.loads(city)["rows"][0] if city is not None else None
    names = (*_RATES, "open", "overdue", *(f"{rate}_counts" for rate in _RATES))
    if row is None:
        return dict.fromkeys(names, _UNKNOWN)
    texts = {rate: _percent(row[rate]) for rate in _RATES}
    texts |= {f"{rate}_counts": " / ".join(f"{n:,}" for n in row["parts"][rate]) for rate in _RATES}
    return texts | {name: f"{row[name]:,}" for name in ("open", "overdue")}


def _percent(rate: float | None) -> str:
    return _UNKNOWN if rate is None else f"{percent_text(rate)}%"
