"""What workers have to do, in a sentence and in seconds."""

from service.domain.upgrade.work_ahead import TRAINING_YIELDS_SECONDS, WorkAhead


def test_whoever_waits_in_vain_reads_what_workers_do() -> None:
    busy = WorkAhead(upgrades=[3, 5], items=700, trainings=4, index_builds=1)

    sentence = busy.sentence()

    assert "upgrades 3, 5 with 700 items" in sentence
    assert "4 trainings, which give way" in sentence
    assert "1 index builds under way, which are not cut" in sentence
    assert busy.seconds(0.01) == 7 + TRAINING_YIELDS_SECONDS


def test_where_there_is_nothing_to_do_a_worker_is_missed() -> None:
    idle = WorkAhead(upgrades=[], items=0, trainings=0, index_builds=0)

    assert "perhaps no worker runs" in idle.sentence()
    assert idle.seconds(0.01) == 0
