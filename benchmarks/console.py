"""First paint of the console's pages with much to show: what Chromium says of its first contentful paint, and how much
of that it waited for the service, whose processor time is counted beside, with what it does in the background.

    python -m benchmarks.console --items 1000000

Half of the items are in one gallery, the others in equal parts in the rest. All upgrades but two ended, and are rows
alone: ten batches, six events, a report, an index build and five entries of the audit each. One of the two was worked
on until it had a report; the other has 1,000 batches. Each visit is a browser's first: it has no file of ours yet.
Prints a table as Markdown.
"""

import shutil
import statistics
from dataclasses import dataclass
from typing import Annotated

import typer
from playwright.sync_api import Browser, sync_playwright
from sqlalchemy import text

from benchmarks.processes import Api, api_process, processor_ms
from benchmarks.setting import (
    fill_gallery,
    machine,
    markdown,
    median_and_range,
    register_versions,
    vacuum,
    worker_with_servers,
)
from service.domain.upgrade.upgrades import get_upgrade
from service.domain.upgrade_state import State
from workers.app import WorkerParts
from workers.upgrading import advance_upgrade

_PORT = 18_531
_DIM = 8
_SIZE = {"width": 1280, "height": 900}
_TIMES = """() => {
  const [visit] = performance.getEntriesByType("navigation");
  const paint = performance.getEntriesByName("first-contentful-paint")[0].startTime;
  return [paint, visit.responseEnd - visit.requestStart, visit.decodedBodySize];
}"""
_IS_PAINTED = "() => performance.getEntriesByName('first-contentful-paint').length"

# What happened to every gallery, by rows: none of it is looked at by a worker again.
_ENDED = (
    "INSERT INTO generations (gallery_id, model_version_id, has_side_information, state)"
    " SELECT g.id, (SELECT max(id) FROM model_versions), true, 'dropped'"
    " FROM generate_series(1, :upgrades) n JOIN galleries g ON g.id = (SELECT min(id) FROM galleries) + n % :galleries",
    "INSERT INTO upgrades (gallery_id, from_generation_id, to_generation_id, legs, cutover, state, start_revision,"
    " batches_planned_at, finished_at) SELECT g.id, g.active_generation_id, e.id,"
    " jsonb_build_array(jsonb_build_object('generation', g.active_generation_id, 'transformations',"
    " jsonb_build_array((SELECT min(id) FROM transformations)))), 'manual', 'cancelled', 0, now(), now()"
    " FROM generations e JOIN galleries g ON g.id = e.gallery_id WHERE e.state = 'dropped'",
    "INSERT INTO upgrade_batches (upgrade_id, phase, first_item_id, last_item_id, items, rows, state, done_at)"
    " SELECT u.id, 'transforming', n, n, 1, 1, 'done', now() FROM upgrades u, generate_series(1, 10) n",
    "INSERT INTO upgrade_events (upgrade_id, state) SELECT u.id, s FROM upgrades u,"
    " unnest(ARRAY['planned', 'transforming', 'indexing', 'evaluating', 'ready', 'cancelled']) s",
    "INSERT INTO reports (upgrade_id, number, verdict, revision, evidence, content, seconds)"
    " SELECT id, 1, 'pass', 0, 1000, '{}', 1 FROM upgrades",
    "INSERT INTO jobs (kind, state, gallery_id, generation_id, upgrade_id, result, finished_at)"
    " SELECT 'index_build', 'succeeded', gallery_id, to_generation_id, id, '{\"rows\": 1000, \"seconds\": 1.0}', now()"
    " FROM upgrades",
    "INSERT INTO audit (id, at, name, tenant, action, subject_kind, subject, request_id, before, after, hash)"
    " SELECT (SELECT coalesce(max(id), 0) FROM audit) + row_number() OVER (), now(), '-', 'default',"
    " 'upgrade.cancelled', 'upgrade', u.id::text, 'r', '{\"state\": \"ready\"}', '{\"dropped_generation\": 1}',"
    " repeat('0', 64) FROM upgrades u, generate_series(1, 5)",
)
# Of other stores, 200 upgrades that ended, and one that has 1,000 ranges.
_EXTERNAL = (
    "INSERT INTO external_upgrades (store, side_name, from_version_id, to_version_id, transformation_id, description,"
    " batch_rows, cutover, speed, state, pass_number, cleaned_at)"
    " SELECT 'shop', 'side', v.before, v.after, (SELECT min(id) FROM transformations), CAST(:description AS jsonb),"
    " 1000, 'manual', 0, CASE WHEN n = 201 THEN 'transforming' ELSE 'cancelled' END, 1,"
    " CASE WHEN n < 201 THEN now() END"
    " FROM generate_series(1, 201) n, (SELECT min(id) AS before, max(id) AS after FROM model_versions) v",
    "INSERT INTO external_batches (upgrade_id, pass_number, number, after, upto, rows, state, done_at)"
    " SELECT u.id, 1, n, 'key-' || n, 'key-' || n + 1, 1000, CASE WHEN n % 2 = 0 THEN 'done' ELSE 'pending' END,"
    " CASE WHEN n % 2 = 0 THEN now() END FROM external_upgrades u, generate_series(1, 1000) n"
    " WHERE u.cleaned_at IS NULL",
    "INSERT INTO external_events (upgrade_id, state) SELECT id, 'planned' FROM external_upgrades",
)
# An upgrade that was just planned, as one that a worker has begun.
_BEGUN = (
    "UPDATE upgrades SET state = 'transforming', batches_planned_at = now() WHERE id = :upgrade",
    "INSERT INTO upgrade_batches (upgrade_id, phase, first_item_id, last_item_id, items, state, done_at)"
    " SELECT :upgrade, 'transforming', n, n, 1, CASE WHEN n % 2 = 0 THEN 'done' ELSE 'pending' END,"
    " CASE WHEN n % 2 = 0 THEN now() END FROM generate_series(1, 1000) n",
)
_DESCRIPTION = (
    '{"rows": 1000000, "embedding_dim": 8, "side_information_dim": 8, "metric": "cosine", "dtype": "float32",'
    ' "scales": false, "notices_writes": true, "warning": null}'
)


@dataclass(frozen=True)
class Visit:
    """A page's first paint after it was asked for, how much of that the service took, how large the page is, and the
    processor time of the service meanwhile."""

    paint_ms: float
    service_ms: float
    size_bytes: int
    processor_ms: float


def run(
    galleries: int = 300,
    upgrades: int = 10_000,
    items: Annotated[int, typer.Option(help="Of all galleries together, with vectors of eight numbers.")] = 1_000_000,
    visits: Annotated[int, typer.Option(help="Of each page, after one that is not counted.")] = 5,
) -> None:
    """Print each page's median and longest first paint."""
    with worker_with_servers() as parts:
        register_versions(parts, _DIM)
        fill(parts, galleries, upgrades, items)
        with api_process(parts, _PORT) as api:
            paths = pages(upgrade_to_ready(parts, api), begin_one(parts, api), api)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
                rows = [row_of(name, visit(browser, path, visits, api.pid)) for name, path in paths.items()]
                browser.close()
    typer.echo(f"{galleries:,} galleries, {upgrades:,} upgrades, {items:,} items; {visits} visits; {machine()}\n")
    columns = [
        "page",
        "first paint p50 ms",
        "max ms",
        "of that the service, p50 ms",
        "min to max ms",
        "its processor, p50 ms",
        "page KiB",
    ]
    typer.echo(markdown(columns, rows))


def fill(parts: WorkerParts, galleries: int, upgrades: int, items: int) -> None:
    """Make galleries with items, and upgrades by rows alone."""
    others = items // 2 // max(1, galleries - 1)
    for number in range(galleries):
        fill_gallery(parts, f"gallery-{number:03}", others if number else items - others * (galleries - 1), _DIM)
    with parts.database.session_scope() as session:
        for statement in _ENDED:
            given = {"upgrades": upgrades, "galleries": galleries} if ":upgrades" in statement else {}
            session.execute(text(statement), given)
        for statement in _EXTERNAL:
            session.execute(text(statement), {"description": _DESCRIPTION} if ":description" in statement else {})
    vacuum(parts)


def upgrade_to_ready(parts: WorkerParts, api: Api) -> int:
    """Upgrade the second gallery until it is ready, and judged; return the upgrade's id."""
    upgrade_id = _plan(api, "gallery-001", speed=1.0)
    while True:
        advance_upgrade(parts, upgrade_id)
        with parts.database.session_scope() as session:
            upgrade = get_upgrade(session, upgrade_id)
            if upgrade.state is State.FAILED:
                raise RuntimeError(upgrade.error)
            if upgrade.state is State.READY:
                return upgrade_id


def begin_one(parts: WorkerParts, api: Api) -> int:
    """Have the third gallery's upgrade rest among its batches; return the upgrade's id."""
    upgrade_id = _plan(api, "gallery-002", speed=0.0)
    with parts.database.session_scope() as session:
        for statement in _BEGUN:
            session.execute(text(statement), {"upgrade": upgrade_id})
    return upgrade_id


def _plan(api: Api, gallery: str, speed: float) -> int:
    answer = api.client.post(f"/v1/galleries/{gallery}/upgrades", json={"to_version": "v2", "speed": speed})
    upgrade_id: int = answer.raise_for_status().json()["id"]
    return upgrade_id


def pages(ready: int, begun: int, api: Api) -> dict[str, str]:
    """Return what is visited, by name."""
    (external,) = (
        each["id"]
        for each in api.client.get("/v1/external-upgrades?limit=1000").raise_for_status().json()["items"]
        if each["state"] == "transforming"
    )
    paths = {
        "galleries": "/",
        "a gallery, half of all items": "/console/galleries/gallery-000",
        "upgrades": "/console/upgrades",
        "an upgrade, 1,000 batches": f"/console/upgrades/{begun}",
        "a report": f"/console/upgrades/{ready}/report",
        "upgrades of other stores": "/console/external-upgrades",
        "one of another store, 1,000 ranges": f"/console/external-upgrades/{external}",
        "jobs": "/console/jobs",
        "versions": "/console/versions",
        "audit": "/console/audit",
    }
    return {name: f"http://127.0.0.1:{_PORT}{path}" for name, path in paths.items()}


def visit(browser: Browser, address: str, visits: int, pid: int) -> list[Visit]:
    """Look at a page of a process so often, each time as a browser that never was here; the first is not counted."""
    found = []
    for _ in range(1 + visits):
        context = browser.new_context(viewport=_SIZE)  # type: ignore[arg-type]  # a literal's type is wider
        page = context.new_page()
        before = processor_ms(pid)
        answer = page.goto(address)
        if answer is None or not answer.ok:
            raise RuntimeError(f"{address} did not answer.")
        page.wait_for_function(_IS_PAINTED)
        paint_ms, service_ms, size_bytes = page.evaluate(_TIMES)
        found.append(Visit(paint_ms, service_ms, size_bytes, processor_ms(pid) - before))
        context.close()
    return found[1:]


def row_of(name: str, visits: list[Visit]) -> list[str]:
    """Return a page's row of the table."""
    paints = [each.paint_ms for each in visits]
    of_service = median_and_range([each.service_ms for each in visits], ".0f")
    processor = f"{statistics.median(each.processor_ms for each in visits):.0f}"
    size = f"{visits[0].size_bytes / 1024:.0f}"
    return [name, f"{statistics.median(paints):.0f}", f"{max(paints):.0f}", *of_service, processor, size]


if __name__ == "__main__":
    typer.run(run)
