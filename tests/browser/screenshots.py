"""The pictures of docs/console.md, of a console that `make demo KEEP=1` left open.

    python -m tests.browser.screenshots http://127.0.0.1:8000 docs/console

They are of the upgrade that the demonstration judges.
"""

import shutil
import sys
from pathlib import Path

import httpx
from playwright.sync_api import ViewportSize, sync_playwright

_SIZE: ViewportSize = {"width": 1280, "height": 1_060}


def main(address: str, folder: Path) -> None:
    upgrades = httpx.get(f"{address}/v1/upgrades").raise_for_status().json()["items"]
    upgrade = min(upgrades, key=lambda each: each["id"])
    pages = {
        "gallery": f"/console/galleries/{upgrade['gallery']}",
        "upgrade": f"/console/upgrades/{upgrade['id']}",
        "compare": f"/console/upgrades/{upgrade['id']}/compare?kind=positive_flips",
        "report": f"/console/upgrades/{upgrade['id']}/report",
    }
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport=_SIZE)
        for name, path in pages.items():
            page.goto(f"{address}{path}", wait_until="networkidle")
            page.screenshot(path=folder / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"), Path(sys.argv[2]))
