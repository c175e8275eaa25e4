"""Refusals of the gateway as RFC 9457 problem documents."""

from __future__ import annotations

import os
import re
from http import HTTPStatus
from typing import Any, Final

import orjson
from starlette.responses import Response

from pipeline.contract.privacy import holds_personal_number

RETRY_AFTER_SECONDS: Final = 1
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")


class ProblemError(Exception):
    """Ends a request with this status.

    code : snake_case word from a closed set, for programs; message : one sentence for people, without values.
    members : more members of the document. retry_after : seconds, for 429 and 503. headers : more of them.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        members: dict[str, Any] | None = None,
        retry_after: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.members = members or {}
        self.headers = headers or {}
        self.retry_after = (
            RETRY_AFTER_SECONDS if retry_after is None and status in (429, 503) else retry_after
        )


def request_id_of(given: str | None) -> str:
    """The client's X-Request-Id where it can be kept (form, no personal number in it), else one of ours."""
    good = given and _REQUEST_ID.fullmatch(given) and not holds_personal_number(given)
    return given if given and good else os.urandom(16).hex()


def problem_response(problem: ProblemError, request_id: str) -> Response:
    """application/problem+json; a body that was not read to its end closes the connection."""
    status = problem.status
    document = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": problem.message,
        "code": problem.code,
        "message": problem.message,
        "request_id": request_id,
        **problem.members,
    }
    headers = {"X-Request-Id": request_id, "Cache-Control": "no-store", **problem.headers}
    if problem.retry_after is not None:
        headers["Retry-After"] = str(problem.retry_after)
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if status in (408, 413):
        headers["Connection"] = "close"
    return Response(orjson.dumps(document), status, headers, media_type="application/problem+json")
