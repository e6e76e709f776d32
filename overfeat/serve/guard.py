"""Who may use the server: its hosts, its own page alone, and the token."""

import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from overfeat.serve.config import ServeConfig

LOCAL_HOSTS = {"localhost", "127.0.0.1", "::1"}
PROTECTED = ("/v1/", "/metrics")
LIVE = "/v1/live"  # a WebSocket, whose first message has the token
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


def token_matches(config: ServeConfig, token: object) -> bool:
    """Whether this is the server's token, or it has none."""
    if config.token is None:
        return True
    return isinstance(token, str) and hmac.compare_digest(token.encode(), config.token.encode())


class Guard:
    """Refuses requests of other sites' pages, for other hosts, and without the token; adds headers to answers.

    A page of any site can send requests to a server on the visitor's own machine: the Origin header, which browsers
    set, distinguishes them from those of the server's own page. Where the server listens on this machine alone, the
    Host header shows names that someone made to lead here (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, config: ServeConfig):
        self.app, self.config = app, config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name for name, _ in message["headers"]}
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *((n, v) for n, v in own if n not in present)]
            await send(message)

        status, reason = self._refusal(scope)
        if not status:
            await self.app(scope, receive, send_with_headers)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": reason})
        else:
            headers = {"www-authenticate": "Bearer"} if status == 401 else {}
            response = JSONResponse({"error": reason}, status, headers)
            await response(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> tuple[int, str]:
        headers, path = Headers(scope=scope), scope["path"]
        host = headers.get("host", "")
        if self.config.is_local and _name_of(host) not in LOCAL_HOSTS | {self.config.host}:
            return 403, "this server is for its own machine: http://localhost or http://127.0.0.1"
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return 403, "requests of other sites' pages are not answered"
        if path.startswith(PROTECTED) and path != LIVE:
            scheme, _, token = headers.get("authorization", "").partition(" ")
            given = token.strip() if scheme.lower() == "bearer" else None
            if not token_matches(self.config, given):
                return 401, "this server needs its token: Authorization: Bearer TOKEN"
        return 0, ""


def _name_of(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
