"""What is kept between the time slices of one training, and let go for the next."""

from itertools import count

import pytest

from workers.training_memory import TrainingMemory


def test_what_is_kept_is_made_once() -> None:
    memory, made = TrainingMemory(), count()

    first = memory.keep("0123", "rows", lambda: next(made))
    second = memory.keep("0123", "rows", lambda: next(made))
    other = memory.keep("0123", "encoders", lambda: next(made))

    assert (first, second, other) == (0, 0, 1)


def test_another_training_pushes_out_what_was_kept() -> None:
    memory, made = TrainingMemory(), count()

    answers = [memory.keep(prefix, "rows", lambda: next(made)) for prefix in ("0123", "4567", "4567", "0123")]

    assert answers == [0, 1, 1, 2]


def test_what_was_forgotten_is_made_again() -> None:
    memory, made = TrainingMemory(), count()
    memory.keep("0123", "rows", lambda: next(made))

    memory.forget()

    assert memory.keep("0123", "rows", lambda: next(made)) == 1


def test_a_training_that_is_forgotten_while_it_makes_something_still_gets_it() -> None:
    memory, made = TrainingMemory(), count()

    def make_and_forget() -> int:
        memory.forget()
        return next(made)

    assert memory.keep("0123", "rows", make_and_forget) == 0
    assert memory.keep("0123", "rows", lambda: next(made)) == 1


def test_what_cannot_be_made_is_tried_again() -> None:
    memory, tries = TrainingMemory(), iter([True, False])

    def fail_first() -> str:
        if next(tries):
            raise OSError("the disk is away")
        return "rows"

    with pytest.raises(OSError, match="the disk is away"):
        memory.keep("0123", "rows", fail_first)

    assert memory.keep("0123", "rows", fail_first) == "rows"
