"""The console: static pages at `/`, which talk to the same HTTP API as everyone."""

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

router = APIRouter(include_in_schema=False)
_FOLDER = Path(__file__).parent.parent / "console"


@router.get("/")
def index() -> FileResponse:
    return FileResponse(_FOLDER / "index.html", media_type="text/html")
