"""Render one backend's response as the client requested it.

An upstream's bytes pass unchanged unless the client requested another format.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

from gateway.api.errors import with_error_body
from gateway.api.operation import ParsedRequest, PartCollector
from gateway.api.response_json import ResponseContext, encode_json
from gateway.plugin import BackendFailed, Part, Result


class ResponseRenderer:
    """Implements `gateway.dispatch.Renderer`.

    served_as: the model name sent to the backend, if known.
    """

    def __init__(self, request: ParsedRequest, request_id: str, backend: str, served_as: str | None) -> None:
        self._request = request
        self._context = ResponseContext(request_id=request_id, model=request.name, backend=backend, served_as=served_as)
        self._collector: PartCollector | None = None  # made for the first part: most streams are not collected

    def add(self, part: Part) -> None:
        """Add a part of a streaming backend, for a whole response.

        Raises BackendUnavailable.
        """
        with _readable(self._context):
            if self._collector is None:
                self._collector = self._request.operation.collector(self._request, self._context)
            self._collector.add(part)

    async def whole(self, result: Result | None) -> Result:
        """Render `result`, or without it the collected parts.

        Raises BackendUnavailable if that is impossible.

        A backend's error response (status 400 and up) passes unchanged if it has a body. If the client requested a
        stream, the response is only checked: the stream encoder can encode it.
        """
        with _readable(self._context):
            found = self._collected() if result is None else result
            found = with_error_body(found, self._context.backend, self._context.request_id)
            if not self._request.stream:
                return await self._rendered(found)
            if found.status < 400:
                self._request.operation.check_streamable(self._request, self._context, found)
            return found

    def _collected(self) -> Result:
        collector = self._collector or self._request.operation.collector(self._request, self._context)
        return collector.result()

    async def _rendered(self, result: Result) -> Result:
        if result.status >= 400:
            body = encode_json(result.json) if result.body is None else result.body
            return dataclasses.replace(result, json=None, body=body)
        content_type, body = await self._request.operation.render(self._request, self._context, result)
        return dataclasses.replace(result, json=None, body=body, content_type=content_type)


@contextmanager
def _readable(context: ResponseContext) -> Iterator[None]:
    """Turn the errors of a response of unexpected shape into the backend's failure."""
    try:
        yield
    except BackendFailed as exc:
        if exc.code != "upstream_bad_response":
            raise
        raise context.failure("gave an answer that cannot be read", detail=exc.message) from exc
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as exc:
        raise context.failure(f"gave an answer that cannot be read ({type(exc).__name__})", detail=str(exc)) from exc
