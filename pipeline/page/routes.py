"""`/` and its files, the stream, and the calls that only the page makes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from pipeline.ingest.keys import READ_SOURCE, KeyStore
from pipeline.ingest.problem import ProblemError, problem_response, request_id_of
from pipeline.page.assets import Asset, Assets
from pipeline.page.first import FirstPage
from pipeline.page.live import MOST_VIEWERS, Live
from pipeline.page.search import search
from pipeline.read.matters import former_matters, matters_in_force
from pipeline.read.reader import Reader
from pipeline.read.routes import DEFAULT_WINDOW, answer, only
from pipeline.read.small_cells import for_reader
from pipeline.rules.model import RULE_COUNT, Channel, Named
from pipeline.runtime.access import bearer_of, is_passed_on, still_reads
from pipeline.runtime.pages import page
from pipeline.store.kpi_views import BY

#: Nothing from elsewhere, nothing inline, nothing evaluated. Stricter than the answers of /docs.
POLICY: Final = (
    "default-src 'self'; object-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
#: `Table.kept_for` of the page's tables, whoever asks, seconds. A page asks after each of the districts'
#: answers, which come less than two seconds apart: so long a least would skip every other one.
_EVERY: Final = 1.0
#: Percentiles by matter are a reading of their own, dear where there are many cases, and move slowly there.
_MOST: Final = {"matter": 10.0}
#: Digits of a parent's code, by what is listed below it.
_PARENT_DIGITS: Final = {"town": 6, "village": 9, "grid": 12}

PAGE_PATHS: Final[dict[str, Any]] = {
    "/": page("The live page", "text/html"),
    "/v1/live": page("Server-sent events behind the live page", "text/event-stream"),
    "/v1/live/key": page("What the given key allows", "application/json"),
    "/v1/live/matters": page("The catalogue in force, for the page", "application/json"),
    "/v1/live/tables/{by}": page(
        "KPI rows and the counts behind each rate", "application/json", refusals=(400, 404, 503), path=("by",)
    ),
    "/v1/live/search": page("Events and cases that carry an id", "application/json", refusals=(400, 503)),
}  # fmt: skip


def page_files(assets: Assets, live: Live | None) -> list[BaseRoute]:
    """`/` and the files below `/page/`. live : whose figures stand in the page at once; None where reading
    needs a key, which a browser cannot send with `/`. Nor do they stand in a page that a proxy asked for."""
    first, bare = FirstPage(assets.index, live), FirstPage(assets.index, None)

    async def index(request: Request) -> Response:
        shown = bare if is_passed_on(request.scope) else first
        response = _file(request, shown.now(), "no-cache")
        response.headers["Content-Security-Policy"] = POLICY
        return response

    async def file(request: Request) -> Response:
        asset = assets.files.get(request.path_params["path"])
        if asset is None or request.path_params["digest"] != assets.digest:
            problem = ProblemError(404, "not_found", "no such file; load the page again")
            return problem_response(problem, request_id_of(None))
        return _file(request, asset, "public, max-age=31536000, immutable")

    return [
        Route("/", index, methods=["GET"]),
        Route("/page/{digest}/{path:path}", file, methods=["GET"]),
    ]


def live_routes(live: Live, keys: KeyStore, reader: Reader) -> list[BaseRoute]:
    """The stream and the page's own calls; all below `/v1/`, where reading may need a key.

    reader : for searches, which are somebody's own; tables are of `live.board`.
    """

    async def stream(request: Request) -> Response:
        if live.viewers >= MOST_VIEWERS:
            problem = ProblemError(503, "too_many_viewers", "too many pages watch; try again in a moment")
            return problem_response(problem, request_id_of(request.headers.get("x-request-id")))
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        # an open stream would outlive its key otherwise
        allowed = partial(still_reads, request.scope, keys)
        return StreamingResponse(live.stream(allowed), media_type="text/event-stream", headers=headers)

    async def tables(request: Request) -> Any:
        by, given = request.path_params["by"], only(request, "parent")
        if by not in BY:
            raise ProblemError(404, "not_found", f"a table is one of {', '.join(BY)}")
        parent = given.get("parent", "")
        digits = _PARENT_DIGITS.get(by)
        if parent and not (parent.isascii() and parent.isdigit() and digits and len(parent) <= digits):
            raise ProblemError(400, "bad_parameter", "parent must be the code of an area above")
        most = _MOST.get(by, 0.0)
        table = await live.board.kpi(by, every=_EVERY, most=most)
        # before the rows of one parent are picked: what is small is judged among all
        shown = for_reader(request, table.answer, by, reader.settings.small_cell_k)
        rows = [row for row in shown["rows"] if row["key"].startswith(parent)]
        # when another answer can be had: who holds an older one than the districts' asks again then
        return shown | {"rows": rows, "again_in_seconds": round(max(0.0, table.kept_for(_EVERY, most)), 3)}

    async def find(request: Request) -> Any:
        text = only(request, "q").get("q", "").strip()
        return await reader.run(lambda client: search(client, text))

    async def matters(request: Request) -> Any:
        only(request)
        now: datetime = reader.clock()
        return matters_in_force(reader.catalogues, now) | {
            # of the tables' cases some are theirs
            "former": former_matters(reader.catalogues, now - DEFAULT_WINDOW, now),
            "departments": _both_names(reader.catalogues.departments),
            "channels": _both_names(reader.catalogues.channels),
            "matter_names": dict(reader.catalogues.matter_names_zh),
            "reasons": {
                reason.code: {"zh": reason.name_zh, "en": reason.name_en}
                for number in range(1, RULE_COUNT + 1)
                for entry in reader.catalogues.admission.entries(number)
                for reason in entry.source.reasons
            },
            "towns": dict(reader.areas.towns),
            "districts": dict(reader.areas.districts),
        }

    async def key(request: Request) -> Any:
        only(request)
        credential = bearer_of(request.scope, keys)
        if credential is None:
            raise ProblemError(401, "unauthorised", "this key is not known, or it was revoked")
        sends = credential.sources - {READ_SOURCE} if "ingest" in credential.roles else ()
        return {"sources": sorted(sends), "backfill": credential.backfill}

    return [
        Route("/v1/live", stream, methods=["GET"]),
        Route("/v1/live/tables/{by}", answer("live_table", tables, shared=True), methods=["GET"]),
        Route("/v1/live/search", answer("live_search", find), methods=["GET"]),
        Route("/v1/live/matters", answer("live_matters", matters), methods=["GET"]),
        Route("/v1/live/key", answer("live_key", key), methods=["GET"]),
    ]


def _file(request: Request, asset: Asset, cache: str) -> Response:
    packed = "gzip" in request.headers.get("accept-encoding", "")
    headers = {"Cache-Control": cache, "Vary": "Accept-Encoding"}
    if packed:
        headers["Content-Encoding"] = "gzip"
    return Response(asset.packed if packed else asset.body, media_type=asset.media_type, headers=headers)


def _both_names(items: Mapping[str, Named | Channel]) -> dict[str, dict[str, str]]:
    return {code: {"zh": item.name_zh, "en": item.name_en} for code, item in items.items()}
