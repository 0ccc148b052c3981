"""How many files go into one request."""

from gallery_upgrade.core.batches import BatchSize, batches


def test_batches_grow_while_answers_are_fast_and_shrink_when_they_are_slow() -> None:
    size = BatchSize(wanted_seconds=2.0, files=8)

    size.learn(8, 0.1)
    assert size.files == 16
    size.learn(3, 0.1)  # the last few tell nothing of more
    assert size.files == 16
    size.learn(16, 1.5)
    assert size.files == 16
    size.learn(16, 9.0)
    assert size.files == 8
    size.learn(1, 60.0)
    assert size.files == 1


def test_a_batch_has_at_most_so_many_bytes_but_one_file_at_least() -> None:
    entries = [("a", 4), ("b", 4), ("c", 4), ("d", 40), ("e", 1)]

    assert list(batches(entries, BatchSize(files=2), most_bytes=10)) == [["a", "b"], ["c"], ["d"], ["e"]]
    assert list(batches([], BatchSize(), most_bytes=10)) == []
