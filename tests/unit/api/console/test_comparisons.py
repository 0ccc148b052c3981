"""Two answers side by side: which items moved, which are new or lost, and where the lines between them run."""

from service.api.console.comparisons import Found, Move, compared


def found(*ids: str) -> list[Found]:
    return [Found(id_, None, float(rank), has_thumbnail=True) for rank, id_ in enumerate(ids)]


def test_every_item_knows_its_rank_in_the_other_answer() -> None:
    both = compared(found("a", "b", "c"), found("b", "a", "d"))

    assert [(row.item.id, row.rank, row.other_rank) for row in both.before] == [
        ("a", 1, 2),
        ("b", 2, 1),
        ("c", 3, None),
    ]
    assert both.after is not None
    assert [(row.item.id, row.other_rank) for row in both.after] == [("b", 2), ("a", 1), ("d", None)]


def test_lines_join_the_middles_of_the_rows_of_the_same_items() -> None:
    both = compared(found("a", "b", "c"), found("b", "a", "c"))

    assert [(line.path, line.move) for line in both.lines] == [
        ("M0 50 C45 50 55 150 100 150", Move.DOWN),
        ("M0 150 C45 150 55 50 100 50", Move.UP),
        ("M0 250 C45 250 55 250 100 250", Move.SAME),
    ]
    assert both.height == 300


def test_columns_are_as_high_as_the_longer_answer() -> None:
    assert compared(found("a"), found("b", "c")).height == 200
    assert compared([], []).height == 100


def test_columns_change_over_with_their_lines() -> None:
    both = compared(found("a", "b"), found("b", "c"))

    assert both.swapped.before == both.after
    assert [line.move for line in both.swapped.lines] == [Move.DOWN]


def test_one_answer_alone_has_nothing_beside_it() -> None:
    alone = compared(found("a"), None)

    assert alone.after is None
    assert alone.lines == []
    assert alone.swapped is alone
