"""The image in a request: its body, or a file of a form."""

from collections.abc import AsyncGenerator, Callable

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

FORM = "multipart/form-data"
FIELD = "image"
OTHER_TYPES = ("application/octet-stream", "application/x-www-form-urlencoded")  # what curl --data-binary says


async def read_image_bytes(request: Request, limit: int, hold: Callable[[int], None]) -> bytes:
    """The bytes of the image that a request holds. Raises HTTPException 400, 413 and 415.

    hold: Accounts for the bytes, see `Service.hold`.
    """
    kind = request.headers.get("content-type", OTHER_TYPES[0]).partition(";")[0].strip().lower()
    if not (kind == FORM or kind.startswith("image/") or kind in OTHER_TYPES):
        raise HTTPException(415, f"Content-Type must be image/*, {OTHER_TYPES[0]} or {FORM}, not {kind[:80]}")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise _too_large(limit)
    chunks = _chunks(request, limit, hold)
    if kind != FORM:
        return b"".join([chunk async for chunk in chunks])
    parser = MultiPartParser(request.headers, chunks, max_files=1, max_fields=8, max_part_size=1 << 16)
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError) as error:  # KeyError: without a boundary
        raise HTTPException(400, f"the form cannot be read: {getattr(error, 'message', 'no boundary')}") from error
    try:
        file = form.get(FIELD)
        if not isinstance(file, UploadFile):
            raise HTTPException(400, f"the form has no file `{FIELD}`")
        return await file.read()
    finally:
        await form.close()


async def _chunks(request: Request, limit: int, hold: Callable[[int], None]) -> AsyncGenerator[bytes, None]:
    total = 0
    async for chunk in request.stream():
        total += len(chunk)
        if total > limit:
            raise _too_large(limit)
        hold(len(chunk))
        yield chunk


def _too_large(limit: int) -> HTTPException:
    return HTTPException(413, f"the request has more than {limit >> 20} MiB; send a smaller image")
