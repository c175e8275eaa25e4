"""The API description and its page, served from what is installed: no file comes from another host."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import orjson
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from swagger_ui_bundle import swagger_ui_path

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>gridpipe API</title>
<link rel="stylesheet" href="/docs/assets/swagger-ui.css">
<link rel="icon" href="data:,">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/assets/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
_START = (
    'SwaggerUIBundle({url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null});\n'
)


def page(
    summary: str,
    media_type: str,
    status: int = 200,
    *,
    refusals: Sequence[int] = (),
    path: Sequence[str] = (),
) -> dict[str, Any]:
    """The path item of a page. refusals : statuses of its problem documents; path : its path parameters."""
    content: dict[str, Any] = {} if status >= 300 else {"content": {media_type: {"schema": {}}}}
    return {
        "get": {
            "summary": summary,
            "tags": ["pages"],
            "parameters": [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in path
            ],
            "responses": {str(status): {"description": summary} | content}
            | {
                str(code): {
                    "description": HTTPStatus(code).phrase,
                    "content": {"application/problem+json": {"schema": {"type": "object"}}},
                }
                for code in refusals
            },
        }
    }


#: Path items of the pages of this module.
PAGES: Final[dict[str, Any]] = {
    "/docs": page("This description, to be read and tried", "text/html"),
    "/openapi.json": page("This description", "application/json"),
}


def openapi(paths: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of these path items."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "gridpipe",
            "version": version("gridpipe"),
            "summary": "Grid governance events (网格事件) from report to closure rate.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": dict(sorted(paths.items())),
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def page_routes(paths: dict[str, Any]) -> list[BaseRoute]:
    """`/openapi.json` and `/docs` with its assets.

    paths : path items of the other routes of this listener.
    """
    document = orjson.dumps(openapi(PAGES | paths))

    async def description(_: Request) -> Response:
        return Response(document, media_type="application/json")

    async def docs(_: Request) -> Response:
        return HTMLResponse(_PAGE)

    async def start(_: Request) -> Response:
        return Response(_START, media_type="text/javascript")

    return [
        Route("/openapi.json", description, methods=["GET"]),
        Route("/docs", docs, methods=["GET"]),
        Route("/docs/start.js", start, methods=["GET"], include_in_schema=False),
        Mount("/docs/assets", StaticFiles(directory=Path(swagger_ui_path))),
    ]


#: `/` of a process without the live page.
TO_DOCS: Final[dict[str, Any]] = {"/": page("Leads to /docs", "text/html", 307)}


def to_docs() -> Route:
    """`/` leads to `/docs`."""

    async def root(_: Request) -> Response:
        return RedirectResponse("/docs", 307)

    return Route("/", root, methods=["GET"])
