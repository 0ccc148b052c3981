"""Jobs: trainings and ingests by reference, to be waited for and controlled."""

from typing import TYPE_CHECKING, Any

from gallery_upgrade.api import requests
from gallery_upgrade.errors import Failed
from gallery_upgrade.following import follow
from gallery_upgrade.progress import Show, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gallery_upgrade.api import models
    from gallery_upgrade.client import Client

_ENDED = ("succeeded", "failed", "cancelled")


class Job:
    """A job; `view` is what was last read of it."""

    def __init__(self, client: "Client", view: "models.JobView") -> None:
        self._client = client
        self.view = view

    def __repr__(self) -> str:
        return f"Job({self.id}, {self.view.kind}, {self.view.state})"

    @property
    def id(self) -> int:
        return self.view.id

    @property
    def state(self) -> str:
        return self.view.state

    @property
    def result(self) -> dict[str, Any] | None:
        """What it made: the id of a `transformation`, or how many images were created, replaced and rejected."""
        return self.view.result

    def refresh(self) -> "Job":
        """Read it again."""
        self.view = self._client.api.get_job(job_id=self.id)
        return self

    def wait(self, *, progress: bool | Show = False, timeout_seconds: float | None = None) -> "Job":
        """Wait until it has ended. Raises `Failed` unless it succeeded, and TimeoutError."""
        with shown(progress) as show:
            self.view = follow(
                self._client,
                lambda: self._client.api.get_job(job_id=self.id),
                lambda _: requests.stream_job_events(job_id=self.id),
                lambda view: view.state in _ENDED,
                show=show,
                timeout_seconds=timeout_seconds,
            )
        if self.state != "succeeded":
            raise Failed(f"Job {self.id} is {self.state}. {self.view.error or ''}".rstrip(), state=self.state)
        return self

    def pause(self) -> "Job":
        """Stop it for a while; nothing is stored once this has returned."""
        return self._seen(self._client.api.pause_job(job_id=self.id))

    def resume(self) -> "Job":
        """Go on where the pause was."""
        return self._seen(self._client.api.resume_job(job_id=self.id))

    def cancel(self) -> "Job":
        """Give it up; what it stored stays."""
        return self._seen(self._client.api.cancel_job(job_id=self.id))

    def rejected(self) -> "Iterator[models.RejectedImageView]":
        """Give the images of an ingest that were not stored, with the reasons."""
        return self._client.pages(self._client.api.list_rejected, job_id=self.id)

    def _seen(self, view: "models.JobView") -> "Job":
        self.view = view
        return self
