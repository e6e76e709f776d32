"""Running the server until it is stopped."""

import logging
import signal
import socket
from collections.abc import Mapping
from types import FrameType
from typing import Any

from overfeat.errors import InputError
from overfeat.serve.config import ServeConfig
from overfeat.serve.models import Model


def serve(models: Mapping[str, Model], config: ServeConfig) -> None:
    """Serve these nets until the process gets SIGINT or SIGTERM; what was accepted is then answered.

    Prints the address once connections are accepted. Raises InputError where the port cannot be used, or the extra
    `serve` is not installed.
    """
    server, listener = make_server(models, config, warm_up=True)
    print(f"serving {', '.join(models)} at {address_of(listener, config)}", flush=True)
    # uvicorn raises the signals that stopped it once more at its end.
    previous = {number: signal.signal(number, _ignore) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run([listener])
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def make_server(models: Mapping[str, Model], config: ServeConfig, warm_up: bool = False) -> tuple[Any, socket.socket]:
    """A uvicorn.Server, and the socket that its `run` takes. Raises InputError as `serve`."""
    try:
        import python_multipart  # noqa: F401
        import uvicorn
        import websockets  # noqa: F401

        from overfeat.serve.app import make_app
        from overfeat.serve.protocol import MAX_CONNECTIONS, LimitedHead, LimitedStart
    except ModuleNotFoundError as error:
        raise InputError(f'the server needs {error.name}: pip install "overfeat[serve]"') from error
    logging.getLogger("python_multipart").addHandler(logging.NullHandler())  # junk of clients fills no log
    listener = _listen(config)
    settings = uvicorn.Config(
        make_app(models, config, warm_up), http=LimitedHead, ws=LimitedStart, log_level="error", access_log=False,
        server_header=False, ssl_keyfile_password="none",  # which asks for none on the terminal
        ws_max_size=config.max_body, ws_max_queue=2, ws_per_message_deflate=False, limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=15, timeout_graceful_shutdown=int(config.deadline) + 1,
        ssl_certfile=config.certificate, ssl_keyfile=config.key,
    )  # fmt: skip
    try:
        settings.load()
    except OSError as error:  # ssl's errors, too
        listener.close()
        problem = f"{config.certificate}, {config.key}: no certificate with its key ({error.strerror or error})"
        raise InputError(f"{problem}; give PEM files, and a key without a password") from error
    return uvicorn.Server(settings), listener


def address_of(listener: socket.socket, config: ServeConfig) -> str:
    """The page's address."""
    host, port = listener.getsockname()[:2]
    scheme = "https" if config.certificate else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/"


def _ignore(number: int, frame: FrameType | None) -> None:
    """Nothing, instead of the end of the process."""


def _listen(config: ServeConfig) -> socket.socket:
    try:
        family, kind, *_, address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        problem = f"{config.host} port {config.port}: cannot listen there ({error.strerror or error})"
        raise InputError(f"{problem}; choose another `port`, or an address of this machine as `host`") from error
    return listener
