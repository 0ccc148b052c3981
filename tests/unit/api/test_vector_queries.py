"""Queries by vectors that come while one like them runs are asked together, and each is answered for itself."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from fastapi import Response

from service import identity
from service.api.vector_queries import VectorQueries
from service.domain.search.answers import Answer, Neighbor, Query
from service.domain.search.described_items import DescribedItem
from service.errors import Unavailable, Unprocessable

Vectors = Sequence[Sequence[float]]

REFUSED, FAULTY = -1.0, -2.0
PLAIN = Query(10, generation="active")
prefix: ContextVar[str] = ContextVar("prefix", default="")


class Fault(Unavailable):
    """What is nobody's own."""


@dataclass
class HeldSearch:
    """Finds, for each vector, an item that is named like its number. It begins once it is let go, and keeps what it was
    asked together."""

    asked: list[tuple[str, Query, list[float]]] = field(default_factory=list)
    goes: threading.Event = field(default_factory=threading.Event)
    tenants: list[str] = field(default_factory=list)
    runs: int = 0

    def by_vectors(self, gallery: str, vectors: Vectors, query: Query) -> Answer:
        return self.by_vectors_together(gallery, [vectors], query)[0]

    def by_vectors_together(self, gallery: str, asked: Sequence[Vectors], query: Query) -> list[Answer]:
        self.tenants.append(identity.current.get().tenant)
        self.runs += 1
        assert self.goes.wait(10)
        numbers = [vector[0] for vectors in asked for vector in vectors]
        self.asked.append((gallery, query, numbers))
        if FAULTY in numbers:
            raise Fault("Nothing can be asked.")
        if REFUSED in numbers:
            raise Unprocessable("A vector is refused.")
        return [Answer("v1", 1, 1, True, [[found(vector[0])] for vector in vectors]) for vectors in asked]


def found(number: float) -> Neighbor:
    return Neighbor(DescribedItem(f"{number:g}", "imported", 0, None, None, b"{}", None, False), 0.0)


def written(answer: Answer) -> Response:
    """Return the names of what was found, after the prefix of whoever asks."""
    names = [neighbor.item.id for own in answer.neighbors for neighbor in own]
    return Response(prefix.get() + " ".join(names))


async def ask(
    queries: VectorQueries, search: HeldSearch, *numbers: float, gallery: str = "g", query: Query = PLAIN
) -> str:
    answer = await queries.answer(search, gallery, [[number] for number in numbers], query, written)
    return bytes(answer.body).decode()


def run(scenario: Callable[[VectorQueries, HeldSearch], Coroutine[None, None, None]], at_once: int = 1) -> HeldSearch:
    """Run a scenario to its end, and return the search."""
    search = HeldSearch()
    queries = VectorQueries(at_once)
    try:
        asyncio.run(asyncio.wait_for(scenario(queries, search), 20))
    finally:
        search.goes.set()
        queries.stop()
    return search


async def asking(queries: VectorQueries, search: HeldSearch, *numbers: float, **options: Any) -> asyncio.Task[str]:
    """Ask, and return once the search was begun."""
    runs = search.runs
    task = asyncio.create_task(ask(queries, search, *numbers, **options))
    while search.runs == runs:
        await asyncio.sleep(0.001)
    return task


async def waiting(*asked: Coroutine[None, None, str]) -> list[asyncio.Task[str]]:
    """Ask, and return once all of them wait."""
    tasks = [asyncio.create_task(each) for each in asked]
    await asyncio.sleep(0)
    return tasks


def test_those_that_come_while_one_runs_are_asked_together_and_each_is_given_its_own() -> None:
    async def scenario(queries: VectorQueries, search: HeldSearch) -> None:
        first = await asking(queries, search, 1)
        later = await waiting(ask(queries, search, 2), ask(queries, search, 3, 4), ask(queries, search, 5))
        search.goes.set()
        assert await asyncio.gather(first, *later) == ["1", "2", "3 4", "5"]

    assert [numbers for _, _, numbers in run(scenario).asked] == [[1], [2, 3, 4, 5]]


def test_as_many_run_at_once_as_may() -> None:
    async def scenario(queries: VectorQueries, search: HeldSearch) -> None:
        first = [await asking(queries, search, number) for number in (1, 2)]
        later = await waiting(ask(queries, search, 3))
        await asyncio.sleep(0.01)
        assert search.runs == 2
        search.goes.set()
        assert await asyncio.gather(*first, *later) == ["1", "2", "3"]

    run(scenario, at_once=2)


def test_no_more_than_thirty_two_are_asked_together() -> None:
    async def scenario(queries: VectorQueries, search: HeldSearch) -> None:
        first = await asking(queries, search, 1)
        later = await waiting(*(ask(queries, search, number) for number in range(2, 42)))
        search.goes.set()
        assert await asyncio.gather(first, *later) == [str(number) for number in range(1, 42)]

    assert [len(numbers) for _, _, numbers in run(scenario).asked] == [1, 32, 8]


@pytest.mark.parametrize(
    "other",
    [
        {"gallery": "other"},
        {"query": replace(PLAIN, k=11)},
        {"query": replace(PLAIN, generation="next")},
        {"query": replace(PLAIN, model_version="v1")},
        {"query": replace(PLAIN, max_distance=1.0)},
    ],
)
def test_those_that_are_not_alike_wait_for_no_other(other: dict[str, Any]) -> None:
    async def scenario(queries: VectorQueries, search: HeldSearch) -> None:
        both = [await asking(queries, search, 1), await asking(queries, search, 2, **other)]
        search.goes.set()
        assert await asyncio.gather(*both) == ["1", "2"]

    assert sorted(numbers for _, _, numbers in run(scenario).asked) == [[1], [2]]


def test_vectors_of_another_dimension_wait_for_no_other() -> None:
    async def scenario(queries: VectorQueries, search: HeldSearch) -> None:
        first = await asking(queries, search, 1)
        longer = asyncio.create_task(queries.answer(search, "g", [[2, 2]], PLAIN, written))
        while search.runs < 2:
            await asyncio.sleep(0.001)
        search.goes.set()
        assert [await first, bytes((await longer).body).decode()] == ["1", "2"]

    run(scenario)


def test_whoever_asks_with_another_key_is_asked_for_apart() -> None:
    async def scenario(queries: VectorQueries, search: HeldSearch) -> None:
        first = await asking(queries, search, 1)
        with identity.acting_for("another"):
            second = await asking(queries, search, 2)
        search.goes.set()
        assert await asyncio.gather(*[first, second]) == ["1", "2"]

    assert run(scenario).tenants == ["default", "another"]


@pytest.mark.parametrize(
    ("numbers", "query"),
    [
        ([2], replace(PLAIN, condition={"label": "a"})),
        ([2], replace(PLAIN, exclude_id="1")),
        ([2], replace(PLAIN, exclude_ids=(["1"],))),
        ([2], replace(PLAIN, cursor="*")),
        ([2], replace(PLAIN, group_by="label")),
        ([2, 3, 4, 5, 6], PLAIN),
    ],
)
def test_what_may_take_long_is_asked_alone_and_nothing_waits_for_it(numbers: list[float], query: Query) -> None:
    async def scenario(queries: VectorQueries, search: HeldSearch) -> None:
        both = [await asking(queries, search, *numbers, query=query) for _ in range(2)]
        search.goes.set()
        assert await asyncio.gather(*both) == [" ".join(f"{number}" for number in numbers)] * 2

    assert [found for _, _, found in run(scenario).asked] == [numbers] * 2


def test_one_that_is_refused_is_refused_alone() -> None:
    async def scenario(queries: VectorQueries, search: HeldSearch) -> None:
        first = await asking(queries, search, 1)
        later = await waiting(ask(queries, search, 2), ask(queries, search, REFUSED), ask(queries, search, 3))
        search.goes.set()
        outcomes = await asyncio.gather(first, *later, return_exceptions=True)
        assert [each if isinstance(each, str) else type(each) for each in outcomes] == ["1", "2", Unprocessable, "3"]

    run(scenario)


def test_a_fault_is_raised_to_all_who_were_asked_for_together_and_to_nobody_else() -> None:
    async def scenario(queries: VectorQueries, search: HeldSearch) -> None:
        first = await asking(queries, search, 1)
        later = await waiting(ask(queries, search, 2), ask(queries, search, FAULTY))
        search.goes.set()
        outcomes = await asyncio.gather(first, *later, return_exceptions=True)
        assert [each if isinstance(each, str) else type(each) for each in outcomes] == ["1", Fault, Fault]
        assert await ask(queries, search, 3) == "3"

    assert [numbers for _, _, numbers in run(scenario).asked] == [[1], [2, FAULTY], [3]]


def test_an_answer_is_written_in_the_context_of_its_own_request() -> None:
    async def with_prefix(queries: VectorQueries, search: HeldSearch, text: str, number: float) -> str:
        prefix.set(text)
        return await ask(queries, search, number)

    async def scenario(queries: VectorQueries, search: HeldSearch) -> None:
        first = await asking(queries, search, 1)
        later = await waiting(*(with_prefix(queries, search, f"/{number}/", number) for number in (2, 3)))
        search.goes.set()
        assert await asyncio.gather(first, *later) == ["1", "/2/2", "/3/3"]

    run(scenario)


def test_one_that_gives_up_waiting_takes_no_answer_of_the_others() -> None:
    async def scenario(queries: VectorQueries, search: HeldSearch) -> None:
        first = await asking(queries, search, 1)
        gone, *later = await waiting(ask(queries, search, 2), ask(queries, search, 3))
        gone.cancel()
        search.goes.set()
        assert await asyncio.gather(first, *later) == ["1", "3"]
        assert gone.cancelled()

    run(scenario)
