"""A new, empty Milvus for a test: Milvus Lite, a server in threads of the test's own process, on a folder of its own,
or a standalone server that the environment names by MILVUS_URL, out of which everything is dropped.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from milvus_lite.server_manager import server_manager_instance
from pymilvus import MilvusClient


@contextmanager
def milvus(folder: Path) -> Iterator[str]:
    """Give its URL. A Milvus Lite starts with the first client and stops at the end."""
    if server := os.environ.get("MILVUS_URL"):
        _empty(server)
        yield server
        return
    folder.mkdir(parents=True, exist_ok=True)
    url = str(folder / "milvus.db")
    yield url
    server_manager_instance.release_server(url)


def _empty(url: str) -> None:
    client = MilvusClient(url)
    for collection in client.list_collections():
        for alias in client.list_aliases(collection)["aliases"]:
            client.drop_alias(alias)
        client.drop_collection(collection)
    client.close()
