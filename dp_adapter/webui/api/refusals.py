"""What every route has in common: refusals in words, and an end to what it reads."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from dp_adapter.errors import DPAdapterError, SettingsError
from dp_adapter.hints import hide_folders

MOST_BYTES = 128 * 2**20  # a dozen photos at the largest size that is taken
_FIELD = re.compile(r"([a-z_]+(?:\[\d+\])?(?:\.[a-z_]+(?:\[\d+\])?)*): ")


class MissingError(DPAdapterError):
    """The thing that the path names is not there."""


class RefusalRoute(APIRoute):
    """A route whose refusals are ``{"detail": words, "field": dotted name}``."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        inner: Callable[[Request], Awaitable[Response]] = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await inner(_limit_size(request))
            except RequestValidationError as error:
                return _refuse(422, *_describe_invalid(error.errors()[0]))
            except MissingError as error:
                return _refuse(404, str(error))
            except SettingsError as error:
                return _refuse(422, str(error), error.field)
            except DPAdapterError as error:
                match = _FIELD.match(str(error))
                return _refuse(422, str(error), match[1] if match else "")
            except HTTPException:
                raise
            except Exception as error:  # the hosts would answer with its own words, in which files are named in full
                from modules import errors

                errors.report("DP-Adapter failed", exc_info=True)
                reason = f"{type(error).__name__}: {hide_folders(str(error))}"
                words = f"DP-Adapter met an unexpected {reason}. The console says more."
                return _refuse(500, words)

        return handle


def _refuse(status: int, words: str, field: str = "") -> Response:
    return JSONResponse({"detail": words, "field": field} if field else {"detail": words}, status)


def _describe_invalid(error: Mapping[str, Any]) -> tuple[str, str]:
    """Words and field of pydantic's first error, in the manner of all versions."""
    if "json" in str(error["type"]):
        return "The body is not JSON. Check quotes and commas.", ""
    names = [str(name) for name in error["loc"] if name not in ("body", "query", "path")]
    field = ".".join(names)
    words = f"{str(error['msg'])[:1].lower()}{str(error['msg'])[1:]}"
    return (f"{field}: {words}. See /docs for the fields.", field) if field else (f"The body: {words}.", "")


def _limit_size(request: Request) -> Request:
    """A request that stops being read beyond the limit.

    Raises:
        HTTPException: it says itself that it is longer.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > MOST_BYTES:
        raise _size_refusal()
    read = 0

    async def receive() -> Any:
        nonlocal read
        message = await request.receive()
        read += len(message.get("body", b""))
        if read > MOST_BYTES:
            raise _size_refusal()
        return message

    return Request(request.scope, receive)


def _size_refusal() -> HTTPException:
    return HTTPException(413, f"The request has more than {MOST_BYTES // 2**20} MiB. Send smaller pictures.")
