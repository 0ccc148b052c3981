"""A newcomer's whole path through the console, by buttons alone, against a service that is new: nothing is registered,
and nobody asks the API beside the page."""

import json
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Open
from tests.networks import PREPROCESSING
from tests.served import Served

pytestmark = pytest.mark.xdist_group("browser")
DIMS = {"first": (6, 5), "second": (8, 4)}


def _register(page: Page, files: Path, name: str, number: int) -> None:
    embedding_dim, side_dim = DIMS[name]
    form = page.locator("form", has=page.get_by_role("button", name="Register the version"))
    spec = {
        "embedding_dim": embedding_dim,
        "side_information_dim": side_dim,
        "preprocessing": PREPROCESSING,
    }
    form.get_by_label("Name").fill(name)
    form.get_by_label("Spec").fill(json.dumps(spec))
    form.get_by_label("φ").set_input_files(files / f"phi_{number}")
    form.get_by_label("ψ").set_input_files(files / f"psi_{number}")
    form.get_by_role("button", name="Register the version").click()
    expect(page.locator("#versions").get_by_role("rowheader", name=name, exact=True)).to_be_visible()


def test_a_gallery_is_made_upgraded_judged_and_rolled_back_by_buttons_alone(
    served: Served, opened: Open, network_files: Path
) -> None:
    page = opened("/")

    page.get_by_role("link", name="Versions").click()
    _register(page, network_files, "first", 1)
    _register(page, network_files, "second", 2)
    page.reload()
    form = page.locator("form", has=page.get_by_role("button", name="Register the transformation"))
    form.locator("[name=from_version]").select_option("first")
    form.locator("[name=to_version]").select_option("second")
    form.locator("[name=h]").set_input_files(network_files / "h")
    form.locator("[name=g]").set_input_files(network_files / "g")
    form.get_by_role("button", name="Register the transformation").click()
    expect(page.locator("#transformations")).to_contain_text("first → second")

    page.get_by_role("link", name="Galleries").click()
    page.get_by_label("Name").fill("newcomer")
    page.get_by_label("Model version").select_option("first")
    page.get_by_role("button", name="Make the gallery").click()
    expect(page.get_by_role("heading", name="No pictures yet")).to_be_visible()
    page.get_by_label("Pictures", exact=True).set_input_files([network_files / f"{seed}.png" for seed in range(12)])
    expect(page.get_by_text("12 of 12: 12 created.")).to_be_visible()
    expect(page.locator("#items .picture")).to_have_count(12)

    page.get_by_label("Picture to search by").set_input_files(network_files / "3.png")
    expect(page.locator("#answer .picture").first).to_contain_text("3.png")

    page.get_by_role("link", name="Upgrade…").click()
    page.get_by_label("To the model version").select_option("second")
    page.get_by_role("button", name="Dry run").click()
    expect(page.get_by_role("heading", name="What it would take")).to_be_visible()
    expect(page.locator("dd").first).to_have_text("12")
    page.get_by_role("button", name="Start the upgrade to second").click()

    expect(page.get_by_role("button", name="Cut over")).to_be_visible()  # it came by itself, over the stream
    expect(page.locator("#verbs")).to_contain_text("Queries of 12 items are answered by second")
    upgrade = page.url

    page.get_by_role("link", name="Before and after").click()
    expect(page.locator(".compare li").first).to_be_visible()
    page.get_by_role("link", name="Compare blind").click()
    page.get_by_role("button", name="Left is better").click()
    expect(page.get_by_text("1 vote so far.")).to_be_visible()

    page.goto(upgrade)
    page.get_by_role("link", name="Report", exact=True).click()
    expect(page.get_by_text("Verdict: not judged")).to_be_visible()
    page.get_by_role("link", name="Decide").click()

    page.get_by_role("button", name="Cut over").click()
    expect(page.locator("#state .tag").first).to_have_text("live")
    expect(page.get_by_role("button", name="Finalize")).to_be_disabled()
    page.get_by_role("button", name="Roll back").click()
    expect(page.locator("#state .tag").first).to_have_text("rolled back")
    expect(page.get_by_text("Nothing more: the upgrade is rolled back.")).to_be_visible()
    expect(page.get_by_role("slider", name="Speed")).to_have_count(0)  # there is nothing left to throttle
    page.get_by_role("link", name="Galleries").first.click()
    expect(page.locator("tr", has_text="newcomer")).to_contain_text("first")
