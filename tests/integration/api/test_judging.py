"""Reports come as JSON, or as one HTML page in which nothing that a user wrote is markup."""

from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.reported import FIELD, LABELS, VALUES, ready_upgrade, reported_upgrade
from tests.scenario import create_upgradable_gallery, start_upgrade
from workers.app import WorkerParts

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"
SECTIONS = [
    "gates",
    "references",
    "held-out",
    "labels",
    "flips",
    "slices",
    "churn",
    "spaces",
    "thresholds",
    "examples",
    "read",
]
_VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """A page's elements with their attributes, and its text. Raises AssertionError for elements that are not nested."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def upgrade_id(client: TestClient, worker: WorkerParts) -> int:
    return reported_upgrade(client, worker)


def page_of(client: TestClient, path: str) -> Page:
    answer = client.get(path, headers={"Accept": BROWSER})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert answer.text.startswith("<!doctype html>")
    return Page(answer.text)


def test_the_client_says_in_which_form_it_wants_a_report(client: TestClient, upgrade_id: int) -> None:
    path = f"/v1/upgrades/{upgrade_id}/report"

    for accept, parameters, expected in (
        (BROWSER, {}, "text/html"),
        ("*/*", {}, "application/json"),
        ("application/json", {}, "application/json"),
        (BROWSER, {"format": "json"}, "application/json"),
        ("application/json", {"format": "html"}, "text/html"),
    ):
        for numbered in (path, f"{path}s/1", f"{path}s/2"):
            answer = client.get(numbered, headers={"Accept": accept}, params=parameters)
            assert answer.headers["content-type"].startswith(expected), (accept, parameters)
            assert answer.headers["vary"] == "Accept"
    assert client.get(path, params={"format": "pdf"}).status_code == 422


@pytest.mark.parametrize("path", ["/v1/upgrades/99/report", "/v1/upgrades/99/reports/1"])
def test_who_wants_a_page_of_what_there_is_not_gets_a_problem_all_the_same(client: TestClient, path: str) -> None:
    answer = client.get(path, headers={"Accept": BROWSER})

    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


def test_there_is_no_page_before_the_report(client: TestClient) -> None:
    create_upgradable_gallery(client)
    upgrade_id = start_upgrade(client, "v2")

    for path in ("report", "reports/1", "report/examples?kind=churn"):
        assert client.get(f"/v1/upgrades/{upgrade_id}/{path}", headers={"Accept": BROWSER}).status_code == 404


def test_nothing_that_a_user_wrote_is_markup(client: TestClient, upgrade_id: int) -> None:
    page = page_of(client, f"/v1/upgrades/{upgrade_id}/report")

    assert not {tag for tag, _ in page.elements} & {"script", "object", "iframe", "form"}
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    for written in (*LABELS, f"metadata.{FIELD}={VALUES[0]}", f"metadata.{FIELD}={VALUES[1]}"):
        assert written in page.text
    examples = client.get(f"/v1/upgrades/{upgrade_id}/report/examples?kind=hubs&limit=1").json()["examples"]
    assert examples[0]["item"]["id"].startswith("<script>")
    assert examples[0]["item"]["id"] in page.text


def test_the_page_is_whole(client: TestClient, upgrade_id: int) -> None:
    answer = client.get(f"/v1/upgrades/{upgrade_id}/report", headers={"Accept": BROWSER})

    page = Page(answer.text)
    policy = answer.headers["content-security-policy"].split("; ")
    assert {"default-src 'none'", "script-src 'none'", "img-src 'self' data:"} <= set(policy)
    assert "'unsafe" not in answer.headers["content-security-policy"]
    sources = [attributes["src"] or "" for attributes in page.all("img")]
    assert len(sources) > 20
    assert all(source.startswith("data:image/jpeg;base64,/9j/") for source in sources)
    assert page.all("link") == []
    assert "url(" not in answer.text
    assert "@import" not in answer.text


def test_the_page_can_be_read_without_seeing_it(client: TestClient, upgrade_id: int) -> None:
    page = page_of(client, f"/v1/upgrades/{upgrade_id}/report")

    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == len(page.all("main")) == len(page.all("title")) - len(page.all("svg")) == 1
    levels = [int(tag[1]) for tag, _ in page.elements if tag in {"h1", "h2", "h3", "h4", "h5"}]
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert {attributes.get("scope") for attributes in page.all("th")} == {"col", "row"}
    assert len(page.all("caption")) == len(page.all("table")) > 8
    assert all("alt" in attributes for attributes in page.all("img"))
    (picture,) = page.all("svg")
    assert picture["role"] == "img"
    ids = Counter(attributes["id"] for _, attributes in page.elements if attributes.get("id"))
    assert max(ids.values()) == 1
    assert set((picture["aria-labelledby"] or "").split()) <= set(ids)
    targets = [target[1:] for attributes in page.all("a") if (target := attributes["href"] or "").startswith("#")]
    assert targets == [*SECTIONS, "unseen"]
    assert set(targets) <= set(ids)


def test_the_page_says_what_the_report_says(client: TestClient, upgrade_id: int) -> None:
    page = page_of(client, f"/v1/upgrades/{upgrade_id}/report")

    report = client.get(f"/v1/upgrades/{upgrade_id}/report").json()
    content: dict[str, Any] = report["content"]
    assert f"Verdict: {report['verdict'].replace('_', ' ')}" in page.text
    assert content["wanted"] in page.text
    for gate in content["gates"]:
        for outcome in (gate["outcome"], gate["source"]):
            assert outcome in page.text
    labelled, served = content["measurements"]["references"]["labelled"], content["measurements"]["served"]
    for share in (
        *(labelled[name]["cmc1"] for name in ("old_old", "new_h", "new_new", "h_h")),
        served["cmc1"]["negative"]["value"],
        served["cmc1"]["positive"]["value"],
        content["measurements"]["churn_of_queries"]["overlap"],
    ):
        assert f"{100 * share:.1f} %" in page.text
    for digest in content["about"]["networks"].split():
        assert digest in page.text
    assert content["about"]["code_version"] in page.text
    assert f"{content['measurements']['spaces']['pairs'][0]['after']:.4g}".replace("-", "−") in page.text


def test_the_worst_slice_is_the_first_row(client: TestClient, upgrade_id: int) -> None:
    page = page_of(client, f"/v1/upgrades/{upgrade_id}/report")

    slices = client.get(f"/v1/upgrades/{upgrade_id}/report").json()["content"]["measurements"]["served"]["slices"]
    worst_first = sorted(slices, key=lambda slice_: slice_["difference"]["low"])
    table = page.text.index("CMC@1 of groups of queries, worst first")
    places = [page.text.index("=".join(slice_["conditions"][0]), table) for slice_ in worst_first]
    assert len(places) > 1
    assert places == sorted(places)


def test_a_report_without_evidence_is_a_page_that_says_what_is_missing(client: TestClient, worker: WorkerParts) -> None:
    upgrade_id = ready_upgrade(client, worker)

    page = page_of(client, f"/v1/upgrades/{upgrade_id}/reports/1")

    assert "Verdict: not judged" in page.text
    assert "Nothing that the new model encoded was compared" in page.text
    assert "How near h comes to encoding anew" in page.text
    assert page.all("img") == []


def test_as_json_a_report_holds_no_ids_of_our_own(client: TestClient, upgrade_id: int) -> None:
    assert "examples" not in client.get(f"/v1/upgrades/{upgrade_id}/report").json()["content"]["measurements"]
