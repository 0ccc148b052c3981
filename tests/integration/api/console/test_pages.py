"""Pages that the service makes: whole, strict in what they may load, and naming no call that the API does not have."""

import re
from urllib.parse import unquote

import pytest
from fastapi.testclient import TestClient

from service.api.console.assets import DIGEST
from tests.scenario import create_upgradable_gallery, post_images, start_upgrade, state_of
from tests.served import wait_for
from tests.working import run_until
from workers.app import WorkerParts

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


@pytest.fixture
def upgrade(client: TestClient, worker: WorkerParts) -> int:
    """An upgrade of the gallery `g` that is ready."""
    create_upgradable_gallery(client)
    post_images(client, range(4))
    upgrade_id = start_upgrade(client, "v2")
    run_until(worker, client, upgrade_id, "ready")
    query = {"ids": ["image-0.png"]}
    wait_for(lambda: client.post("/v1/galleries/g/search/items?generation=next", json=query).is_success)
    return upgrade_id


def _pages(upgrade_id: int) -> list[str]:
    of_gallery = ["", "?label=class+1&uncertain=", "?key=seed&value=1&origin=encoded", "/item?id=image-1.png"]
    of_upgrade = [
        "",
        "/compare",
        "/compare?kind=items&at=2&blind=true",
        "/report",
        "/backfill",
        "/backfill?source=client",
    ]
    return [
        "/",
        *(f"/console/galleries/g{path}" for path in [*of_gallery, "/upgrade?to_version=v2"]),
        "/console/upgrades",
        *(f"/console/upgrades/{upgrade_id}{path}" for path in of_upgrade),
        "/console/audit",
        "/console/audit?action=upgrade.opened&kind=upgrade&subject=1",
        "/console/jobs",
        "/console/jobs/1",
        "/console/versions",
        "/console/styleguide",
    ]


def test_every_page_is_whole_and_may_run_nothing_but_our_own(client: TestClient, upgrade: int) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    known = [re.compile(re.sub(r"\\{[^}]*\\}", "[^/?]+", re.escape(path)) + r"(\?.*)?") for path in paths]

    for path in _pages(upgrade):
        page = client.get(path)

        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8"), path
        assert page.headers["content-security-policy"] == POLICY
        assert page.text.count("<h1") == 1, path
        assert not re.search(r"<(script|style)>|\sstyle=|\son[a-z]+=", page.text), path
        assert not re.search(r"(?:src|href)=\"(?:https?:)?//", page.text), path
        for asked in re.findall(r'data-(?:path|events)="([^"]*)"', page.text):
            assert asked.startswith("/console/") or any(each.fullmatch(unquote(asked)) for each in known), asked


def test_a_line_of_a_gallery_says_how_often_it_is_searched_and_what_its_index_takes(
    client: TestClient, upgrade: int
) -> None:
    before = client.get("/").text
    for _ in range(12):
        assert client.post("/v1/galleries/g/search/items", json={"ids": ["image-0.png"]}).status_code == 200

    page = client.get("/").text

    assert "none of late" not in page
    assert re.search(r"0\.2\d*/s <span class=\"muted small\">p99 [\d.]+ m?s", page), page
    assert "4 vectors here, about 96 bytes" in before  # float32 of v1's six dimensions


def test_a_new_service_says_what_to_do_first(client: TestClient) -> None:
    page = client.get("/")

    assert "No gallery yet" in page.text
    assert "demo.walk" in page.text
    assert "No upgrade yet" in client.get("/console/upgrades").text
    assert "No job yet" in client.get("/console/jobs").text


def test_a_refusal_is_a_page_with_its_sentence(client: TestClient, upgrade: int) -> None:
    for path, status, sentence in (
        ("/console/galleries/none", 404, "There is no gallery named &#39;none&#39;."),
        ("/console/galleries/g/item?id=none", 404, "has no item &#39;none&#39;"),
        ("/console/galleries/g?metadata=1", 422, "There is no parameter &#39;metadata&#39;"),
        ("/console/upgrades/99", 404, "There is no upgrade 99."),
        (f"/console/upgrades/{upgrade}/compare?kind=churn&at=3", 404, "The newest report has no such example."),
        ("/console/upgrades/x", 422, "The address is not valid: path.upgrade_id"),
    ):
        page = client.get(path)

        assert (page.status_code, page.headers["content-type"]) == (status, "text/html; charset=utf-8"), path
        assert sentence in page.text


def test_a_dry_run_shows_numbers_and_writes_nothing(client: TestClient) -> None:
    create_upgradable_gallery(client)
    post_images(client, range(4))

    page = client.get("/console/galleries/g/upgrade?to_version=v2").text

    assert re.search(r"<dt>Rows to transform</dt><dd>4</dd>", page)
    assert client.get("/v1/galleries/g/upgrades").json()["items"] == []
    assert "is already under model version" in client.get("/console/galleries/g/upgrade?to_version=v1").text


def test_a_filter_leaves_the_other_items_out(client: TestClient, upgrade: int) -> None:
    page = client.get("/console/galleries/g?label=class+1").text

    assert re.findall(r"<bdi>(image-\d.png)</bdi>", page) == ["image-1.png"]


def test_what_a_button_would_do_is_said_in_numbers(client: TestClient, worker: WorkerParts, upgrade: int) -> None:
    page = client.get(f"/console/upgrades/{upgrade}").text

    assert "Queries of 4 items are answered by v2, generation 2. No change waits" in page
    assert "Generation 2 with 4 transformed rows is dropped; generation 1, which answers, stays as it is." in page
    assert "Not possible while it is ready: an upgrade is finalized while it is live." in page
    assert state_of(client, upgrade) == "ready"


def test_the_audit_shows_who_did_what_newest_first_of_what_is_asked_for(client: TestClient, upgrade: int) -> None:
    pages = [client.get(f"/console/audit{query}").text for query in ("", "?action=upgrade.opened", "?subject=nobody")]

    did = [re.findall(r'<td data-name="Did">(.*?)</td>', page) for page in pages]
    assert did[0][0] == "upgrade.opened"
    assert did[0][-1] == "model_version.registered"
    assert did[1:] == [["upgrade.opened"], []]
    assert f'<a href="/console/upgrades/{upgrade}"' in pages[1]
    assert "No such entry." in pages[2]
    entries = client.get("/v1/audit").json()["items"]
    assert all(entry["hash"] in pages[0] for entry in entries)
    older = client.get(f"/console/audit?before={entries[1]['id']}").text
    assert re.findall(r'<th scope="row">(\d+)</th>', older) == [str(entries[0]["id"])]


def test_both_generations_are_compared_by_rank(client: TestClient, upgrade: int) -> None:
    page = client.get(f"/console/upgrades/{upgrade}/compare?kind=items").text

    assert page.count('<path class="') == 3
    assert "3 of 3 neighbours are shown on both sides. Asked now, by the item’s own embedding" in page


def test_a_blind_comparison_does_not_tell_which_is_which(client: TestClient, upgrade: int) -> None:
    for at in range(4):
        page = client.get(f"/console/upgrades/{upgrade}/compare?kind=items&blind=true&at={at}").text

        compared = page[page.index('<div class="compare">') :].split("</section>")[0]
        assert re.findall(r"<h3>(.*?)</h3>", compared) == [
            f'<span class="tag ">{each}</span> ' for each in ("left", "right")
        ]
        assert not re.search(r"tag active|tag next|gone|new|was \d|→|class=\"(up|down)", compared)


def test_files_of_pages_are_kept_by_browsers_until_they_change(client: TestClient) -> None:
    address = f"/console/assets/{DIGEST}/console.css"
    assert address in client.get("/").text

    answer = client.get(address)

    assert answer.headers["content-type"] == "text/css; charset=utf-8"
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert client.get(address, headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
    assert client.get("/console/assets/older/console.css").headers["cache-control"] == "no-cache"
    assert client.get(f"/console/assets/{DIGEST}/none.js").status_code == 404


def test_pages_are_no_part_of_the_described_api(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]

    assert [path for path in paths if path == "/" or path.startswith("/console")] == []
