"""The Python client of gallery-upgrade.

    with gallery_upgrade.Client("http://localhost:8000") as c:
        g = c.galleries.create("photos", model_version="v1")
        g.upload_folder("~/pictures", progress=True)
        hits = g.search("cat.jpg", k=20)

`Client` waits for its answers; `AsyncClient` is awaited. Errors are in `gallery_upgrade.errors` and, one class for each
kind of problem, in `gallery_upgrade.problems`; models of answers in `gallery_upgrade.api.models`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gallery_upgrade.async_client import AsyncClient
    from gallery_upgrade.client import Client
    from gallery_upgrade.core.calls import UNSET, File
    from gallery_upgrade.core.exchange import Retries
    from gallery_upgrade.errors import Failed, GalleryUpgradeError, Problem, ServiceAway

# Imported when they are first asked for: the command line shows its help without httpx.
_WHERE = {
    "AsyncClient": "async_client",
    "Client": "client",
    "Failed": "errors",
    "File": "core.calls",
    "GalleryUpgradeError": "errors",
    "Problem": "errors",
    "Retries": "core.exchange",
    "ServiceAway": "errors",
    "UNSET": "core.calls",
}

__all__ = [
    "UNSET",
    "AsyncClient",
    "Client",
    "Failed",
    "File",
    "GalleryUpgradeError",
    "Problem",
    "Retries",
    "ServiceAway",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
