"""Limits of connections before they have made a request: of time for its head, of bytes before the token, of room.

Of MAX_CONNECTIONS connections the one that has kept the server waiting longest makes room for a new one, so that
clients that connect and send nothing, or half of a request, keep nobody out.
"""

import asyncio
import time
from collections.abc import Collection
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol
from uvicorn.protocols.websockets.auto import AutoWebSocketsProtocol

MAX_CONNECTIONS = 512
HEAD_SECONDS = 15.0  # without a request, or for its head
MAX_START = 1 << 20  # bytes that a stream may send before it is admitted
ADMITTED = "overfeat.admitted"  # of a stream's scope, set by `live`


class LimitedHead(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """Closes a connection on which no request is under way, or its head incomplete, for HEAD_SECONDS."""

    _timer: asyncio.TimerHandle | None = None
    _since = 0.0  # on time.monotonic's clock, of the connection or its last answer

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._restart()
        make_room(self.connections, self)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._restart()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._timer is not None:
            self._timer.cancel()

    @property
    def waiting_since(self) -> float | None:
        """Since when the client has sent no complete request; None while one is answered."""
        return self._since if self._is_idle or self.cycle.more_body else None

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _restart(self) -> None:
        self._since = time.monotonic()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(HEAD_SECONDS, self._close_idle)

    def _close_idle(self) -> None:
        if self._is_idle and self.transport.get_protocol() is self:  # not of a stream by now
            self.transport.close()


class LimitedStart(AutoWebSocketsProtocol):  # type: ignore[misc, valid-type]
    """Closes a stream that sends more than MAX_START bytes before it is admitted."""

    _received, _since = 0, 0.0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._since = time.monotonic()

    @property
    def waiting_since(self) -> float | None:
        """Since when the stream has not been admitted; None once it is."""
        return None if self._is_admitted else self._since

    @property
    def _is_admitted(self) -> bool:
        return bool((getattr(self, "scope", None) or {}).get(ADMITTED))

    def data_received(self, data: bytes) -> None:
        if not self._is_admitted:
            self._received += len(data)
            if self._received > MAX_START:
                self.transport.abort()
                return
        super().data_received(data)


def make_room(connections: Collection[Any], new: Any) -> None:
    """Where there are too many connections, cut off the one whose client has kept the server waiting longest."""
    others = [
        connection for connection in connections if connection is not new and not connection.transport.is_closing()
    ]
    idle = [connection for connection in others if connection.waiting_since is not None]
    if idle and len(others) + 1 >= MAX_CONNECTIONS:
        min(idle, key=lambda other: other.waiting_since).transport.abort()
