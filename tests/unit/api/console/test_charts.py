"""The curve of a backfill: its line lies within its band, on a grid that has the zero."""

from service.api.console.charts import curve_chart
from service.domain.backfill.simulation import CurvePoint


def test_the_line_lies_between_its_bounds_from_left_to_right() -> None:
    chart = curve_chart(
        [CurvePoint(0.0, 0.0, 0.0, 0.0, 0), CurvePoint(0.5, 0.1, 0.05, 0.2, 1), CurvePoint(1, 0.2, 0.1, 0.3, 2)]
    )

    assert chart is not None
    line = [tuple(map(float, point.split(","))) for point in chart.line.split()]
    band = [tuple(map(float, point.split(","))) for point in chart.band.split()]
    assert [x for x, _ in line] == sorted(x for x, _ in line)
    assert len(band) == 2 * len(line)
    for (x, y), (low_x, low), (high_x, high) in zip(line, band[:3], reversed(band[3:]), strict=True):
        assert x == low_x == high_x
        assert high <= y <= low  # y grows downwards
    assert [gain for _, gain in chart.rows] == [0.0, 0.3]


def test_a_point_alone_is_no_curve() -> None:
    assert curve_chart([]) is None
    assert curve_chart([CurvePoint(0.0, 0.0, 0.0, 0.0, 0)]) is None
