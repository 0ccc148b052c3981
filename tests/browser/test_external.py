"""A gallery in a file is upgraded from the console: planned, switched and switched back by buttons, and found again by
keys."""

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Open
from tests.served import Served

pytestmark = pytest.mark.xdist_group("browser")


def test_another_store_is_upgraded_and_rolled_back_by_buttons_and_keys(opened: Open, filled: Served) -> None:
    page = opened("/")

    page.keyboard.type("gs")
    expect(page.get_by_role("heading", name="Other stores")).to_be_visible()
    page.get_by_role("link", name="spare", exact=True).click()
    page.get_by_label("Its embeddings are of the version").select_option("v1")
    page.get_by_label("To the model version").select_option("v2")
    page.get_by_role("button", name="Dry run").click()
    expect(page.get_by_role("heading", name="What it would take")).to_be_visible()
    page.get_by_role("button", name="Start the upgrade to v2").click()

    expect(page.get_by_role("button", name="Cut over")).to_be_visible()  # it came by itself, over the stream
    expect(page.locator("#verbs")).to_contain_text("Searches of 30 rows of spare see v2")
    expect(page.locator("#verification")).to_contain_text("30 rows in 1 range,")
    expect(page.get_by_text("Verdict: not judged")).to_be_visible()
    page.get_by_role("slider", name="Speed").press("ArrowLeft")
    page.get_by_role("button", name="Set the speed").click()
    expect(page.locator("#state .tag").first).to_have_text("ready")
    page.get_by_role("button", name="Cut over").click()
    expect(page.locator("#state .tag").first).to_have_text("live")

    finalize = page.get_by_role("button", name="Finalize")
    expect(finalize).to_be_disabled()
    page.get_by_label("Type spare to finalize").fill("spare")
    expect(finalize).to_be_enabled()
    page.get_by_label("Type spare to finalize").fill("")
    page.get_by_role("button", name="Roll back").click()
    expect(page.locator("#state .tag").first).to_have_text("rolled back")
    expect(page.get_by_text("What it left in the store was removed")).to_be_visible()
    expect(page.get_by_role("slider", name="Speed")).to_have_count(0)  # there is nothing left to throttle

    page.keyboard.type("gs")
    expect(page.get_by_role("heading", name="Other stores")).to_be_visible()
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="spare: v1 → v2")).to_be_visible()
