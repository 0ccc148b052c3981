"""What a user does to an upgrade that changes which generation answers, or which there are.

Each is answered after the fact: when this process answers by the generation that is active now, and when what was given
up is gone, rows and index. A worker does a cutover, because the last remainder may need h; whoever asked waits for it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from service.crash_points import crash_point
from service.db import Database
from service.domain.indexes.engine import NO_SMOOTHING, IndexEngine, SmoothingNotPossible
from service.domain.indexes.removal import remove_dropped
from service.domain.judging.reports import check_verdict
from service.domain.upgrade import cutover
from service.domain.upgrade.dry_run import DryRun, Networks, dry_run
from service.domain.upgrade.guarding import guard_bake
from service.domain.upgrade.planning import WantedUpgrade, plan_upgrade
from service.domain.upgrade.progress import UpgradeDetails, UpgradeNews, describe_upgrades, news_of
from service.domain.upgrade.trials import is_baked
from service.domain.upgrade.upgrades import cancel_upgrade, get_upgrade
from service.domain.upgrade.work_ahead import work_ahead
from service.domain.upgrade_state import State
from service.errors import Conflict, Unavailable
from service.identity import acting_for, current
from service.index.replica import Replicas
from service.queue import ADVANCE_UPGRADE, send_after_commit
from service.settings import Settings
from service.tables import Upgrade

_POLL_SECONDS = 0.05


class CutoverRefused(Conflict):
    """The worker found a reason why the generation cannot go live."""


class NoWorkerAnswered(Unavailable):
    """No worker cut over in time; nothing has changed."""


class NotSwitched(Unavailable):
    """The upgrade is live, and this process does not answer by its generation yet."""


# Why a cutover is refused beyond what `cutover` and the table of states say; a worker's own sentence goes before.
_NOT_READY_ANY_MORE = "The upgrade is {state} now, and its cutover is not asked for any more."
_NO_WORKER = (
    "No worker cut the upgrade over within {seconds:.0f} s, and the request is withdrawn: ask again when a worker is"
    " free. {ahead}"
)


@dataclass(frozen=True)
class UpgradeActions:
    """The actions, for the requests of one API process."""

    database: Database
    engine: IndexEngine
    replicas: Replicas
    settings: Settings
    make_networks: Callable[[], Networks]  # for one dry run, and given up after it

    def described(self, read: Callable[[Session], Sequence[Upgrade]]) -> list[UpgradeDetails]:
        """Return the details of the upgrades that `read` gives, by id; of one that is live, once queries here are
        answered by its generation. Raises `NotSwitched` (503), and what `read` raises."""
        with self.database.session_scope() as session:
            described = describe_upgrades(session, read(session))
        for details in described:
            self._wait_until_switched(details.upgrade)
        return described

    def news(self, upgrade_id: int) -> UpgradeNews:
        """Return what happened to an upgrade; only its progress, while it is live and queries here are yet to be
        answered by its generation."""
        with self.database.session_scope(snapshot=True) as session:
            upgrade, news = get_upgrade(session, upgrade_id), news_of(session, upgrade_id)
        try:
            self._wait_until_switched(upgrade)
        except NotSwitched:
            return UpgradeNews([], news.progress, ended=False)
        return news

    def _wait_until_switched(self, upgrade: Upgrade) -> None:
        if upgrade.state is State.LIVE and not self.replicas.answers_by(upgrade.gallery_id, upgrade.to_generation_id):
            raise NotSwitched(f"The index of generation {upgrade.to_generation_id} is still being loaded; ask again.")

    def plan(self, wanted: WantedUpgrade) -> UpgradeDetails | DryRun:
        """Begin an upgrade, or say what it would take. Raises what `plan_upgrade` does, and
        `SmoothingNotPossible` (409)."""
        if wanted.smoothing is not None and not self.engine.can_smooth:
            raise SmoothingNotPossible(NO_SMOOTHING)
        if wanted.dry_run:
            return dry_run(self.database, self.make_networks(), wanted)
        (details,) = self.described(lambda session: [plan_upgrade(session, self.settings, wanted)])
        return details

    def cancel(self, upgrade_id: int) -> None:
        """Give up an upgrade that is not live."""
        self._give_up_a_generation(upgrade_id, cancel_upgrade)

    def cut_over(self, upgrade_id: int, override: str | None = None) -> None:
        """Have a worker make a ready upgrade live; `override` is the reason to do so past gates that failed.

        Raises `IllegalTransition` (409) when it is not ready, `GatesHold` (409) when a gate failed, `CutoverRefused`
        (409) with the worker's sentence, and `NoWorkerAnswered` (503), after which the request is withdrawn.
        """
        with self.database.session_scope() as session:
            cutover.request_cutover(session, upgrade_id, override)
            send_after_commit(session, ADVANCE_UPGRADE, upgrade_id)
        self._wait_until_live(upgrade_id)
        self._act(upgrade_id, get_upgrade)

    def roll_back(self, upgrade_id: int, *, accept_loss: bool) -> None:
        """Make the previous generation active again, and drop the next one. Raises what `cutover.roll_back` does."""
        self._give_up_a_generation(
            upgrade_id, lambda session, id_: cutover.roll_back(session, id_, accept_loss=accept_loss)
        )

    def finalize(self, upgrade_id: int) -> None:
        """Drop the previous generation of a live upgrade, after a look at its bake: no worker may have looked since its
        minutes were over, and what broke is rolled back. Raises what `cutover.finalize` does."""
        with self.database.session_scope() as session:
            baked = is_baked(get_upgrade(session, upgrade_id))
        if baked:
            with acting_for(current.get().tenant):
                guard_bake(self.database, upgrade_id)
        self._give_up_a_generation(upgrade_id, cutover.finalize)

    def _wait_until_live(self, upgrade_id: int) -> None:
        wait_seconds = self.settings.cutover_wait_seconds
        ends = time.monotonic() + wait_seconds
        while time.monotonic() < ends:
            with self.database.session_scope() as session:
                upgrade = get_upgrade(session, upgrade_id)
                if upgrade.state is State.READY and upgrade.cutover_requested_at is None:
                    check_verdict(session, upgrade)
            if upgrade.state in (State.LIVE, State.FINALIZED):
                return
            if upgrade.state is not State.READY or upgrade.cutover_requested_at is None:
                raise CutoverRefused(upgrade.error or _NOT_READY_ANY_MORE.format(state=upgrade.state))
            time.sleep(_POLL_SECONDS)

        with self.database.session_scope() as session:
            upgrade = cutover.withdraw_cutover(session, upgrade_id)
            ahead = work_ahead(session, but=upgrade_id)
        if upgrade.state is not State.LIVE:
            raise NoWorkerAnswered(_NO_WORKER.format(seconds=wait_seconds, ahead=ahead.sentence()))

    def _give_up_a_generation(self, upgrade_id: int, action: Callable[[Session, int], Upgrade]) -> None:
        self._act(upgrade_id, action)
        remove_dropped(self.database, self.engine, self.settings.removal_wait_seconds)

    def _act(self, upgrade_id: int, action: Callable[[Session, int], Upgrade]) -> None:
        """Commit the action, then bring this process's replica along."""
        with self.database.session_scope() as session:
            upgrade = action(session, upgrade_id)
        # 4. The scope has committed.
        crash_point("switch.committed")
        self.replicas.refresh(upgrade.gallery_id)
