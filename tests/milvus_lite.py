"""Milvus Lite, the embedded form of Milvus: a server in threads of the test's own process, on a folder of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from milvus_lite.server_manager import server_manager_instance


@contextmanager
def milvus_lite(folder: Path) -> Iterator[str]:
    """Give the URL of a new, empty Milvus Lite; its server starts with the first client and stops at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    url = str(folder / "milvus.db")
    yield url
    server_manager_instance.release_server(url)
