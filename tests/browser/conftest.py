"""One real service and one real browser for the whole run; every test has a fresh page, and none may leave an error in
its console."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.external_upgrades import drawn
from tests.scenario import create_gallery, post_images, register_transformation, register_version
from tests.served import Served

CHROMIUM = shutil.which("chromium")
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
STORES = ("shop", "spare")
Open = Callable[..., Page]
_MOST_MS = (
    60_000  # that anything is waited for: it comes in a fraction of that, but not on a machine that does much else
)


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("browser")
    stores = {name: f"file://{_store_of_v1(folder / name)}?side_information=side_information" for name in STORES}
    service = Served(folder / "data", stores=json.dumps(stores))
    service.start()
    yield service
    assert service.stop() == 0


def _store_of_v1(path: Path) -> Path:
    """Make a Parquet file of 30 rows whose vectors could be v1's; return where it is."""
    embedding, side_information = drawn(30)
    ids = [f"row-{number:02}" for number in range(30)]
    table = pa.table({"id": ids, "embedding": list(embedding), "side_information": list(side_information)})
    pq.write_table(table, path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


@pytest.fixture(scope="session")
def filled(served: Served) -> Served:
    """The service with versions v1 and v2, a transformation between them, and the gallery `shown` of 12 pictures."""
    for version in ("v1", "v2"):
        register_version(served.client, version)
    register_transformation(served.client, "v1", "v2")
    create_gallery(served.client, "shown")
    post_images(served.client, range(12), "shown")
    return served


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    expect.set_options(timeout=_MOST_MS)
    # Names of others that lead to this machine.
    rules = "--host-resolver-rules=MAP *.example 127.0.0.1"
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-dev-shm-usage", rules]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def errors() -> list[str]:
    """What pages logged as errors, threw, or broke of the Content-Security-Policy, which is logged too."""
    return []


@pytest.fixture
def opened(browser: Browser, served: Served, errors: list[str]) -> Iterator[Open]:
    """Open pages, and fail where one leaves an error."""
    contexts: list[BrowserContext] = []

    def open_page(path: str = "/", size: str = "desktop", **options: bool | str) -> Page:
        width, height = SIZES[size]
        context = browser.new_context(viewport={"width": width, "height": height}, **options)  # type: ignore[arg-type]
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(_MOST_MS)
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"http://127.0.0.1:{served.port}{path}")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture(scope="session")
def network_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a newcomer registers and adds: networks of two versions, and pictures."""
    from tests.networks import encoder_bytes, image_bytes, transformation_bytes

    folder = tmp_path_factory.mktemp("files")
    for name, data in {
        "phi_1": encoder_bytes(6, seed=1),
        "psi_1": encoder_bytes(5, seed=101),
        "phi_2": encoder_bytes(8, seed=2),
        "psi_2": encoder_bytes(4, seed=102),
        "h": transformation_bytes(6, 5, 8, seed=7),
        "g": transformation_bytes(6, 5, 4, seed=8),
        **{f"{seed}.png": image_bytes(seed) for seed in range(12)},
    }.items():
        (folder / name).write_bytes(data)
    return folder
