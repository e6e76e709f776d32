"""The options of the server. Imports no torch."""

from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from overfeat.errors import ArgumentError, InputError
from overfeat.options import Options, mebibytes, option

MAX_BODY = 16 << 20  # bytes
MAX_PIXELS = 25_000_000
MAX_SECONDS = 86_400


@dataclass(frozen=True)
class ServeConfig(Options):
    """Where the server listens, who may use it, and how much of it."""

    host: str = option(
        "127.0.0.1", "address to listen at; where other machines reach it, a token is needed", metavar="HOST"
    )
    port: int = option(8000, "port to listen at; 0: any that is free", minimum=0, below=65536, metavar="N")
    token: str | None = option(
        None, "a password of requests: `Authorization: Bearer TOKEN`; of the page: http://HOST:PORT/#token=TOKEN "
        "(default: the environment variable OVERFEAT_TOKEN, else none)", metavar="TOKEN",
    )  # fmt: skip
    insecure: bool = option(False, "everybody who reaches the host may use the server, without a token")
    certificate: Path | None = option(
        None, "PEM file for https, which browsers demand for the camera of another machine", metavar="FILE"
    )
    key: Path | None = option(None, "PEM file of the certificate's private key", metavar="FILE")
    queue_size: int = option(64, "requests that wait for the net, at most; more are answered 503", minimum=1)
    batch_size: int = option(8, "images of one size that pass through the net together, at most", minimum=1)
    deadline: float = option(
        30.0, "seconds in which a request is answered, or given up", minimum=0.1, below=MAX_SECONDS, metavar="S"
    )
    max_body: int = option(
        MAX_BODY, f"largest request (default: {MAX_BODY >> 20})", parse=mebibytes, minimum=1, metavar="MIB"
    )
    max_pixels: int = option(MAX_PIXELS, "refuse images with more pixels", minimum=1, metavar="N")
    max_work: float = option(
        200.0, "refuse requests of more billion multiplications, by their scales and stride", minimum=0, metavar="N"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token.strip()):
            raise ArgumentError("token", "must be printable ASCII characters")
        if self.token and self.insecure:
            raise ArgumentError("insecure", "does not go with a token; leave one of them out")
        if not self.is_local and not self.token and not self.insecure:
            remedy = "give a password, `token`, or let everybody use the server, `insecure`"
            raise InputError(f"other machines reach {self.host}; {remedy}")
        if (self.certificate is None) != (self.key is None):
            raise InputError("https needs both `certificate` and `key`; give the other one, too")

    @property
    def is_local(self) -> bool:
        """Whether this machine alone reaches the host."""
        try:
            return self.host == "localhost" or ip_address(self.host).is_loopback
        except ValueError:
            return False
