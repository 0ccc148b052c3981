"""Batches as squares: what failed is neither waiting nor done, and says why."""

from service.api.console.squares import work_of
from service.domain.batch_state import BatchState
from service.tables import ExternalBatch


def _range(
    number: int, state: BatchState, error: str | None = None, refused: dict[str, int] | None = None
) -> ExternalBatch:
    return ExternalBatch(upgrade_id=1, pass_number=1, number=number, state=state, error=error, refused=refused)


def test_what_failed_is_counted_apart_and_what_was_mended_is_done() -> None:
    batches = [
        _range(0, BatchState.DONE, error="an outage"),
        _range(1, BatchState.CLAIMED),
        _range(2, BatchState.PENDING),
        _range(3, BatchState.PENDING, error="an outage"),
        _range(4, BatchState.PENDING, refused={"count": 1}),
    ]

    work = work_of(batches, lambda batch: f"range {batch.number}")

    assert (work.waiting, work.leased, work.done, work.failed) == (1, 1, 1, 2)
    assert [square.look for square in work.squares] == ["done", "claimed", "pending", "failed", "failed"]
    assert work.squares[3].words == "range 3: pending, an outage"
