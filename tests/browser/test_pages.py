"""What holds of every page, in a real browser: accessibility by axe-core's rules, two sizes of screen, both schemes,
text of users that stays text, nothing from another host, and pages that read without JavaScript."""

import json
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Request

from tests.browser.conftest import SIZES, Open
from tests.networks import image_bytes
from tests.scenario import create_gallery, start_upgrade, state_of
from tests.served import Served, wait_for

pytestmark = pytest.mark.xdist_group("browser")

_MARKUP = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"
_BIDI = "‮gnp.exe‬ ⁦abc⁩"
_LONG = "long" * 1_000
_IDS = [_MARKUP, _BIDI, "l" * 512, "a&b#c?d/e\"f'g"]
PAGES = (
    "/",
    "/console/galleries/shown",
    "/console/galleries/shown/item?id=image-3.png",
    "/console/galleries/shown/upgrade",
    "/console/galleries/odd",
    f"/console/galleries/odd/item?id={quote(_MARKUP, safe='')}",
    "/console/upgrades",
    "/console/upgrades/{upgrade}",
    "/console/upgrades/{upgrade}/compare",
    "/console/upgrades/{upgrade}/compare?blind=1",
    "/console/upgrades/{upgrade}/report",
    "/console/upgrades/{upgrade}/backfill",
    "/console/external-upgrades",
    "/console/external-upgrades/{external}",
    "/console/stores/spare?from_version=v1&to_version=v2",
    "/console/audit",
    "/console/jobs",
    "/console/versions",
    "/console/keys",
    "/console/login",
    "/console/galleries/none-such",
)


@pytest.fixture(scope="module")
def upgrade(filled: Served) -> Iterator[int]:
    """An upgrade of the gallery `shown` that is ready and judged, beside a gallery whose users write what they like."""
    create_gallery(filled.client, "odd", "v1")
    files = [("files", ("file", image_bytes(seed), "image/png")) for seed in range(len(_IDS))]
    items = [{"id": id_, "label": (_MARKUP + _LONG)[:512], "metadata": {_MARKUP: _BIDI, "long": _LONG}} for id_ in _IDS]
    answer = filled.client.post("/v1/galleries/odd/images", files=files, data={"items": json.dumps(items)})
    assert answer.status_code == 200, answer.text
    assert [each["status"] for each in answer.json()["results"]] == ["created"] * len(_IDS), answer.text

    upgrade_id = start_upgrade(filled.client, "v2", "shown")
    wait_for(lambda: state_of(filled.client, upgrade_id) == "ready", seconds=60)
    yield upgrade_id
    assert filled.client.post(f"/v1/upgrades/{upgrade_id}/cancel").status_code == 200


@pytest.fixture(scope="module")
def paths(filled: Served, upgrade: int) -> Iterator[list[str]]:
    """The pages' addresses, of that upgrade, and of one of another store that is ready and judged."""
    wanted = {"store": "shop", "from_version": "v1", "to_version": "v2"}
    external: int = filled.client.post("/v1/external-upgrades", json=wanted).raise_for_status().json()["id"]
    place = f"/v1/external-upgrades/{external}"
    wait_for(lambda: filled.client.get(place).json()["state"] == "ready", seconds=60)
    yield [path.format(upgrade=upgrade, external=external) for path in PAGES]
    assert filled.client.post(f"{place}/cancel").status_code == 200


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_no_page_breaks_a_rule_of_accessibility_or_is_wider_than_its_screen(
    opened: Open, paths: list[str], served: Served, errors: list[str], size: str, scheme: str
) -> None:
    page, broken = opened("/", size, color_scheme=scheme), dict[str, list[str]]()

    for path in paths:
        page.goto(f"http://127.0.0.1:{served.port}{path}")
        found = Axe().run(page)
        assert found.response["passes"], path
        if found.violations_count:
            broken[path] = [
                f"{each['id']}: {node['target']} {node['failureSummary']}"
                for each in found.response["violations"]
                for node in each["nodes"][:3]
            ]
        width = page.evaluate("document.documentElement.scrollWidth")
        if width > SIZES[size][0]:
            broken.setdefault(path, []).append(f"it is {width} wide")

    assert broken == {}
    assert [each for each in errors if "404" not in each] == []
    errors.clear()  # the page that is not there is 404


def test_what_users_write_stays_text(opened: Open, upgrade: int, served: Served) -> None:
    page = opened("/console/galleries/odd")

    assert page.title() != "broken"
    assert page.locator("#items .picture").count() == len(_IDS)
    assert page.locator("img[src=x]").count() == 0
    for id_ in _IDS:
        page.goto(f"http://127.0.0.1:{served.port}/console/galleries/odd/item?id={quote(id_, safe='')}")
        assert id_[:60] in (page.locator("main").text_content() or "")
        assert page.title() != "broken"
        assert page.locator("main script, main img[src=x]").count() == 0


def test_pages_ask_no_other_host(opened: Open, paths: list[str], served: Served) -> None:
    page, asked = opened("/"), set[str]()

    def note(request: Request) -> None:
        asked.add(request.url.split("/")[2] if request.url.startswith("http") else request.url.split(":")[0])

    page.on("request", note)
    for path in paths[:-1]:
        page.goto(f"http://127.0.0.1:{served.port}{path}")

    assert asked <= {f"127.0.0.1:{served.port}", "data", "blob"}


def test_pages_read_without_javascript(opened: Open, paths: list[str], served: Served) -> None:
    page = opened("/", java_script_enabled=False)

    for path in paths[:-1]:
        page.goto(f"http://127.0.0.1:{served.port}{path}")
        assert page.locator("h1").count() == 1, path
        assert page.locator("main").inner_text().strip(), path
    page.goto(f"http://127.0.0.1:{served.port}/console/galleries/shown")
    assert page.locator("#items .picture").count() == 12
