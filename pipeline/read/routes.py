"""The read calls of the HTTP interface: one event, one case, the metrics, the catalogue, the rejections."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any, Final

import orjson
import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from pipeline import metrics
from pipeline.contract.privacy import shown_id
from pipeline.errors import ContractError, UnavailableError
from pipeline.ingest.problem import ProblemError, problem_response, request_id_of
from pipeline.read.cases import case
from pipeline.read.explain import PastRetentionError, explain
from pipeline.read.kpi import BY, VIEWS, kpi
from pipeline.read.matters import matters_in_force
from pipeline.read.names import KpiNames
from pipeline.read.openapi import OPENAPI_PATHS
from pipeline.read.reader import Reader
from pipeline.read.rejections import DEFAULT_LIMIT, LARGEST_LIMIT, rejections
from pipeline.read.small_cells import for_reader
from pipeline.read.times import parse_instant

__all__ = ["DEFAULT_WINDOW", "OPENAPI_PATHS", "Reader", "answer", "only", "read_routes"]

DEFAULT_WINDOW: Final = timedelta(days=30)
_LONGEST_ID: Final = 64
_REASON: Final = re.compile(r"[A-Z][A-Z0-9_]{0,63}")

log = structlog.get_logger(__name__)
Handler = Callable[[Request], Awaitable[Any]]


def read_routes(reader: Reader) -> list[BaseRoute]:
    """Routes of the read calls over `reader`; answers are JSON, errors problem documents."""

    async def get_event(request: Request) -> Any:
        only(request)
        source, event_id = request.path_params["source"], request.path_params["event_id"]
        retention = timedelta(days=reader.settings.event_retention_days)
        now = reader.clock()
        try:
            found = await reader.run(
                lambda client: explain(
                    client, source, event_id, catalogues=reader.catalogues, now=now, retention=retention
                )
            )
        except PastRetentionError:
            raise ProblemError(
                410,
                "past_retention",
                f"{_name(source, event_id)} is past its {retention.days} days of retention",
            ) from None
        if found is None:
            raise ProblemError(
                404,
                "event_not_found",
                f"{_name(source, event_id)} is not written (yet); ask again in a moment",
            )
        return found

    async def get_case(request: Request) -> Any:
        only(request)
        case_id, now = request.path_params["case_id"], reader.clock()
        found = await reader.run(lambda client: case(client, case_id, now=now))
        if found is None:
            raise ProblemError(404, "case_not_found", f"case {shown_id(case_id)} has no event (yet)")
        return found

    async def get_kpi(request: Request) -> Any:
        asked = kpi_parameters(only(request, "by", "from", "to", "as_of", "view"), now=reader.clock())
        found = await reader.run(
            lambda client: kpi(
                client, names=KpiNames(reader.areas, reader.catalogues, client), held=reader.held, **asked
            )
        )
        return for_reader(request, found, asked["by"], reader.settings.small_cell_k)

    async def get_matters(request: Request) -> Any:
        given = only(request, "at")
        at = parse_instant(given["at"], "at") if "at" in given else reader.clock()
        return matters_in_force(reader.catalogues, at)

    async def get_rejections(request: Request) -> Any:
        given = only(request, "reason", "life_safety", "from", "limit")
        reason = given.get("reason")
        if reason is not None and not _REASON.fullmatch(reason):
            raise ProblemError(400, "bad_parameter", "reason must be a reason code, for example TOO_OLD")
        if given.get("life_safety", "true") != "true":
            raise ProblemError(400, "bad_parameter", "life_safety must be true; leave it out for all")
        from_ = parse_instant(given["from"], "from") if "from" in given else None
        limit = given.get("limit", str(DEFAULT_LIMIT))
        if not (limit.isascii() and limit.isdigit() and len(limit) <= 4 and 1 <= int(limit) <= LARGEST_LIMIT):
            raise ProblemError(400, "bad_parameter", f"limit must be a number from 1 to {LARGEST_LIMIT}")
        rows = await reader.run(
            lambda client: rejections(
                client, reason=reason, life_safety="life_safety" in given, from_=from_, limit=int(limit)
            )
        )
        return {"rows": rows}

    return [
        Route("/v1/events/{source}/{event_id}", answer("event", get_event), methods=["GET"]),
        Route("/v1/cases/{case_id}", answer("case", get_case), methods=["GET"]),
        Route("/v1/kpi", answer("kpi", get_kpi), methods=["GET"]),
        Route("/v1/matters", answer("matters", get_matters), methods=["GET"]),
        Route("/v1/rejections", answer("rejections", get_rejections), methods=["GET"]),
    ]


def _asked_for(request: Request) -> dict[str, str]:
    """The ids in its address, as they may be shown."""
    return {name: shown_id(str(value)) for name, value in request.path_params.items()}


def _name(source: str, event_id: str) -> str:
    return f"{shown_id(source)}/{shown_id(event_id)}"


def _while_there(handler: Handler) -> Handler:
    """The same, cancelled when the caller closes the connection: what waits for a thread is asked no more."""

    async def watched(request: Request) -> Any:
        async def gone() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        asked, leaving = asyncio.ensure_future(handler(request)), asyncio.ensure_future(gone())
        try:
            await asyncio.wait({asked, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                raise ProblemError(400, "client_gone", "the client closed the connection")
            return asked.result()
        finally:
            asked.cancel()
            leaving.cancel()

    return watched


def kpi_parameters(given: dict[str, str], *, now: datetime) -> dict[str, Any]:
    """The KPI call's arguments from its query parameters, defaults filled in.

    Defaults: by=city, view=cohort, as_of = to = now (`to` follows `as_of` when only that is given),
    from = to - 30 days. Raises ContractError naming the parameter at fault.
    """
    by, view = given.get("by", "city"), given.get("view", "cohort")
    if by not in BY:
        raise ContractError(f"by must be one of {', '.join(BY)}")
    if view not in VIEWS:
        raise ContractError(f"view must be one of {', '.join(VIEWS)}")
    as_of = parse_instant(given["as_of"], "as_of") if "as_of" in given else now
    to = parse_instant(given["to"], "to") if "to" in given else as_of
    from_ = parse_instant(given["from"], "from") if "from" in given else to - DEFAULT_WINDOW
    if from_ > to:
        raise ContractError("from must not be after to")
    return {"by": by, "view": view, "from_": from_, "to": to, "as_of": as_of}


def only(request: Request, *names: str) -> dict[str, str]:
    """The query parameters; each of `names` at most once, nothing else. Raises ProblemError."""
    given: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in names:
            raise ProblemError(
                400, "unknown_parameter", f"unknown parameter; this call takes {', '.join(names) or 'none'}"
            )
        if name in given:
            raise ProblemError(400, "repeated_parameter", f"{name} must be given once")
        given[name] = value
    return given


def answer(route: str, handler: Handler, *, shared: bool = False) -> Callable[[Request], Awaitable[Response]]:
    """Time, count and translate: a value becomes JSON, an error its problem document.

    shared : others may wait for what this call asks; any other call ends when its caller goes away.
    """
    if not shared:
        handler = _while_there(handler)

    async def respond(request: Request) -> Response:
        request_id = request_id_of(request.headers.get("x-request-id"))
        try:
            if any(len(str(value)) > _LONGEST_ID for value in request.path_params.values()):
                raise ProblemError(404, "not_found", f"an id has at most {_LONGEST_ID} characters")
            body = orjson.dumps(await handler(request), option=orjson.OPT_UTC_Z)
        except ProblemError as error:
            return problem_response(error, request_id)
        except ContractError as error:
            return problem_response(ProblemError(400, "bad_parameter", str(error)), request_id)
        except UnavailableError as error:
            log.warning("read_unavailable", route=route, request_id=request_id, **_asked_for(request))
            return problem_response(ProblemError(503, "store_unavailable", str(error)), request_id)
        except Exception:
            log.exception("read_failed", route=route, request_id=request_id, **_asked_for(request))
            failed = ProblemError(500, "internal_error", f"the call failed; its log lines carry {request_id}")
            return problem_response(failed, request_id)
        return Response(
            body,
            200,
            {"X-Request-Id": request_id, "Cache-Control": "no-store"},
            media_type="application/json",
        )

    async def timed(request: Request) -> Response:
        with metrics.http_seconds.labels(route=route).time():
            response = await respond(request)
        metrics.http_requests.labels(route=route, status=str(response.status_code)).inc()
        return response

    return timed
