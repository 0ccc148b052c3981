"""The console's styles, modules and pictures, read once, at addresses that hold the digest of them all."""

import hashlib
from pathlib import Path

from fastapi import APIRouter, Request, Response

from service.api.prefixes import address
from service.errors import NotFound

router = APIRouter()
_MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FILES = {
    path.name: path.read_bytes()
    for path in sorted((Path(__file__).parents[2] / "console" / "static").iterdir())
    if path.suffix in _MEDIA_TYPES
}
# One digest for all: a module imports its neighbours by relative addresses, and so finds those of its own release.
DIGEST = hashlib.sha256(b"".join(name.encode() + content for name, content in _FILES.items())).hexdigest()[:16]
_ETAG = f'"{DIGEST}"'


class UnknownAsset(NotFound):
    """The console has no such file."""


def asset(name: str) -> str:
    """Return the address of a file; KeyError for one that is not there."""
    _FILES[name]
    return address(f"/console/assets/{DIGEST}/{name}")


@router.get("/console/assets/{digest}/{name}")
def get_asset(digest: str, name: str, request: Request) -> Response:
    """Return a file; a browser may keep it for ever where the address is that of this release."""
    if name not in _FILES:
        raise UnknownAsset(f"The console has no file {name!r}.")
    kept = "public, max-age=31536000, immutable" if digest == DIGEST else "no-cache"
    headers = {"ETag": _ETAG, "Cache-Control": kept}
    if request.headers.get("if-none-match") == _ETAG:
        return Response(status_code=304, headers=headers)
    return Response(_FILES[name], media_type=_MEDIA_TYPES[Path(name).suffix], headers=headers)
