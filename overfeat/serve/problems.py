"""What clients get for an error, in REST and on the stream alike: its status and a text."""

from typing import NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from overfeat.errors import InputError
from overfeat.serve.batches import OverloadedError
from overfeat.serve.query import UnknownModelError

GONE = 499  # status in the metrics of requests whose client left


class Problem(NamedTuple):
    """An error as HTTP has it."""

    status: int
    text: str
    retry_after: int | None = None  # seconds


def problem_of(error: Exception) -> Problem:
    """The problem of an error that is no bug; of any other status 500."""
    if isinstance(error, HTTPException):
        return Problem(error.status_code, error.detail)
    if isinstance(error, InputError):
        return Problem(404 if isinstance(error, UnknownModelError) else 422, str(error))
    if isinstance(error, OverloadedError):
        return Problem(503, str(error), error.retry_after)
    if isinstance(error, MemoryError):
        return Problem(503, "the server has too little memory for this now", 5)
    if isinstance(error, TimeoutError):
        return Problem(504, "the answer was not ready in time; try again later, or ask for fewer or smaller scales")
    if isinstance(error, ClientDisconnect):
        return Problem(GONE, "the client left")
    return Problem(500, "an error of the server")
