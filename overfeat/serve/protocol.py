"""Limits of connections before they have made a request: of time for its head, and of bytes before the token."""

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol
from uvicorn.protocols.websockets.auto import AutoWebSocketsProtocol

HEAD_SECONDS = 15.0  # without a request, or for its head
MAX_START = 1 << 20  # bytes that a stream may send before it is admitted
ADMITTED = "overfeat.admitted"  # of a stream's scope, set by `live`


class LimitedHead(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """Closes a connection on which no request is under way, or its head incomplete, for HEAD_SECONDS."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._restart()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._restart()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._timer is not None:
            self._timer.cancel()

    def _restart(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(HEAD_SECONDS, self._close_idle)

    def _close_idle(self) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self.transport.get_protocol() is self:  # not of a stream by now
            self.transport.close()


class LimitedStart(AutoWebSocketsProtocol):  # type: ignore[misc, valid-type]
    """Closes a stream that sends more than MAX_START bytes before it is admitted."""

    _received = 0

    def data_received(self, data: bytes) -> None:
        if not (getattr(self, "scope", None) or {}).get(ADMITTED):
            self._received += len(data)
            if self._received > MAX_START:
                self.transport.abort()
                return
        super().data_received(data)
