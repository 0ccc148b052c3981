"""What is shown of many upgrades: the same as of each alone, for as many queries."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from random import Random

import pytest
from sqlalchemy.orm import Session

from service.db import Database
from service.domain.upgrade.progress import describe_upgrades, progress_of
from service.domain.upgrade.upgrades import list_upgrades
from service.domain.upgrade_state import State
from service.tables import Gallery, Generation, Job, ModelVersion, Upgrade, UpgradeBatch
from tests.statements import recorded_statements

CHANGED_AT = datetime.now(UTC)
ENDED = State.ROLLED_BACK


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    with database.session_scope() as session:
        yield session


def add_version(session: Session, name: str) -> int:
    version = ModelVersion(
        name=name,
        embedding_dim=2,
        normalize=False,
        preprocessing={},
        embedding_model_digest=name,
        embedding_model_kind="torchscript",
    )
    session.add(version)
    session.flush()
    return version.id


def add_gallery(session: Session, name: str) -> int:
    gallery = Gallery(name=name, metric="l2", dtype="float16", thumbnails=False)
    session.add(gallery)
    session.flush()
    return gallery.id


def add_upgrade(session: Session, gallery_id: int, state: State, speed: float = 1.0) -> Upgrade:
    """Add an upgrade whose state changed at a known time, from and to versions of its own."""
    count = session.query(ModelVersion).count()
    generations = [
        Generation(gallery_id=gallery_id, model_version_id=id_, has_side_information=False, state="complete")
        for id_ in (add_version(session, f"v{count}"), add_version(session, f"v{count + 1}"))
    ]
    session.add_all(generations)
    session.flush()
    upgrade = Upgrade(
        gallery_id=gallery_id,
        from_generation_id=generations[0].id,
        to_generation_id=generations[1].id,
        legs=[],
        cutover="manual",
        speed=speed,
        state=state,
        resume_state=State.READY if state is State.PAUSED else None,
        start_revision=0,
        updated_at=CHANGED_AT,
    )
    session.add(upgrade)
    session.flush()
    return upgrade


def add_batches(session: Session, upgrade: Upgrade, phase: str, done: list[tuple[int, float]], pending: int) -> None:
    """Add batches of so many items, done so many seconds after the state changed, and one that is not done."""
    batch = {"upgrade_id": upgrade.id, "phase": phase, "first_item_id": 1, "last_item_id": 1}
    for items, seconds in done:
        at = CHANGED_AT + timedelta(seconds=seconds)
        session.add(UpgradeBatch(**batch, items=items, state="done", done_at=at))
    session.add(UpgradeBatch(**batch, items=pending))
    session.flush()


def add_build(session: Session, upgrade: Upgrade, done: int, total: int, seconds: float | None = None) -> None:
    """Add a job that builds the upgrade's index; with `seconds`, one that has succeeded."""
    job = Job(kind="index_build", state="running", upgrade_id=upgrade.id, created_at=CHANGED_AT)
    job.updated_at = CHANGED_AT + timedelta(seconds=5)
    job.progress = {"done": done, "total": total}
    job.result = None if seconds is None else {"rows": total, "seconds": seconds}
    session.add(job)
    session.flush()


def add_different_upgrades(session: Session) -> list[Upgrade]:
    """Add an upgrade in every state and at several speeds, each with batches and builds drawn at random."""
    random, upgrades = Random(0), []
    for number, state in enumerate([*State, *State]):
        speed = random.choice([0.0, 0.5, 1.0])
        upgrade = add_upgrade(session, add_gallery(session, f"g{number}"), state, speed)
        for phase in ("transforming", "catching_up"):
            done = [(random.randint(1, 9), random.uniform(-5, 50)) for _ in range(random.choice([0, 1, 5, 6, 50]))]
            add_batches(session, upgrade, phase, done, pending=random.randint(1, 99))
        builds: list[list[float | None]] = [[], [None], [2.0], [None, 2.0], [2.0, None]]
        for seconds in random.choice(builds):
            add_build(session, upgrade, random.randint(0, 10), 10, seconds)
        upgrades.append(upgrade)
    return upgrades


@pytest.mark.parametrize("state", [State.TRANSFORMING, ENDED])
def test_a_list_of_twelve_upgrades_costs_as_many_statements_as_a_list_of_one(
    database: Database, session: Session, state: State
) -> None:
    gallery_ids = [add_gallery(session, name) for name in ("one", "twelve")]
    for gallery_id, count in zip(gallery_ids, (1, 12), strict=True):
        for number in range(count):
            upgrade = add_upgrade(session, gallery_id, ENDED if number else state)
            add_batches(session, upgrade, "transforming", [(5, 1.0), (5, 2.0)], pending=5)
            add_build(session, upgrade, done=3, total=10)
    session.expunge_all()

    with recorded_statements(database.engine) as for_one:
        one = describe_upgrades(session, list_upgrades(session, "one", 0, 20))
    session.expunge_all()
    with recorded_statements(database.engine) as for_twelve:
        twelve = describe_upgrades(session, list_upgrades(session, "twelve", 0, 20))

    assert (len(one), len(twelve)) == (1, 12)
    assert len(for_one) == len(for_twelve)


def test_many_upgrades_are_shown_as_each_is_alone(session: Session) -> None:
    upgrades = add_different_upgrades(session)

    together = describe_upgrades(session, upgrades)
    alone = [details for upgrade in upgrades for details in describe_upgrades(session, [upgrade])]

    assert together == alone
    assert [details.upgrade for details in together] == upgrades
    assert [details.gallery for details in together] == [f"g{number}" for number in range(len(upgrades))]
    assert [details.to_version for details in together] == [f"v{2 * number + 1}" for number in range(len(upgrades))]


def test_no_upgrades_have_no_details(session: Session) -> None:
    details = describe_upgrades(session, [])

    assert details == []


def test_a_rate_is_the_slope_of_the_last_batches_since_the_state_changed(session: Session) -> None:
    upgrade = add_upgrade(session, add_gallery(session, "g"), State.TRANSFORMING)
    before = [(1_000, -1.0)]
    slow, fast = [(1, float(second)) for second in range(1, 100)], [(10, 100.0 + second) for second in range(33)]
    add_batches(session, upgrade, "transforming", before + slow + fast, pending=1_000)

    phase = progress_of(session, [upgrade])[upgrade.id]["transforming"]

    assert (phase.done, phase.total) == (1_429, 2_429)
    assert phase.rate == pytest.approx(10)


@pytest.mark.parametrize(("speed", "rate"), [(1.0, 2.0), (0.5, None)])
def test_a_rate_of_few_batches_counts_from_the_change_and_only_at_full_speed(
    session: Session, speed: float, rate: float | None
) -> None:
    upgrade = add_upgrade(session, add_gallery(session, "g"), State.TRANSFORMING, speed)
    add_batches(session, upgrade, "transforming", [(4, 1.0), (4, 4.0)], pending=8)

    phase = progress_of(session, [upgrade])[upgrade.id]["transforming"]

    assert phase.rate == rate


def test_the_newest_build_is_the_one_that_is_shown(session: Session) -> None:
    upgrade = add_upgrade(session, add_gallery(session, "g"), State.INDEXING)
    add_build(session, upgrade, done=10, total=10, seconds=2.0)
    add_build(session, upgrade, done=3, total=20)

    phase = progress_of(session, [upgrade])[upgrade.id]["indexing"]

    assert (phase.done, phase.total, phase.rate) == (3, 20, 0.6)


@pytest.mark.parametrize(("state", "speed"), [(State.PAUSED, 1.0), (State.FAILED, 1.0), (State.TRANSFORMING, 0.0)])
def test_what_rests_has_a_rate_but_no_estimate(session: Session, state: State, speed: float) -> None:
    upgrade = add_upgrade(session, add_gallery(session, "g"), state, speed)
    add_batches(session, upgrade, "transforming", [(1, float(second)) for second in range(1, 7)], pending=8)

    phase = progress_of(session, [upgrade])[upgrade.id]["transforming"]

    assert phase.rate == pytest.approx(1)
    assert phase.eta_seconds is None
