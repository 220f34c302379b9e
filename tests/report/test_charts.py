"""Charts draw values in the right places, describe them in words, and escape any text."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from trainer.report.charts.bar_chart import bar_chart, histogram
from trainer.report.charts.chart import Chart
from trainer.report.charts.heat_map import heat_map
from trainer.report.charts.interval_chart import interval_chart
from trainer.report.charts.line_chart import Series, line_chart
from trainer.report.charts.parallel_coordinates import parallel_coordinates
from trainer.report.charts.scale import Scale, needs_log
from trainer.report.charts.scatter_chart import Point, scatter_chart
from trainer.report.markup import Html, element
from trainer.report.number_format import format_duration, format_tick, format_value
from trainer.report.tables import Table

SVG = "{http://www.w3.org/2000/svg}"
NASTY = '</svg><script>alert("1")</script>&\x00'


def parsed(chart: Chart) -> ElementTree.Element:
    """Parse the standalone file; raises an error if it is not XML."""
    return ElementTree.fromstring(chart.file())


def words(chart: Chart) -> str:
    return " ".join(parsed(chart).itertext())


def test_every_chart_has_a_title_a_description_and_its_numbers() -> None:
    charts = [
        line_chart("a", "Loss", [Series("training", [1, 2], [0.5, 0.25])], x_label="epoch", best=2),
        histogram("b", "Sizes", [1.0, 2.0, 2.5], x_label="pixels", y_label="images"),
        bar_chart("c", "Classes", ["dog"], [("images", [3])], label_heading="class"),
        scatter_chart("d", "Trials", [Point(1, 2, "trial 1", True)], x_label="ms", y_label="accuracy"),
        heat_map("e", "Matrix", ["a", "b"], ["a", "b"], [[3, 1], [0, 2]], row_heading="true",
                 column_heading="as"),
        parallel_coordinates("f", "Parallel", ["lr", "model", "accuracy"],
                 [{"lr": 0.1, "model": "x", "accuracy": 0.5}] * 2,
                 labels=["trial 0", "trial 1"], best=1),
    ]  # fmt: skip
    for chart in charts:
        root = parsed(chart)
        assert root.get("role") == "img"
        assert root.find(f"{SVG}title") is not None
        ids = (root.get("aria-labelledby") or "").split()
        texts = {each.get("id"): each.text for each in root if each.get("id")}
        assert ids == [f"{chart.name}-title", f"{chart.name}-desc"]
        assert all(texts[each] for each in ids)
        assert "<figcaption>" in chart.html()
        assert chart.table is not None or chart.name == "f"


def test_line_chart_describes_its_values_and_marks_the_best_epoch() -> None:
    chart = line_chart(
        "a", "Loss", [Series("training", [1, 2, 3], [0.5, math.nan, 0.25])], x_label="epoch", best=3
    )
    assert "training: 0.5000 at epoch 1, 0.2500 at 3" in chart.description
    assert "best: 3" in words(chart)
    (path,) = parsed(chart).iter(f"{SVG}path")
    assert (path.get("d") or "").count("M") == 2, "an undefined value leaves a gap"
    assert chart.table is not None
    assert chart.table.rows[1] == (2, pytest.approx(math.nan, nan_ok=True))


def test_a_higher_value_is_drawn_higher() -> None:
    chart = line_chart("a", "x", [Series("s", [1, 2], [0.2, 0.8])], x_label="epoch", y_scale=Scale(0, 1))
    low, high = (float(each.get("cy") or 0) for each in parsed(chart).iter(f"{SVG}circle"))
    assert high < low
    assert (low - high) / 0.6 == pytest.approx(210, abs=0.5)  # the plot's height


def test_a_line_of_many_points_stays_small() -> None:
    count = 200_000
    chart = line_chart("a", "x", [Series("s", range(count), [i / count for i in range(count)])], x_label="x")
    assert len(chart.file()) < 60_000
    assert chart.table is not None
    assert len(chart.table.rows) == 100
    assert chart.table.rows[-1][0] == count - 1


def test_bar_chart_draws_bars_by_value_and_notes_how_many_are_omitted() -> None:
    chart = bar_chart(
        "a", "x", [f"class {n}" for n in range(40)], [("images", list(range(40, 0, -1)))], label_heading="c"
    )
    widths = [float(each.get("width") or 0) for each in parsed(chart).iter(f"{SVG}rect")]
    assert len(widths) == 30
    assert widths[0] / widths[20] == pytest.approx(40 / 20, rel=0.01)
    assert "The numbers list 10 more" in chart.html()
    assert chart.table is not None
    assert len(chart.table.rows) == 40


def test_histogram_of_counts_has_a_bar_for_each_number() -> None:
    chart = histogram("a", "x", [1, 1, 3], x_label="objects", y_label="images", are_counts=True)
    assert chart.table is not None
    assert chart.table.rows == [("1", 2), ("3", 1)]


def test_interval_chart_draws_values_between_their_ends_and_marks_zero() -> None:
    rows = [(NASTY, -0.1, -0.2, 0.05), ("b − c", 0.3, 0.1, 0.4)]
    chart = interval_chart("a", "Differences", rows, x_label="accuracy", marks_zero=True)
    root = parsed(chart)
    dots = [float(each.get("cx", "")) for each in root.iter(f"{SVG}circle")]
    lines = [each for each in root.iter(f"{SVG}line") if "s0" in each.get("class", "")]
    ends = [
        sorted(float(each.get(x, "")) for x in ("x1", "x2"))
        for each in lines
        if each.get("y1") == each.get("y2")
    ]
    (zero,) = (float(each.get("x1", "")) for each in root.iter(f"{SVG}line") if each.get("class") == "guide")
    assert len(ends) == 2
    assert all(low < dot < high for dot, (low, high) in zip(dots, ends, strict=True))
    assert ends[0][0] < zero < ends[0][1] < ends[1][1]
    assert zero < ends[1][0]
    assert "b − c: 0.3000, from 0.1000 to 0.4000" in words(chart)


def test_heat_map_shades_by_row_and_describes_confusions() -> None:
    chart = heat_map("m", "x", ["a", "b"], ["a", "b", "Missed"], [[8, 2, 0], [0, 0, 5]], row_heading="true",
                     column_heading="predicted")  # fmt: skip
    shades = [float(each.get("fill-opacity") or 0) for each in parsed(chart).iter(f"{SVG}rect")]
    assert shades[0] == pytest.approx(0.04 + 0.96 * 0.8, abs=0.01)
    assert shades[5] == 1.0
    assert "8 of 15 on the diagonal" in chart.description
    assert "b predicted as Missed 5 times; a predicted as b 2 times" in chart.description


def test_heat_map_of_many_classes_draws_the_most_confused() -> None:
    names = [f"c{n:02}" for n in range(60)]
    counts = [[int(row == column) * 10 for column in range(60)] for row in range(60)]
    counts[55][3] = 7
    chart = heat_map("m", "x", names, names, counts, row_heading="true", column_heading="predicted")
    assert len(list(parsed(chart).iter(f"{SVG}rect"))) == 40 * 40
    assert "c55" in words(chart)
    assert "40 of 60 classes" in chart.html()


def test_text_is_escaped_in_charts_and_tables() -> None:
    charts = [
        line_chart(
            "a", NASTY, [Series(NASTY, [1], [1]), Series("b", [1], [2])], x_label=NASTY, y_label=NASTY
        ),
        bar_chart("c", NASTY, [NASTY], [(NASTY, [3])], label_heading=NASTY),
        heat_map("e", NASTY, [NASTY], [NASTY], [[1]], row_heading="t", column_heading="p"),
        parallel_coordinates("f", NASTY, [NASTY, "y"], [{NASTY: NASTY, "y": 1}], labels=[NASTY]),
    ]
    for chart in charts:
        parsed(chart)
        assert "<script" not in chart.html()
    assert "<script" not in Table("t", NASTY, (NASTY,), [(NASTY,)]).html()
    assert Html.escape("\x00") == "\N{REPLACEMENT CHARACTER}"


def test_table_csv_has_plain_text_and_empty_cells_for_undefined_values() -> None:
    table = Table("t", "x", ("a", "b"), [(element("a", "x & y", href="z"), math.nan), ("p", None)])
    assert table.csv().splitlines() == ["a,b", "x & y,", "p,"]


@pytest.mark.parametrize(
    ("values", "low", "high", "ticks"),
    [
        ([0.1, 0.93], 0.0, 1.0, 6),
        ([3, 3], 2.5, 3.5, 5),
        ([], 0.0, 1.0, 6),
        ([math.nan, math.inf, 5, 10], 5.0, 10.0, 6),
        ([-0.3, 1234], -250.0, 1250.0, 7),
    ],
)
def test_axes_start_and_end_at_round_numbers(
    values: list[float], low: float, high: float, ticks: int
) -> None:
    scale = Scale.over(values)
    assert scale.low <= min([v for v in values if math.isfinite(v)], default=0)
    assert (scale.low, scale.high) == pytest.approx((low, high)) or len(set(values)) == 1
    assert len(scale.ticks()) == ticks


def test_logarithmic_axes() -> None:
    scale = Scale.over([0.002, 3], log=True)
    assert scale.ticks() == pytest.approx([0.001, 0.01, 0.1, 1, 10])
    assert scale.position(0.1) == pytest.approx(0.5)
    assert needs_log([1e-4, 1.0])
    assert not needs_log([0.0, 1.0])
    assert not needs_log([0.5, 1.0])


def test_epoch_axis_has_whole_numbers() -> None:
    assert [Scale.of_epochs(last).ticks() for last in (1, 3, 12)] == [[1, 2], [1, 2, 3], [3, 6, 9, 12]]
    assert [Scale.of_epochs(last, first=0).ticks() for last in (0, 2)] == [[0, 1], [0, 1, 2]]


def test_numbers_are_formatted_for_readers() -> None:
    assert [format_value(value) for value in (0.12345, 1234567, 12.0, math.nan, None, 1e-7, "x")] == [
        "0.1235", "1,234,567", "12", "–", "–", "1e-07", "x",
    ]  # fmt: skip
    assert [format_tick(value) for value in (0.25, 1000.0, 1e-5, 0.0)] == ["0.25", "1,000", "1e-5", "0"]
    assert [format_duration(value) for value in (0.44, 100, 200, 7500)] == [
        "0.4 s",
        "100 s",
        "3 min 20 s",
        "2 h 5 min",
    ]
    assert not re.search(r"\d{7}", format_value(123456789.123))
