"""What a load test would get wrong without a sign: which phase a query counts in, and what an answer may hold."""

import json
from dataclasses import replace

import httpx
import numpy as np
import pytest

from benchmarks.constant_rate import Client, Load, Reply
from benchmarks.load_report import QUIET, TRANSFORMING, WARM_UP, WHOLE, PhaseResult, Space, judge, phases_of, verdicts
from benchmarks.vectors import exact_nearest

_PHASES = phases_of([(WARM_UP, 0), (QUIET, 10), (TRANSFORMING, 20), ("after", 30)], 40)


def _space(version: str, generation: int) -> Space:
    generator = np.random.default_rng(generation)
    rows, queries = (generator.standard_normal((count, 4), np.float32) for count in (50, 3))
    return Space(version, generation, rows, queries, exact_nearest(rows, queries, 1)[:, 0])


_SPACES = {"v1": _space("v1", 1), "v2": _space("v2", 2)}


def _reply(version: str, due: float = 15.0, seconds: float = 0.01) -> Reply:
    """A right answer."""
    space = _SPACES[version]
    found = exact_nearest(space.rows, space.queries[1:2], 3)[0]
    distances = np.linalg.norm(space.rows[found] - space.queries[1], axis=1)
    ids = tuple(f"item-{row}" for row in found)
    return Reply(due, seconds, 1, version, 0, None, version, space.generation, ids, tuple(distances.tolist()))


def _result(replies: list[Reply], phase: str = QUIET) -> PhaseResult:
    return next(result for result in judge(replies, _PHASES, _SPACES) if result.phase.name == phase)


def test_a_query_counts_in_the_phase_in_which_it_was_due_however_late_its_answer() -> None:
    replies = [_reply("v1", due=19.99, seconds=5), _reply("v1", due=20.0), _reply("v2", due=39.9), _reply("v1", due=5)]

    counts = {result.phase.name: result.queries for result in judge(replies, _PHASES, _SPACES)}

    assert counts == {WARM_UP: 1, QUIET: 1, TRANSFORMING: 1, "after": 1, WHOLE: 2}


def test_phases_that_are_not_in_order_are_refused() -> None:
    with pytest.raises(ValueError, match="one after the other"):
        phases_of([(QUIET, 10), (TRANSFORMING, 9)], 20)


def test_right_answers_of_either_generation_are_not_mixed() -> None:
    result = _result([_reply("v1"), _reply("v2")])

    assert (result.mixed, result.vectors, result.nearest_found) == (0, 2, 2)


@pytest.mark.parametrize(
    "wrong",
    [
        replace(_reply("v1"), generation=2),
        replace(_reply("v1"), version="v2", generation=2),
        replace(_reply("v1"), version="v3"),
        replace(_reply("v1"), distances=_reply("v2").distances),
        replace(_reply("v1"), ids=(*_reply("v1").ids[:2], _reply("v2").ids[2])),
    ],
    ids=["generation", "version", "unknown version", "distances", "one neighbour"],
)
def test_an_answer_with_a_part_of_another_generation_is_mixed(wrong: Reply) -> None:
    assert _result([_reply("v1"), wrong]).mixed == 1


def test_an_answer_without_the_nearest_item_is_counted_and_not_mixed() -> None:
    right = _reply("v1")

    result = _result([replace(right, ids=right.ids[1:], distances=right.distances[1:])])

    assert (result.mixed, result.vectors, result.nearest_found) == (0, 1, 0)


def test_a_failed_query_is_a_failure_with_its_latency_and_no_answer() -> None:
    result = _result([Reply(15.0, 2.0, 0, "v1", 0, failure="500")])

    assert (result.failures, result.mixed, result.p99_ms) == (1, 0, 2_000)


def test_a_slow_upgrade_misses_its_budget_and_a_slow_warm_up_does_not() -> None:
    quiet = [_reply("v1", due=5, seconds=9), *[_reply("v1", due=15)] * 100]

    slow = judge([*quiet, *[_reply("v1", due=25, seconds=0.03)] * 100], _PHASES, _SPACES)
    fast = judge([*quiet, *[_reply("v1", due=25, seconds=0.015)] * 100], _PHASES, _SPACES)

    assert "missed" in verdicts(slow)[2]
    assert "missed" not in "".join(verdicts(fast))


def test_a_refused_client_asks_with_the_other_vector_and_stays_with_it() -> None:
    asked: list[tuple[str, list[float]]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        asked.append((body["model_version"], body["vectors"][0]))
        if body["model_version"] != "v2":
            return httpx.Response(409)
        return httpx.Response(200, json={"model_version": "v2", "generation": 2, "neighbors": [[]]})

    load = Load("http://there", "photos", {"v1": [[1.0]], "v2": [[2.0]]}, [], 0, 1.0, 1)
    with httpx.Client(transport=httpx.MockTransport(answer), base_url=load.url) as http:
        client = Client(load, http)

        replies = [client.ask(number, due=0.0) for number in range(2)]

    assert asked == [("v1", [1.0]), ("v2", [2.0]), ("v2", [2.0])]
    assert [(reply.asked, reply.refused, reply.failure) for reply in replies] == [("v2", 1, None), ("v2", 0, None)]


def test_a_query_that_is_refused_with_every_vector_is_a_failure() -> None:
    load = Load("http://there", "photos", {"v1": [[1.0]], "v2": [[2.0]]}, [], 0, 1.0, 1)
    refusing = httpx.MockTransport(lambda _: httpx.Response(409, text="no"))
    with httpx.Client(transport=refusing, base_url=load.url) as http:
        reply = Client(load, http).ask(0, due=0.0)

    assert reply.failure == "409 no"
