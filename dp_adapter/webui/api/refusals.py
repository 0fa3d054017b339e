"""What every route has in common: refusals in words, and an end to what it reads."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from dp_adapter import naming
from dp_adapter.errors import DPAdapterError, SettingsError
from dp_adapter.hints import hide_folders

MOST_BYTES = 128 * 2**20  # a dozen photos at the largest size that is taken
MOST_VALUES = 100_000  # commas and brackets: a value of two bytes takes a hundred in memory
_DIGITS = 18  # of a length that can be one
_UNREADABLE = 400  # what FastAPI says of a body that it cannot read
_NOT_JSON = "The body is not JSON that can be read. Check quotes and commas, the encoding, how deep it is nested."
_FIELD = re.compile(r"([a-z_]+(?:\[\d+\])?(?:\.[a-z_]+(?:\[\d+\])?)*): ")


class MissingError(DPAdapterError):
    """The thing that the path names is not there."""


def spell_names(answer: Any) -> Any:
    """An answer whose texts JSON can hold: names of files may have bytes that are no UTF-8."""
    if isinstance(answer, str):
        return answer if answer.isascii() else answer.encode(errors="backslashreplace").decode()
    if isinstance(answer, Mapping):
        items = cast("Mapping[Any, Any]", answer).items()
        return {spell_names(name): spell_names(value) for name, value in items}
    return [spell_names(one) for one in cast("list[Any]", answer)] if isinstance(answer, list | tuple) else answer


class RefusalRoute(APIRoute):
    """A route whose refusals are ``{"detail": words, "field": dotted name}``."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        inner: Callable[[Request], Awaitable[Response]] = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await inner(_limit_size(request))
            except Exception as error:
                if isinstance(error, HTTPException) and error.status_code != _UNREADABLE:
                    raise
                return _refuse(*_describe(error))

        return handle


def _describe(error: Exception) -> tuple[int, str, str]:
    """Status, words and field of what a route raised."""
    if isinstance(error, RequestValidationError):
        return 422, *_describe_invalid(error.errors()[0])
    if isinstance(error, HTTPException):
        return _UNREADABLE, _NOT_JSON, ""
    if isinstance(error, SettingsError):
        return 422, str(error), error.field
    if isinstance(error, DPAdapterError):
        match = _FIELD.match(str(error))
        return 404 if isinstance(error, MissingError) else 422, str(error), match[1] if match else ""
    # the hosts would answer with its own words, in which files are named in full
    from modules import errors

    errors.report("DP-Adapter failed", exc_info=True)
    reason = f"{type(error).__name__}: {hide_folders(str(error))}"
    return 500, f"DP-Adapter met an unexpected {reason}. The console says more.", ""


def _refuse(status: int, words: str, field: str) -> Response:
    answer = {"detail": naming.word(words)} | ({"field": naming.word(field)} if field else {})
    return JSONResponse(answer, status)


def _describe_invalid(error: Mapping[str, Any]) -> tuple[str, str]:
    """Words and field of pydantic's first error, in the manner of all versions."""
    if "json" in str(error["type"]):
        return _NOT_JSON, ""
    names = [str(name) for name in error["loc"] if name not in ("body", "query", "path")]
    field = ".".join(names)
    words = f"{str(error['msg'])[:1].lower()}{str(error['msg'])[1:]}"
    return (f"{field}: {words}. See /docs for the fields.", field) if field else (f"The body: {words}.", "")


def _limit_size(request: Request) -> Request:
    """A request that stops being read beyond the limits.

    Raises:
        HTTPException: it says itself that it is longer.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and (len(declared) > _DIGITS or int(declared) > MOST_BYTES):
        raise _size_refusal()
    read = values = 0

    async def receive() -> Any:
        nonlocal read, values
        message = await request.receive()
        body: bytes = message.get("body", b"")
        read += len(body)
        values += sum(map(body.count, (b",", b"[", b"{")))
        if read > MOST_BYTES:
            raise _size_refusal()
        if values > MOST_VALUES:
            raise HTTPException(413, f"The request has more than {MOST_VALUES} values. Send fewer.")
        return message

    return Request(request.scope, receive)


def _size_refusal() -> HTTPException:
    return HTTPException(413, f"The request has more than {MOST_BYTES // 2**20} MiB. Send smaller pictures.")
