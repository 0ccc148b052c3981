"""The newcomer's path again, by the keyboard alone: from a new gallery over pictures, a search, an upgrade and blind
votes to the cutover and back."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Open
from tests.served import Served

pytestmark = pytest.mark.xdist_group("browser")

_MOST_TABS = 120
# What a screen reader would call the element that has the focus, as far as this console needs it.
_FOCUSED = """() => {
  const at = document.activeElement;
  return (at.labels?.[0]?.innerText ?? at.ariaLabel ?? at.innerText ?? "").split("\\n")[0].trim();
}"""


def tab_to(page: Page, name: str) -> None:
    """Move the focus on until it is on what has the name."""
    passed = []
    for _ in range(_MOST_TABS):
        page.keyboard.press("Tab")
        passed.append(page.evaluate(_FOCUSED))
        if passed[-1] == name:
            outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline != "none", f"the focus on {name!r} is not seen"
            return
    raise AssertionError(f"{name!r} is not among {passed}")


def choose_files(page: Page, files: list[Path]) -> None:
    """Choose files in the control that has the focus."""
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")
    chooser.value.set_files(files)


def test_the_whole_path_takes_no_pointer(opened: Open, filled: Served, network_files: Path) -> None:
    page = opened("/")
    # Chromium is told once to hand choosers over; told at each, it might hear of it after the key.
    page.on("filechooser", lambda _: None)
    keys = page.keyboard

    keys.press("?")
    expect(page.get_by_role("heading", name="Keys")).to_be_visible()
    keys.press("Escape")
    expect(page.get_by_role("heading", name="Keys")).to_be_hidden()

    tab_to(page, "Name")
    keys.type("keyed")
    tab_to(page, "Model version")
    keys.type("v1")
    tab_to(page, "Make the gallery")
    keys.press("Enter")
    expect(page.get_by_role("heading", name="No pictures yet")).to_be_visible()
    tab_to(page, "Pictures")
    choose_files(page, [network_files / f"{seed}.png" for seed in range(12)])
    expect(page.get_by_text("12 of 12: 12 created.")).to_be_visible()
    expect(page.locator("#items .picture")).to_have_count(12)  # the page was read again

    page.evaluate("document.activeElement.blur()")
    keys.press("/")
    expect(page.locator("[data-search]")).to_be_focused()
    choose_files(page, [network_files / "3.png"])
    expect(page.locator("#answer .picture").first).to_contain_text("3.png")

    tab_to(page, "Upgrade…")
    keys.press("Enter")
    expect(page.get_by_role("heading", name="Upgrade keyed")).to_be_visible()
    tab_to(page, "To the model version")
    keys.type("v2")
    tab_to(page, "Dry run")
    keys.press("Enter")
    expect(page.get_by_role("heading", name="What it would take")).to_be_visible()
    tab_to(page, "Start the upgrade to v2")
    keys.press("Enter")
    expect(page.get_by_role("button", name="Cut over")).to_be_visible()

    tab_to(page, "Before and after")
    keys.press("Enter")
    expect(page.get_by_role("heading", name="Before and after")).to_be_visible()
    tab_to(page, "Any items")
    keys.press("Enter")
    expect(page.locator("#query")).to_have_text("Any items: 1 of 12")
    keys.press("n")
    expect(page.locator("#query")).to_have_text("Any items: 2 of 12")
    keys.press("p")
    expect(page.locator("#query")).to_have_text("Any items: 1 of 12")
    tab_to(page, "Compare blind")
    keys.press("Enter")
    expect(page.get_by_role("heading", name="Which is better?")).to_be_visible()
    for key, votes in (("1", "1 vote so far."), ("2", "2 votes so far."), ("0", "3 votes so far.")):
        keys.press(key)
        expect(page.get_by_text(votes)).to_be_visible()

    keys.type("gu")
    expect(page.get_by_role("heading", name="Upgrades")).to_be_visible()
    keys.press("j")
    keys.press("Enter")
    expect(page.get_by_role("heading", name="keyed: v1 → v2")).to_be_visible()
    tab_to(page, "Cut over")
    keys.press("Enter")
    expect(page.locator("#state .tag").first).to_have_text("live")
    tab_to(page, "Roll back")
    keys.press("Enter")
    expect(page.locator("#state .tag").first).to_have_text("rolled back")
