"""The timeline of an upgrade of another store: each state at its time, and what took how long."""

from datetime import UTC, datetime, timedelta

from service.api.console.external import timeline
from service.domain.external.progress import ExternalDetails
from service.domain.external_state import ExternalState
from service.domain.phases import Phase
from service.tables import ExternalEvent, ExternalUpgrade

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
S = ExternalState


def _events(*happened: tuple[ExternalState, int]) -> list[ExternalEvent]:
    return [ExternalEvent(state=state, at=BEGAN + timedelta(seconds=seconds)) for state, seconds in happened]


def _details(state: ExternalState, phase: str, resume_state: ExternalState | None = None) -> ExternalDetails:
    progress = {phase: Phase(3, 8, "ranges", 1.5, 4.0)}
    return ExternalDetails(ExternalUpgrade(state=state, resume_state=resume_state), "v1", "v2", progress, None)


def test_the_state_under_way_has_the_numbers_and_those_before_their_time() -> None:
    steps = timeline(
        _details(S.VERIFYING, "verifying"), _events((S.PLANNED, 0), (S.TRANSFORMING, 2), (S.VERIFYING, 32))
    )

    assert [step.state for step in steps] == [S.PLANNED, S.TRANSFORMING, S.VERIFYING, S.READY, S.LIVE, S.FINALIZED]
    assert [step.seconds for step in steps] == [2, 30, None, None, None, None]
    assert [step.state for step in steps if step.phase is not None] == [S.VERIFYING]


def test_a_state_that_was_come_back_to_is_where_it_was_reached_first() -> None:
    happened = _events((S.PLANNED, 0), (S.TRANSFORMING, 2), (S.PAUSED, 5), (S.TRANSFORMING, 60), (S.PAUSED, 70))
    paused = timeline(_details(S.PAUSED, "transforming", S.TRANSFORMING), happened)
    ready = timeline(_details(S.FAILED, "following", S.READY), _events((S.READY, 9), (S.FAILED, 10)))

    assert paused[1].at == BEGAN + timedelta(seconds=2)
    assert [step.state for step in paused if step.phase is not None] == [S.TRANSFORMING]
    assert [step.state for step in ready if step.phase is not None] == [S.READY]


def test_an_upgrade_that_ended_otherwise_ends_its_line_so() -> None:
    steps = timeline(_details(S.CANCELLED, "following"), _events((S.PLANNED, 0), (S.CANCELLED, 9)))

    assert (steps[-1].state, steps[-1].at) == (S.CANCELLED, BEGAN + timedelta(seconds=9))
