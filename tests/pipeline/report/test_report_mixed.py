"""Mixed precision in the report: the chart, the words, and nothing where it was not asked for."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_sample import bare_report, full_report

from fdda_deploy.pipeline.report.html import render_html
from fdda_deploy.pipeline.report.mixed import (
    Mixed,
    chosen_point,
    efficient_points,
    pareto_svg,
    widths_in_words,
)
from fdda_deploy.pipeline.report.schema import validate
from fdda_deploy.pipeline.report.summary import summary_rows


def mixed() -> Mixed:
    found = full_report()["mixed"]
    assert found is not None
    return found


def texts(svg: str) -> set[str]:
    root = ET.fromstring(svg)  # noqa: S314  # our own output is what is tested
    return {(element.text or "").strip() for element in root.iter() if element.tag == "text"}


def drawn_markers(svg: str, color: str) -> int:
    return len(re.findall(rf"<use [^>]*fill: var\(--{color}\b", svg))


def test_the_chart_has_every_point_the_bound_and_one_choice() -> None:
    svg = pareto_svg(mixed())
    assert {"taken: 81.9\u00a0kB", "float", "drop on the tune images, points"} <= texts(svg)
    assert drawn_markers(svg, "soft") == 3
    assert drawn_markers(svg, "accent") == 1
    assert svg.count("stroke: var(--warm") == 1
    assert "loses 0.50 with 81.9\u00a0kB, float has 698\u00a0kB" in svg


def test_the_chart_is_inert_takes_the_pages_colours_and_is_the_same_again() -> None:
    svg = pareto_svg(mixed())
    assert not re.search(r"#(0[0-9a-f]|1[0-9a-f]|2[0-4]){3}\b", svg)
    assert not re.search(r"<script|<metadata|font-family|https?:", svg)
    assert pareto_svg(mixed()) == svg


@pytest.mark.parametrize("drop", [-1.5, 0.0, 100.0])
def test_a_single_measurement_is_drawn_whatever_it_lost(drop: float) -> None:
    one = mixed()
    one["points"] = [{**chosen_point(one), "drop": drop, "grid_bytes": one["float_bytes"] - 1}]
    assert "taken: 698\u00a0kB" in texts(pareto_svg(one))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(-3, 9)), min_size=1, max_size=9))
def test_the_line_joins_the_points_that_nothing_beats(pairs: list[tuple[int, int]]) -> None:
    points: Any = [{"grid_bytes": size, "drop": float(drop)} for size, drop in pairs]
    found = efficient_points(points)
    for size, drop in pairs:
        beaten = any(s <= size and d <= drop and (s, d) != (size, drop) for s, d in pairs)
        assert ((float(size), float(drop)) in found) != beaten
    assert found == sorted(found)


def test_widths_are_said_in_words() -> None:
    assert widths_in_words({"4": 12, "8": 3, "float": 1}) == (
        "12\u00a0layers at 4 bits, 3 at 8 bits, 1 in float"
    )
    assert widths_in_words({"8": 1}) == "1\u00a0layer at 8 bits"
    assert widths_in_words({}) == "no layer"


def test_the_page_shows_the_choice_and_the_raised_layers() -> None:
    page = render_html(full_report(), contact_sheet_png=None).replace("\u00a0", " ")
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    for words in (
        "Of 3 measured assignments of widths this is the smallest that loses at most 0.60 points",
        "0.50 on 400 images (tune/; top-1 drop), before fine-tuning. 9 layers at 4 bits, 5 at 8",
        "The weights take 81.9 kB on their grids, 698 kB in float. The plan stores them in 176 kB",
        "layer2.1.conv2 4 8 0.00310 13.2",
    ):
        assert words in text
    assert 'aria-label="Points lost against bytes of weights, 3 assignments' in page


def test_nothing_to_raise_is_said_and_no_bound_leaves_the_section_out() -> None:
    report: Any = full_report()
    report["mixed"]["raised"] = []
    assert "the scheme holds the bound as it is" in render_html(report, contact_sheet_png=None)
    assert "Mixed precision" not in render_html(bare_report(), contact_sheet_png=None)


def test_the_summary_has_a_line_for_the_bound_where_there_is_one() -> None:
    rows = dict(summary_rows(full_report()))
    assert rows["max drop"].replace("\u00a0", " ") == (
        "0.60 points held: 0.50 on 400 tune images, 9 layers at 4 bits, 5 at 8 bits"
    )
    assert "max drop" not in dict(summary_rows(bare_report()))


@pytest.mark.parametrize("chosen", [[], [0, 1]], ids=["none", "two"])
def test_a_report_with_another_number_of_choices_than_one_is_refused(chosen: list[int]) -> None:
    report: Any = full_report()
    for index, point in enumerate(report["mixed"]["points"]):
        point["chosen"] = index in chosen
    with pytest.raises(ValueError, match=r"report\.mixed\.points: wanted exactly one"):
        validate(report)
