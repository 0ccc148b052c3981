"""Two API processes and a worker on one gallery, as a deployment runs them: what one is told, the other soon knows."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import pytest

from service.embedded.processes import spawn, stop
from service.embedded.supervisor import worker_command
from service.settings import Settings
from tests.conftest import Servers, fresh_database, small_settings
from tests.networks import image_bytes
from tests.scenario import create_gallery, create_upgradable_gallery, post_images, search
from tests.served import free_port, wait_for

FROM_ROWS = 12
NEAR = 1e-2
pytestmark = pytest.mark.xdist_group("two processes")


@dataclass(frozen=True)
class Deployment:
    """`one` and `other` are clients of API processes, whose logs are in `folder`."""

    one: httpx.Client
    other: httpx.Client
    folder: Path

    def agree_on(self, ids: set[str]) -> None:
        """Soon both find these items and no others."""
        wait_for(lambda: found(self.one) == found(self.other) == ids)

    def has_folded_in(self, name: str) -> bool:
        return "replica.folded_in" in (self.folder / f"{name}.log").read_text()


@pytest.fixture(scope="module")
def deployment(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("deployment")
    with ExitStack() as stack:
        settings = small_settings(servers, stack.enter_context(fresh_database(servers)), folder / "data").model_copy(
            update={
                "follow_every_seconds": 0.3,
                "sweep_every_seconds": 0.2,
                "index_file_from_rows": FROM_ROWS,
                "rebuild_after_changes": 6,
                "flat_below_rows": 0,
            }
        )
        settings.data.mkdir()
        one, other = (start_api(stack, settings, folder / f"{name}.log") for name in ("one", "other"))
        start(stack, worker_command(), settings, folder / "worker.log")
        for client in (one, other):
            wait_for(partial(is_ready, client), seconds=90)
        create_upgradable_gallery(one)
        yield Deployment(one, other, folder)


def start(stack: ExitStack, command: list[str], settings: Settings, log: Path) -> None:
    process = spawn(command, log_path=log, environment={**os.environ, **settings.environment()})
    stack.callback(stop, process, signal.SIGTERM, 30)


def start_api(stack: ExitStack, settings: Settings, log: Path) -> httpx.Client:
    port = free_port()
    start(stack, [sys.executable, "-m", "service.cli", "api", "--port", str(port)], settings, log)
    return stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60))


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def found(client: httpx.Client) -> set[str]:
    return {neighbor["id"] for neighbor in search(client, 0, k=100)["neighbors"]}


def is_nearest(client: httpx.Client, name: str, seed: int) -> bool:
    neighbor = search(client, seed, k=1)["neighbors"][0]
    return bool(neighbor["id"] == name and neighbor["distance"] < NEAR)


def names(*seeds: int) -> set[str]:
    return {f"image-{seed}.png" for seed in seeds}


def replace_image(client: httpx.Client, name: str, seed: int) -> None:
    assert client.post("/v1/galleries/g/images", files=[("files", (name, image_bytes(seed)))]).is_success


def test_who_takes_a_write_finds_it_at_once_and_the_other_soon(deployment: Deployment) -> None:
    one, other = deployment.one, deployment.other
    post_images(one, [0, 1, 2])
    assert found(one) == names(0, 1, 2)
    deployment.agree_on(names(0, 1, 2))

    post_images(other, [3])
    assert is_nearest(other, "image-3.png", 3)
    wait_for(lambda: is_nearest(one, "image-3.png", 3))

    replace_image(one, "image-3.png", 30)
    assert is_nearest(one, "image-3.png", 30)
    assert not is_nearest(one, "image-3.png", 3)
    wait_for(lambda: is_nearest(other, "image-3.png", 30))
    assert not is_nearest(other, "image-3.png", 3)

    assert other.delete("/v1/galleries/g/items/image-1.png").status_code == 204
    assert found(other) == names(0, 2, 3)
    deployment.agree_on(names(0, 2, 3))


def test_both_fold_in_what_the_worker_rebuilds_and_go_on_agreeing(deployment: Deployment) -> None:
    one, other = deployment.one, deployment.other
    post_images(one, range(40, 40 + FROM_ROWS))
    expected = found(one)

    wait_for(lambda: deployment.has_folded_in("one") and deployment.has_folded_in("other"), seconds=60)
    assert found(one) == found(other) == expected

    (job,) = one.get("/v1/jobs").json()["items"]
    assert (job["kind"], job["state"], job["upgrade"]) == ("index_build", "succeeded", None)
    replace_image(other, "image-40.png", 80)
    assert is_nearest(other, "image-40.png", 80)
    wait_for(lambda: is_nearest(one, "image-40.png", 80))
    assert one.delete("/v1/galleries/g/items/image-41.png").status_code == 204
    deployment.agree_on(expected - names(41))


def test_pages_go_on_in_either_process_whatever_is_written_to_the_other(deployment: Deployment) -> None:
    both = (deployment.one, deployment.other)
    create_gallery(both[0], "paged")
    post_images(both[0], range(30), "paged")
    left = [neighbor["id"] for neighbor in search(both[0], 3, "paged", k=30)["neighbors"]]
    cursor, pages = "*", 0

    while cursor is not None:
        asked = both[pages % 2]
        page = search(asked, 3, "paged", k=4, cursor=cursor)

        assert [neighbor["id"] for neighbor in page["neighbors"]] == left[:4]
        cursor, left, pages = page["next_cursor"], left[4:], pages + 1
        gone, replaced = left[1:2], left[2:3]
        for id_ in gone:  # the next page is at once asked for from the process that was not told
            assert asked.delete(f"/v1/galleries/paged/items/{id_}").status_code == 204
        for id_ in replaced:
            files = [("files", (id_, image_bytes(200 + pages)))]
            assert asked.post("/v1/galleries/paged/images", files=files).is_success
        post_images(asked, [100 + pages], "paged")
        left = [id_ for id_ in left if id_ not in gone + replaced]
    assert left == []
    assert pages >= 5
