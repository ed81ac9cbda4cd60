"""Charts draw what is there, and nothing where there is nothing."""

from __future__ import annotations

import math
import re

from learner.report_charts import Point, bars, calibration, line

NAN = math.nan


def coordinates(chart: str) -> list[float]:
    return [float(number) for number in re.findall(r'(?:cx|cy|x|y|width)="(-?[0-9.]+|-?nan|-?inf)"', chart)]


def inside(chart: str) -> bool:
    width, height = map(float, re.findall(r'viewBox="0 0 (\S+) (\S+)"', chart)[0])
    return all(0 <= number <= max(width, height) for number in coordinates(chart))


def test_a_curve_has_a_dot_for_every_figure_and_breaks_where_one_is_missing() -> None:
    chart = line("KL", [Point("0", 1.0), Point("1", NAN), Point("2", 3.0), Point("3", 2.0)])
    assert chart.count("<circle") == 3
    [path] = re.findall(r'class="curve" d="([^"]*)"', chart)
    assert [stroke[0] for stroke in path.split() if stroke[0].isalpha()] == ["M", "M", "L"]
    assert "nan" not in chart
    assert "<title>KL</title>" in chart
    assert "0: 1; 1: –; 2: 3; 3: 2" in chart


def test_any_number_of_figures_of_any_size_stays_inside() -> None:
    for values in ([], [NAN], [0.0], [5.0], [1e-9, 2e-9], [-1e9, 1e9], [math.inf, 1.0], [float(i) for i in range(40)]):
        points = [Point(str(i), value) for i, value in enumerate(values)]
        for chart in (line("t", points), bars("t", points)):
            assert inside(chart), (values, chart)
            assert "nan" not in chart
            assert "inf" not in chart
    assert "no figures yet" in line("t", [])
    assert "no figures yet" in bars("t", [Point("a", NAN)])


def test_ticks_are_round_and_few() -> None:
    ticks = re.findall(r'text-anchor="end">([^<]*)<', line("t", [Point("0", 0.0), Point("1", 4.2)]))
    assert ticks == ["0", "1", "2", "3", "4"]


def test_bars_go_to_either_side_of_zero_and_carry_intervals() -> None:
    chart = bars("words", [Point("good", 2.0, 1.0, 3.0), Point("bad", -1.0)], "+.1f")
    [up, down] = re.findall(r'<rect class="(up|down)" x="([0-9.]+)" y="[0-9.]+" width="([0-9.]+)"', chart)
    assert (up[0], down[0]) == ("up", "down")
    assert float(down[1]) + float(down[2]) == float(up[1]), "both begin at zero"
    assert float(up[2]) == 2 * float(down[2])
    assert chart.count('class="whisker"') == 1
    assert "good: +2.0 (+1.0 to +3.0)" in chart


def test_calibration_lies_on_the_diagonal_where_votes_agree() -> None:
    chart = calibration("c", [(0.5, 0.5, 20), (0.9, 0.1, 20), (NAN, 0.3, 20)])
    [(x1, y1), (x2, y2)] = re.findall(r'cx="([0-9.]+)" cy="([0-9.]+)"', chart)
    assert (float(x1), float(y1)) == (177.0, 88.0)  # the middle of 46 to 308, and of 164 to 12
    assert float(x2) > float(x1)
    assert float(y2) > float(y1)
    assert "No votes" in calibration("c", [])


def test_names_are_escaped() -> None:
    evil = [Point("<script>", 1.0)]
    for chart in (line("<b>", evil), bars("<b>", evil)):
        assert "<script" not in chart
        assert "<b>" not in chart
