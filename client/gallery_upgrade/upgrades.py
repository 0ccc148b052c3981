"""Upgrades: to be waited for, judged, and made live or given up."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gallery_upgrade.api import requests
from gallery_upgrade.arrays import ARROW_STREAM, arrow_stream, read_vectors
from gallery_upgrade.core.calls import UNSET, File, Unset
from gallery_upgrade.errors import Failed, NotFound
from gallery_upgrade.following import follow, look_for
from gallery_upgrade.progress import Show, shown

if TYPE_CHECKING:
    import pyarrow as pa

    from gallery_upgrade.api import models
    from gallery_upgrade.client import Client

_GIVEN_UP = ("failed", "cancelled", "rolled_back")
_IN_ORDER = ("planned", "transforming", "indexing", "smoothing", "evaluating", "ready", "live", "finalized")
_AT_ONCE = 128
_VECTORS_AT_ONCE = 10_000


class Upgrade:
    """An upgrade of a gallery; `view` is what was last read of it."""

    def __init__(self, client: "Client", view: "models.UpgradeView") -> None:
        self._client = client
        self.view = view

    def __repr__(self) -> str:
        return (
            f"Upgrade({self.id}, {self.view.gallery}: {self.view.from_version} to {self.view.to_version}, {self.state})"
        )

    @property
    def id(self) -> int:
        return self.view.id

    @property
    def state(self) -> str:
        return self.view.state

    def refresh(self) -> "Upgrade":
        """Read it again."""
        return self._seen(self._client.api.get_upgrade(upgrade_id=self.id))

    def wait(
        self,
        *,
        until: str | None = None,
        progress: bool | Show = False,
        timeout_seconds: float | None = None,
    ) -> "Upgrade":
        """Wait until it has the state `until`, or a later one; without one, until nothing more will happen by itself:
        it is ready and waits for a cutover, or it is live. `progress` draws bars, or is told the phases.

        Raises `Failed` if it failed or was given up, and TimeoutError.
        """

        def settled(view: "models.UpgradeView") -> bool:
            if view.state in _GIVEN_UP or view.state == until:
                return True
            if until is not None:
                return until in _IN_ORDER and view.state in _IN_ORDER[_IN_ORDER.index(until) :]
            goes_live = view.cutover == "auto" and view.judged is not None and view.judged.verdict == "pass"
            return view.state in ("live", "finalized") or (view.state == "ready" and not goes_live)

        with shown(progress) as show:
            self.view = follow(
                self._client,
                lambda: self._client.api.get_upgrade(upgrade_id=self.id),
                lambda last: requests.stream_upgrade_events(
                    upgrade_id=self.id, last_event_id=UNSET if last is None else last
                ),
                settled,
                show=show,
                timeout_seconds=timeout_seconds,
            )
        if self.state in _GIVEN_UP and self.state != until:
            raise Failed(f"Upgrade {self.id} is {self.state}. {self.view.error or ''}".rstrip(), state=self.state)
        return self

    def report(self, number: int | None = None) -> "models.ReportView":
        """Return the newest report, or the one of a number. Raises `UnknownReport` before there is one."""
        api = self._client.api
        found = (
            api.get_newest_report(upgrade_id=self.id, format="json")
            if number is None
            else api.get_report(upgrade_id=self.id, number=number, format="json")
        )
        assert not isinstance(found, str)
        return found

    def report_page(self) -> str:
        """Return the newest report as a page of HTML."""
        page = self._client.api.get_newest_report(upgrade_id=self.id, format="html")
        assert isinstance(page, str)
        return page

    def wanted_references(self, wanted: int | Unset = UNSET, *, seed: int | Unset = UNSET) -> list[str]:
        """Return the ids of items whose images, given again, let the upgrade be judged."""
        return self._client.api.draw_references(upgrade_id=self.id, wanted=wanted, seed=seed).ids

    def give_references(
        self, images: Callable[[str], bytes | Path | None], ids: Sequence[str]
    ) -> "list[models.ReferenceResultView]":
        """Give the images of items, which both model versions encode: `images` has an item's image, or None.

        Returns what became of each. Items without an image are left out.
        """
        files = [File(item_id, content) for item_id in ids if (content := images(item_id)) is not None]
        results: list[models.ReferenceResultView] = []
        for start in range(0, len(files), _AT_ONCE):
            part = files[start : start + _AT_ONCE]
            items = [{"id": file.name} for file in part]
            results += self._client.api.post_references(upgrade_id=self.id, files=part, items=items).results
        return results

    def give_reference_vectors(
        self, vectors: "pa.Table | str | os.PathLike[str]"
    ) -> "list[models.ReferenceResultView]":
        """Give what the new model version gives for the images of items: a table with the columns id and embedding, or
        a file of it (`arrays.read_vectors`). Returns what became of each."""
        tables = read_vectors(Path(vectors), _VECTORS_AT_ONCE) if isinstance(vectors, str | os.PathLike) else [vectors]
        results: list[models.ReferenceResultView] = []
        for table in tables:
            content = arrow_stream(table.select(["id", "embedding"]))
            results += self._client.api.post_reference_vectors(
                upgrade_id=self.id, content=content, content_type=ARROW_STREAM
            ).results
        return results

    def evaluate(self, *, seed: int | Unset = UNSET, timeout_seconds: float | None = None) -> "models.ReportView":
        """Have a new report written, wait for it, and return it. Raises TimeoutError."""
        number = self._client.api.evaluate(upgrade_id=self.id, seed=seed).report

        def written() -> "models.ReportView | None":
            try:
                return self.report(number)
            except NotFound:
                return None

        return look_for(written, f"Report {number}", timeout_seconds=timeout_seconds)

    def examples(self, kind: Any, *, limit: int | Unset = UNSET) -> "list[models.ExampleView]":
        """Return items for which the upgrade changes most; `kind` is negative_flips, positive_flips, churn, hubs or
        uncertain."""
        return self._client.api.get_examples(upgrade_id=self.id, kind=kind, limit=limit).examples

    def reports(self) -> "Iterator[models.ReportLine]":
        """Give a line of each report, the newest first."""
        return self._client.pages(self._client.api.list_reports, upgrade_id=self.id)

    def cut_over(self, *, override: str | None = None) -> "Upgrade":
        """Make it live. Raises `Conflict`, which names gates that failed, unless `override` gives a reason."""
        given = UNSET if override is None else {"reason": override}
        return self._seen(self._client.api.cut_over(upgrade_id=self.id, override=given))

    def roll_back(self, *, accept_loss: bool = False) -> "Upgrade":
        """Make the previous generation active again."""
        return self._seen(self._client.api.roll_back(upgrade_id=self.id, accept_loss=accept_loss or UNSET))

    def finalize(self) -> "Upgrade":
        """Drop the previous generation; there is no rollback afterwards."""
        return self._seen(self._client.api.finalize(upgrade_id=self.id))

    def pause(self) -> "Upgrade":
        """Stop it for a while; no batch is in flight once this has returned."""
        return self._seen(self._client.api.pause_upgrade(upgrade_id=self.id))

    def resume(self) -> "Upgrade":
        """Go on where the pause was."""
        return self._seen(self._client.api.resume_upgrade(upgrade_id=self.id))

    def retry(self) -> "Upgrade":
        """Go on after a failure."""
        return self._seen(self._client.api.retry_upgrade(upgrade_id=self.id))

    def cancel(self) -> "Upgrade":
        """Give it up; its generation is dropped."""
        return self._seen(self._client.api.cancel_upgrade(upgrade_id=self.id))

    def change(self, *, speed: float | Unset = UNSET, canary: float | Unset = UNSET) -> "Upgrade":
        """Throttle it by `speed` (0 to 1), or let it answer a share of image queries with `canary` (0 to 1)."""
        return self._seen(self._client.api.change_upgrade(upgrade_id=self.id, speed=speed, canary=canary))

    def _seen(self, view: "models.UpgradeView") -> "Upgrade":
        self.view = view
        return self
