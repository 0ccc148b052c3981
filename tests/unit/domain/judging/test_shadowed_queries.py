"""Which queries are shadowed: a share of them, and so many within a second."""

import random

from service.domain.judging.shadowed_queries import ShadowDraw


def test_as_many_are_taken_as_the_share_says() -> None:
    generator = random.Random(0)
    draw = ShadowDraw(0.01, 10_000, generator.random, lambda: 0.0)

    taken = sum(draw.takes() for _ in range(20_000))

    assert 150 <= taken <= 250


def test_what_is_drawn_decides_and_not_how_many_came() -> None:
    draws = iter([0.5, 0.0099, 0.01, 0.0, 0.99])
    draw = ShadowDraw(0.01, 10, lambda: next(draws), lambda: 0.0)

    assert [draw.takes() for _ in range(5)] == [False, True, False, True, False]


def test_with_share_0_none_is_taken_and_with_share_1_all_are() -> None:
    for share in (0.0, 1.0):
        draw = ShadowDraw(share, 10, lambda: 0.0, lambda: 0.0)

        assert draw.takes() is bool(share)

    assert ShadowDraw(1.0, 10, lambda: 0.999_999, lambda: 0.0).takes()


def test_within_any_second_no_more_are_taken_than_may_be() -> None:
    now = 0.0
    draw = ShadowDraw(1.0, 5, lambda: 0.0, lambda: now)
    taken = []

    for step in range(1_000):
        now = step * 0.03
        if draw.takes():
            taken.append(now)

    for first in taken:
        assert len([at for at in taken if first <= at < first + 1.0]) <= 5
    assert len(taken) >= 5 * 29


def test_queries_that_are_not_drawn_use_nothing_up() -> None:
    draws = iter([0.9] * 100 + [0.0, 0.0])
    draw = ShadowDraw(0.5, 1, lambda: next(draws), lambda: 0.0)

    assert [draw.takes() for _ in range(102)] == [False] * 100 + [True, False]
