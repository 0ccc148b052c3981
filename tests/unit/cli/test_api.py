"""What an API process keeps for good when it begins to serve."""

import gc
import weakref

from service.cli.api import keep_what_is_there


class Cycle:
    def __init__(self) -> None:
        self.itself = self


def test_cycles_that_are_made_later_are_still_found() -> None:
    thresholds, kept = gc.get_threshold(), Cycle()

    keep_what_is_there()
    try:
        frozen = {id(each) for each in gc.get_objects()}
        later = weakref.ref(Cycle())
        gc.collect()
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)

    assert id(kept) not in frozen  # the search passes over it
    assert later() is None
