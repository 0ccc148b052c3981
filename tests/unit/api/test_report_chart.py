"""The picture of a report's gates: bars lie where their numbers do."""

import pytest

from service.api.report_chart import Measured, chart_of
from service.domain.judging.gates import Outcome

BARS: list[Measured] = [
    ("wide", Outcome.INCONCLUSIVE, -0.3, 0.0, 0.2),
    ("worse", Outcome.FAIL, -0.3, -0.2, -0.1),
    ("a point", Outcome.PASS, 0.05, 0.05, 0.05),
]


def test_all_bars_are_on_one_scale_whose_zero_is_the_limit() -> None:
    chart = chart_of(BARS)

    assert chart is not None
    (limit,) = (tick.x for tick in chart.ticks if tick.is_limit)
    at = {tick.words: tick.x for tick in chart.ticks}
    assert at["limit"] == limit
    assert list(at) == ["−30", "−20", "−10", "limit", "+10", "+20"]
    per_point = (at["+20"] - at["−30"]) / 50
    for bar, (name, outcome, *differences) in zip(chart.bars, BARS, strict=True):
        assert (bar.title, bar.outcome) == (name, outcome)
        for x, difference in zip((bar.low, bar.value, bar.high), differences, strict=True):
            assert x == pytest.approx(limit + 100 * difference * per_point, abs=0.2)
            assert 0 < x < chart.width
    assert sorted({bar.y for bar in chart.bars}) == [bar.y for bar in chart.bars]
    assert chart.bars[-1].y < chart.height - 40
    assert chart.bars[0].words == "wide: −30 to +20 points from the limit."


@pytest.mark.parametrize("reach", [1e-9, 0.003, 0.019, 0.5, 2.0])
def test_a_scale_has_a_limit_and_a_few_round_numbers(reach: float) -> None:
    chart = chart_of([("gate", Outcome.PASS, 0.0, reach / 2, reach)])

    assert chart is not None
    assert [tick.words for tick in chart.ticks].count("limit") == 1
    assert 3 <= len(chart.ticks) <= 9


def test_a_name_that_does_not_fit_is_cut_in_the_picture_and_not_in_words() -> None:
    chart = chart_of([("x" * 500, Outcome.FAIL, -1.0, -1.0, -1.0)])

    assert chart is not None
    assert len(chart.bars[0].title) == 90
    assert chart.bars[0].words.startswith("x" * 500 + ":")


def test_without_a_measured_gate_there_is_no_picture() -> None:
    assert chart_of([]) is None
