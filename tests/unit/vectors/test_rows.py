"""What origins are called."""

from service.vectors.rows import Origin


def test_origins_have_labels() -> None:
    assert [origin.label for origin in Origin] == ["encoded", "imported", "transformed", "backfilled"]
    assert [int(origin) for origin in Origin] == [1, 2, 3, 4]
