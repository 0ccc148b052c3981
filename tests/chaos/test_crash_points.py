"""Death at every named point between the engine's numbered steps: the sweep, or the repeated request, finishes or
undoes the work, and every promise holds on the way and at the end."""

import os
import re
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select, text

from service.app import create_app
from service.domain.guardrails import Bake
from service.domain.judging.baked_queries import Compared, note_compared
from service.domain.upgrade.cutover import request_cutover
from service.domain.upgrade.upgrades import get_upgrade
from service.domain.upgrade_state import State
from service.embedded.processes import spawn
from service.embedded.supervisor import worker_command
from service.settings import Settings
from service.tables import Report
from service.vectors.rows import EmbeddingRows
from tests.chaos import dying, test_backfill_deaths
from tests.chaos.small_gallery import SmallGallery, SweptWorker
from tests.chaos.test_erasure_deaths import ERASURE_POINTS
from tests.chaos.test_ingest_deaths import INGEST_POINTS
from tests.conftest import Servers, fresh_database, small_settings
from tests.external_upgrades import LATER_POINTS, SWITCH_POINTS, WORKER_POINTS
from tests.integration.test_audit import AUDIT_POINT
from tests.networks import image_bytes
from tests.rows import all_rows
from tests.scenario import register_transformation, register_version, start_upgrade, state_of
from tests.served import free_port, wait_for
from tests.store_contract import POINTS as STORE_POINTS

# Who dies: a worker that advances an upgrade from its plan (`advance`), that was asked to cut it over (`switch`), or
# that finds that a live one breaks a guardrail (`guard`), or
# an API that was asked for an action; at which point; in which state that leaves the upgrade, and in which one it ends.
DEATHS = """
step      point              left          ends
advance   batch.claimed      transforming  ready
advance   batch.transformed  transforming  ready
advance   batch.staged       transforming  ready
advance   batch.written      transforming  ready
advance   batch.committed    transforming  ready
advance   index.streamed     indexing      ready
advance   index.built        indexing      ready
advance   index.written      indexing      ready
advance   index.synced       indexing      ready
advance   index.renamed      indexing      ready
advance   index.published    indexing      ready
advance   index.named        indexing      ready
advance   evaluation.measured evaluating   ready
advance   evaluation.recorded ready        ready
switch    switch.locked      ready         live
switch    batch.transformed  ready         live
switch    batch.staged       ready         live
switch    batch.written      ready         live
switch    cutover.caught_up  ready         live
switch    switch.moved       ready         live
switch    switch.committed   live          live
cutover   switch.committed   live          live
rollback  switch.locked      live          rolled_back
rollback  switch.moved       live          rolled_back
rollback  switch.committed   rolled_back   rolled_back
rollback  removal.table      rolled_back   rolled_back
rollback  removal.files      rolled_back   rolled_back
rollback  removal.done       rolled_back   rolled_back
guard     switch.locked      live          rolled_back
guard     bake.ended         live          rolled_back
guard     switch.moved       live          rolled_back
guard     removal.table      rolled_back   rolled_back
guard     removal.files      rolled_back   rolled_back
guard     removal.done       rolled_back   rolled_back
finalize  finalize.locked    live          finalized
finalize  switch.committed   finalized     finalized
finalize  removal.table      finalized     finalized
finalize  removal.files      finalized     finalized
finalize  removal.done       finalized     finalized
cancel    switch.committed   cancelled     cancelled
cancel    removal.table      cancelled     cancelled
cancel    removal.files      cancelled     cancelled
cancel    removal.done       cancelled     cancelled
"""

_, *ROWS = (tuple(line.split()) for line in DEATHS.strip().splitlines())
IN_TRANSFORMING = [row[1] for row in ROWS if row[0] == "advance"]
STEPS: dict[str, tuple[State, dying.Step]] = {
    "advance": (State.PLANNED, dying.advance),
    "switch": (State.READY, dying.advance),
    "guard": (State.LIVE, dying.guard),
    "cutover": (State.READY, dying.cutover),
    "rollback": (State.LIVE, dying.rollback),
    "finalize": (State.LIVE, dying.finalize),
    "cancel": (State.READY, dying.cancel),
}
SMOOTHING_POINTS = ("batch.smoothed",)
OVERRIDE = "we want it so"
DEAD = 137
LEASE_SECONDS = 0.3

pytestmark = pytest.mark.xdist_group("deaths")
_numbers = count(1)


@pytest.fixture(scope="module")
def settings(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    with fresh_database(servers) as url:
        yield small_settings(servers, url, tmp_path_factory.mktemp("data")).model_copy(
            update={"lease_seconds": LEASE_SECONDS, "retry_base_seconds": 0.0}
        )


@pytest.fixture(scope="module")
def client(settings: Settings) -> Iterator[TestClient]:
    """An API that lives on while others die."""
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        for version in ("v1", "v2"):
            register_version(client, version)
        register_transformation(client, "v1", "v2")
        yield client


@pytest.fixture(scope="module")
def worker(settings: Settings) -> Iterator[SweptWorker]:
    worker = SweptWorker(settings)
    yield worker
    worker.parts.database.engine.dispose()


@pytest.fixture
def gallery(client: TestClient, worker: SweptWorker) -> Iterator[SmallGallery]:
    """A gallery whose upgrade is planned, alone in its database."""
    gallery = SmallGallery(client, worker, f"g{next(_numbers)}")
    yield gallery
    gallery.remove()


def bring_to(gallery: SmallGallery, state: State) -> None:
    if state in (State.READY, State.LIVE):
        gallery.sweep_until(State.READY)
    if state is State.LIVE:
        ask_for_cutover(gallery)
        gallery.sweep_until(State.LIVE)


def ask_for_cutover(gallery: SmallGallery) -> None:
    with gallery.worker.parts.database.session_scope() as session:
        request_cutover(session, gallery.upgrade_id, OVERRIDE)


def give_reference(gallery: SmallGallery) -> None:
    """Give the image again of an item that is not written later."""
    files = [("files", ("image-2.png", image_bytes(2), "image/png"))]
    assert gallery.client.post(f"/v1/upgrades/{gallery.upgrade_id}/references", files=files).is_success


def check_judgement(gallery: SmallGallery, step: str) -> None:
    """The reference is there, one report was made of it, and a decision past it says why."""
    with gallery.worker.parts.database.session_scope() as session:
        upgrade = get_upgrade(session, gallery.upgrade_id)
        count = text("SELECT count(*) FROM reference_pairs WHERE gallery_id = :id")
        assert session.scalar(count, {"id": upgrade.gallery_id}) == 1
        (report,) = session.scalars(select(Report).where(Report.upgrade_id == upgrade.id))
        assert report.number == 1
        assert report.evidence >= 2  # an image has come since the upgrade began, and more may have before it was judged
        if step in ("switch", "rollback", "guard", "finalize"):
            assert upgrade.decision is not None
            assert (upgrade.decision.report, upgrade.decision.reason) == (1, OVERRIDE)


def break_guardrail(gallery: SmallGallery) -> None:
    """Let the live upgrade be baked, and all that is asked of both generations fail by the new one alone."""
    baked = Bake(60, least_queries=20)
    with gallery.worker.parts.database.session_scope() as session:
        upgrade = get_upgrade(session, gallery.upgrade_id)
        upgrade.bake = baked
        session.flush()
        hour = {"id": upgrade.id}
        session.execute(text("UPDATE upgrades SET bake_ends_at = now() + interval '1 hour' WHERE id = :id"), hour)
        for _ in range(20):
            note_compared(session, upgrade.id, Compared(False, True, 0.01, 0.01, 10, 0, None))


def check_rolled_back_by_its_guardrails(gallery: SmallGallery) -> None:
    """Once, with the figures, of which nothing else is left."""
    bake = gallery.client.get(f"/v1/upgrades/{gallery.upgrade_id}").json()["bake"]
    assert bake["result"]["outcome"] == "rolled_back"
    assert re.match(r"Rolled back by its guardrails, on 2[01] queries", bake["result"]["reason"]), bake["result"]
    with gallery.worker.parts.database.session_scope() as session:
        of = {"id": gallery.upgrade_id}
        states = session.scalars(text("SELECT state FROM upgrade_events WHERE upgrade_id = :id AND note IS NULL"), of)
        assert list(states).count("rolled_back") == 1
        assert session.scalar(text("SELECT count(*) FROM baked_queries WHERE upgrade_id = :id"), of) == 0


def die(gallery: SmallGallery, settings: Settings, step: str, point: str) -> None:
    """Let a process take the step and die at the point."""
    start, target = STEPS[step]
    bring_to(gallery, start)
    if step == "switch":
        gallery.import_late()
        ask_for_cutover(gallery)
    elif step == "guard":
        break_guardrail(gallery)
    elif point == "batch.staged":
        gallery.import_over_encoded()
    meanwhile = gallery.worker.sweep if step == "cutover" else int
    armed = settings.model_copy(update={"crash_at": point})
    assert dying.exit_code_of(target, armed, gallery.upgrade_id, meanwhile) == DEAD


@pytest.mark.chaos
@pytest.mark.parametrize(("step", "point", "left", "ends"), ROWS)
def test_a_death_at_any_point_costs_nothing(
    gallery: SmallGallery, settings: Settings, step: str, point: str, left: str, ends: str
) -> None:
    give_reference(gallery)
    die(gallery, settings, step, point)

    assert gallery.state is State(left)
    gallery.check_answers("v2" if left in ("live", "finalized") else "v1")
    gallery.write()
    is_workers = step in ("advance", "switch", "guard")
    swept = State(ends if is_workers else left)
    gallery.sweep_until(swept)
    gallery.check(swept)
    if step == "guard":
        check_rolled_back_by_its_guardrails(gallery)
    elif step != "advance":
        assert gallery.post("cutover" if step == "switch" else step) == (200, ends)
        gallery.check(State(ends))
    check_judgement(gallery, step)


@pytest.mark.chaos
@pytest.mark.parametrize("point", IN_TRANSFORMING)
def test_an_upgrade_whose_worker_died_can_be_cancelled_and_leaves_nothing(
    gallery: SmallGallery, settings: Settings, point: str
) -> None:
    die(gallery, settings, "advance", point)

    assert gallery.post("cancel") == (200, "cancelled")

    gallery.check(State.CANCELLED)
    gallery.upgrade_id = start_upgrade(gallery.client, "v2", gallery.name)
    assert gallery.state is State.PLANNED


@pytest.mark.chaos
def test_a_batch_that_kills_every_worker_fails_the_upgrade_and_a_retry_goes_on(
    gallery: SmallGallery, settings: Settings
) -> None:
    for _ in range(settings.max_batch_attempts):
        expire_leases(gallery)
        die(gallery, settings, "advance", "batch.transformed")
    expire_leases(gallery)

    gallery.sweep_until(State.FAILED)

    failed = gallery.client.get(f"/v1/upgrades/{gallery.upgrade_id}").json()
    assert re.fullmatch(r"Batch \d+ was tried 5 times and never finished; its last error: .*died\. .*", failed["error"])
    gallery.check_answers("v1")
    assert gallery.post("retry") == (200, "transforming")
    gallery.sweep_until(State.READY)
    gallery.check(State.READY)


def expire_leases(gallery: SmallGallery) -> None:
    with gallery.worker.parts.database.session_scope() as session:
        session.execute(text("UPDATE upgrade_batches SET lease_expires_at = now() - interval '1 s'"))


def smoothing_gallery(client: TestClient, worker: SweptWorker) -> SmallGallery:
    """Return a gallery whose upgrade is planned, and smooths."""
    gallery = SmallGallery(client, worker, f"g{next(_numbers)}")
    smoothing = {"smoothing": '{"share": 0.5, "neighbors": 3}', "id": gallery.upgrade_id}
    with worker.parts.database.session_scope() as session:
        session.execute(text("UPDATE upgrades SET smoothing = CAST(:smoothing AS jsonb) WHERE id = :id"), smoothing)
    return gallery


def rows_when_ready(gallery: SmallGallery) -> EmbeddingRows:
    gallery.sweep_until(State.READY)
    _, rows = all_rows(gallery.worker.parts, gallery.upgrade_id)
    gallery.check_answers("v1")
    gallery.remove()
    return rows


@pytest.mark.chaos
@pytest.mark.parametrize("point", SMOOTHING_POINTS)
@pytest.mark.parametrize("deaths", [1, 3])
def test_a_death_while_rows_are_smoothed_leaves_the_rows_that_a_life_leaves(
    client: TestClient, worker: SweptWorker, settings: Settings, point: str, deaths: int
) -> None:
    expected = rows_when_ready(smoothing_gallery(client, worker))
    gallery = smoothing_gallery(client, worker)
    armed = settings.model_copy(update={"crash_at": point, "batch_items": 5, "batches_at_once": 1})

    for _ in range(deaths):
        expire_leases(gallery)
        assert dying.exit_code_of(dying.advance, armed, gallery.upgrade_id, int) == DEAD
        assert gallery.state is State.SMOOTHING

    expire_leases(gallery)
    found = rows_when_ready(gallery)
    assert (found.embedding == expected.embedding).all()
    assert (found.origin == expected.origin).all()


@pytest.mark.chaos
def test_a_worker_is_armed_by_its_environment(gallery: SmallGallery, settings: Settings, tmp_path: Path) -> None:
    armed = settings.model_copy(update={"crash_at": "batch.transformed", "sweep_every_seconds": 0.1})

    process = spawn(worker_command(), log_path=tmp_path / "log", environment={**os.environ, **armed.environment()})

    assert process.wait(60) == DEAD
    gallery.sweep_until(State.READY)
    gallery.check(State.READY)


@pytest.mark.chaos
def test_an_api_is_armed_by_its_environment(gallery: SmallGallery, settings: Settings, tmp_path: Path) -> None:
    armed = settings.model_copy(update={"crash_at": "removal.files"})
    port = free_port()
    command = [sys.executable, "-m", "service.cli", "api", "--port", str(port)]
    process = spawn(command, log_path=tmp_path / "log", environment={**os.environ, **armed.environment()})
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            wait_for(lambda: answers(client), seconds=60)
            with pytest.raises(httpx.RemoteProtocolError):
                client.post(f"/v1/upgrades/{gallery.upgrade_id}/cancel")
        assert process.wait(60) == DEAD
    finally:
        process.kill()
    assert state_of(gallery.client, gallery.upgrade_id) == "cancelled"
    gallery.worker.sweep()
    gallery.check(State.CANCELLED)


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def test_every_crash_point_of_the_code_is_died_at_and_listed_in_its_module() -> None:
    root = Path(__file__).parents[2]
    sources = {path: path.read_text() for folder in ("service", "workers") for path in (root / folder).rglob("*.py")}
    del sources[root / "service" / "crash_points.py"]
    calls = [name for source in sources.values() for name in re.findall(r"crash_point\((.*?)\)", source)]
    found = {name.strip('"') for name in calls}
    docstrings = [source.split('"""')[1] for source in sources.values() if source.startswith('"""')]
    listed = {name for docstring in docstrings for name in re.findall(r"`([a-z]+(?:\.[a-z_]+)+)`", docstring)}

    others = {*test_backfill_deaths.DEATHS, *INGEST_POINTS, *ERASURE_POINTS, *SMOOTHING_POINTS, AUDIT_POINT}
    others |= {
        *WORKER_POINTS,
        *SWITCH_POINTS,
        *LATER_POINTS,
        *(point for each in STORE_POINTS.values() for point in each),
    }
    assert found == {point for _, point, *_ in ROWS} | others
    assert found <= listed
