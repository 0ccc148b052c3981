"""Pages of others, in a real browser, against a real service: on 127.0.0.1 without keys, and with a session of the
console that the same browser has. They send forms, fetches and beacons, embed what they can, and ask under a name of
their own that leads to this machine. Nothing changes, and nothing is read.

    python -m pytest tests/browser/test_foreign_pages.py
"""

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page
from prometheus_client.parser import text_string_to_metric_families

from tests.browser.conftest import Open
from tests.keys import ADMIN_KEY, bearer
from tests.scenario import (
    create_gallery,
    post_images,
    register_transformation,
    register_version,
    start_upgrade,
    state_of,
)
from tests.served import Served, wait_for

pytestmark = pytest.mark.xdist_group("browser")

_GALLERY = "attacked"
# Each as a page would send it; the upgrade is ready, so that its cutover would be one.
_CHANGES: list[tuple[str, str, str]] = [
    ("POST", "/v1/upgrades/{upgrade}/cutover", "{}"),
    ("POST", "/v1/upgrades/{upgrade}/cancel", ""),
    ("POST", "/v1/upgrades/{upgrade}/rollback?accept_loss=true", ""),
    ("POST", "/v1/galleries", '{"name": "planted", "model_version": "v1"}'),
    ("POST", f"/v1/galleries/{_GALLERY}/items/delete", '{"ids": ["image-0.png"]}'),
    ("POST", "/v1/keys", '{"name": "planted", "scopes": ["admin"]}'),
    ("POST", "/v1/erasures", f'{{"gallery": "{_GALLERY}"}}'),
    ("POST", "/v1/session", f'{{"key": "{ADMIN_KEY}"}}'),
    ("DELETE", "/v1/session", ""),
    ("DELETE", f"/v1/galleries/{_GALLERY}", ""),
    ("PATCH", f"/v1/galleries/{_GALLERY}", '{"task": "class"}'),
]
_UPLOAD = f"/v1/galleries/{_GALLERY}/images"
_READS = ["/v1/galleries", "/v1/audit", f"/v1/galleries/{_GALLERY}/items", "/"]
_THUMBNAIL = f"/v1/galleries/{_GALLERY}/items/image-0.png/thumbnail"

# Sends each POST as each kind of form, and an upload; returns how many that were.
_FORMS = """async ([base, changes, upload]) => {
    const sent = async form => {
        const frame = document.createElement("iframe");
        frame.name = form.target = "frame" + Math.random();
        document.body.append(frame, form);
        const answered = new Promise(done => frame.addEventListener("load", done));
        form.submit();
        await answered;
    };
    const made = (path, enctype) =>
        Object.assign(document.createElement("form"), {method: "post", action: base + path, enctype});
    let count = 0;
    for (const [method, path, body] of changes) if (method === "POST") {
        for (const kind of ["application/x-www-form-urlencoded", "multipart/form-data", "text/plain"]) {
            const form = made(path, kind);
            // As text/plain a field is sent as `name=value`: JSON, but for the "=".
            const name = body.slice(0, -1) || "a", value = body.slice(-1);
            form.append(Object.assign(document.createElement("input"), {name, value}));
            await sent(form);
            count += 1;
        }
    }
    const form = made(upload, "multipart/form-data"), files = new DataTransfer();
    files.items.add(new File([new Uint8Array([1, 2, 3])], "planted.png", {type: "image/png"}));
    form.append(Object.assign(document.createElement("input"), {type: "file", name: "files", files: files.files}));
    await sent(form);
    return count + 1;
}"""
# Sends each change in each way that a script has; returns the answers that it could read.
_FETCHES = """async ([base, changes]) => {
    const kinds = [
        {mode: "no-cors", headers: {"Content-Type": "text/plain"}},
        {mode: "cors", headers: {"Content-Type": "text/plain"}},
        {mode: "cors", headers: {"Content-Type": "application/json", "X-Requested-With": "console"}},
    ];
    const read = [];
    for (const [method, path, body] of changes) {
        for (const kind of kinds) {
            if (kind.mode === "no-cors" && method !== "POST") continue;
            try {
                const options = {method, credentials: "include", body: body || undefined, ...kind};
                const answer = await fetch(base + path, options);
                if (answer.type !== "opaque") read.push([method, path, answer.status, await answer.text()]);
            } catch {}
        }
        if (method === "POST") navigator.sendBeacon(base + path, new Blob([body], {type: "text/plain"}));
    }
    return read;
}"""
# Returns what of the answers a page can read or show.
_READ = """async ([base, paths, picture]) => {
    const read = [];
    for (const path of paths) {
        try { read.push([path, await (await fetch(base + path, {credentials: "include"})).text()]); } catch {}
    }
    const embedded = (name, src) => new Promise(done => {
        const tag = Object.assign(document.createElement(name), {src: base + src});
        tag.addEventListener("load", () => done(tag));
        tag.addEventListener("error", () => done(null));
        document.body.append(tag);
    });
    if (await embedded("img", picture)) read.push("a picture");
    if (await embedded("script", "/v1/galleries")) read.push("a script");
    const frame = await embedded("iframe", "/");
    try { if (frame.contentDocument.body.innerText) read.push("a frame"); } catch {}
    const stream = new EventSource(base + "/v1/jobs/1/events", {withCredentials: true});
    const opened = await new Promise(done => { stream.onopen = () => done(true); stream.onerror = () => done(false); });
    if (opened) read.push("a stream");
    stream.close();
    return read;
}"""
# Sends all changes and reads to where the page is from; returns the codes of the answers.
_ASKED = """async ([changes, reads]) => {
    const codes = new Set(), headers = {"Content-Type": "application/json", "X-Requested-With": "console"};
    for (const [method, path, body] of [...changes, ...reads.map(path => ["GET", path, ""])])
        codes.add((await fetch(path, {method, headers, body: body || undefined})).status);
    return [...codes];
}"""


@dataclass
class Attacked:
    """A service with a gallery and an upgrade that is ready, a client that may look at all of it, and a browser that
    may do everything there, by its session where keys are needed."""

    service: Served
    upgrade: int
    context: BrowserContext

    @property
    def client(self) -> httpx.Client:
        return self.service.client

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.service.port}"

    @property
    def changes(self) -> list[tuple[str, str, str]]:
        return [(method, path.format(upgrade=self.upgrade), body) for method, path, body in _CHANGES]

    def seen(self) -> list[Any]:
        """Return all that a change would change."""
        paths = ("galleries", f"galleries/{_GALLERY}", f"galleries/{_GALLERY}/items", "upgrades", "jobs", "audit")
        found = [self.client.get(f"/v1/{path}").raise_for_status().json() for path in paths]
        return [*found, [key["id"] for key in self.client.get("/v1/keys").json()["items"]]]

    def answers(self) -> Counter[tuple[str, str]]:
        """Return how often a request for a change was answered how, as the service has counted: a browser does not say
        of a page of another origin. By method and status."""
        families = text_string_to_metric_families(self.client.get("/metrics").raise_for_status().text)
        (requests,) = (family for family in families if family.name == "http_requests")
        found: Counter[tuple[str, str]] = Counter()
        for sample in requests.samples:
            if sample.labels["method"] in ("POST", "PATCH", "DELETE"):
                found[sample.labels["method"], sample.labels["status"]] += int(sample.value)
        return found

    def page_at(self, address: str) -> Page:
        page = self.context.new_page()
        page.goto(address)
        return page

    def is_still_in(self) -> bool:
        """Whether the browser may still do what it might."""
        page = self.page_at(f"{self.base}/console/keys")
        found = page.url.endswith("/console/keys") and page.locator("h1").inner_text() == "Keys"
        page.close()
        return found


class _Blank(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>of others</title><body>")

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def others_port() -> Iterator[int]:
    """The port of a server whose pages are blank."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Blank) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service that needs keys, with what the service without has."""
    service = Served(tmp_path_factory.mktemp("guarded") / "data", auth="on", admin_key=ADMIN_KEY)
    service.client.headers.update(bearer(ADMIN_KEY))
    service.start()
    for version in ("v1", "v2"):
        register_version(service.client, version)
    register_transformation(service.client, "v1", "v2")
    yield service
    assert service.stop() == 0


@pytest.fixture(scope="module", params=["without keys", "with a session"])
def attacked(request: pytest.FixtureRequest, browser: Browser) -> Iterator[Attacked]:
    service: Served = request.getfixturevalue("filled" if request.param == "without keys" else "guarded")
    create_gallery(service.client, _GALLERY)
    post_images(service.client, range(2), _GALLERY)
    upgrade = start_upgrade(service.client, "v2", _GALLERY)
    wait_for(lambda: state_of(service.client, upgrade) == "ready", seconds=60)
    context = browser.new_context()
    found = Attacked(service, upgrade, context)
    if request.param == "with a session":
        page = found.page_at(f"{found.base}/console/keys")
        page.get_by_role("textbox", name="Key").fill(ADMIN_KEY)
        page.get_by_role("button", name="Log in").click()
        page.wait_for_url("**/console/keys")
        (cookie,) = context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/")
        page.close()
    yield found
    context.close()
    assert service.client.post(f"/v1/upgrades/{upgrade}/cancel").is_success
    assert service.client.delete(f"/v1/galleries/{_GALLERY}").is_success


@pytest.fixture(params=["evil.example", "127.0.0.1"])
def foreign(request: pytest.FixtureRequest, attacked: Attacked, others_port: int) -> Iterator[Page]:
    """A page of another site, and one of another port of this machine, which is the same site: its requests have the
    session's cookie."""
    page = attacked.page_at(f"http://{request.param}:{others_port}/")
    yield page
    page.close()


def test_no_form_of_others_changes_anything(attacked: Attacked, foreign: Page) -> None:
    before, answers = attacked.seen(), attacked.answers()

    count = foreign.evaluate(_FORMS, [attacked.base, attacked.changes, _UPLOAD])

    assert attacked.answers() - answers == {("POST", "403"): count}
    assert attacked.seen() == before
    assert attacked.is_still_in()


def test_no_script_of_others_changes_anything_or_reads_an_answer(attacked: Attacked, foreign: Page) -> None:
    before, answers = attacked.seen(), attacked.answers()

    read = foreign.evaluate(_FETCHES, [attacked.base, attacked.changes])
    # Two fetches of each and a beacon need not be asked for; the others, and other methods, a browser does not send.
    wait_for(lambda: (attacked.answers() - answers).total() >= 3 * sum(each[0] == "POST" for each in _CHANGES))

    assert read == []
    assert (attacked.answers() - answers).keys() == {("POST", "403")}
    assert attacked.seen() == before
    assert attacked.is_still_in()


def test_no_page_of_others_reads_or_embeds_anything(attacked: Attacked, foreign: Page) -> None:
    assert foreign.evaluate(_READ, [attacked.base, _READS, _THUMBNAIL]) == []


def test_a_name_of_others_that_leads_here_is_answered_nothing(attacked: Attacked, browser: Browser) -> None:
    before = attacked.seen()
    # Its page came from a server of theirs, before the name led here: so without the policy of our refusal.
    context = browser.new_context(bypass_csp=True)
    page = context.new_page()
    first = page.goto(f"http://rebound.example:{attacked.service.port}/")

    codes = page.evaluate(_ASKED, [attacked.changes, _READS])
    context.close()

    assert first is not None
    assert (first.status, codes) == (421, [421])
    assert attacked.seen() == before


def test_our_own_page_may_do_what_those_tried(attacked: Attacked) -> None:
    page = attacked.page_at(f"{attacked.base}/console/galleries/{_GALLERY}")

    codes = page.evaluate(_ASKED, [attacked.changes[-1:], _READS])
    page.close()

    assert codes == [200]
    assert attacked.client.get(f"/v1/galleries/{_GALLERY}").json()["task"] == "class"


def test_the_pages_of_the_api_work_under_their_policy(opened: Open) -> None:
    page = opened("/docs")

    page.locator(".opblock").first.wait_for()
    assert page.locator(".opblock").count() > 100
