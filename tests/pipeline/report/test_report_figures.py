"""Charts stand inside any page: no script, no clash of ids, the page's colours, the same bytes."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import pytest
from report_sample import bare_report, full_report

from fdda_deploy.pipeline.report import figures

HOSTILE = "</text><script>alert(1)</script>\" onload='x' $\\frac{a}{b$ \x00\x1b 漢字"


def losses(history: dict[str, Any], name: str = "losses") -> str | None:
    return figures.losses_svg(history, 10, name=name, description="Losses")


def charts(report: Any) -> dict[str, str | None]:
    history = report["synthesis"]["history"]
    return {
        "accuracy": figures.accuracy_svg(report["accuracy"]),
        "bytes": figures.bytes_svg(report["bytes"]),
        "stages": figures.stages_svg(report["stages"]),
        "sqnr": figures.sqnr_svg(report["layers"]),
        "losses": losses(history),
    }


@pytest.fixture(scope="module")
def drawn() -> dict[str, str]:
    return {name: svg or "" for name, svg in charts(full_report()).items()}


def parsed(svg: str) -> ET.Element:
    return ET.fromstring(svg)  # noqa: S314  # our own output is what is tested


def texts(svg: str) -> list[str]:
    found = (element.text for element in parsed(svg).iter() if element.tag == "text")
    return [(text or "").strip() for text in found]


@pytest.mark.parametrize("name", ["accuracy", "bytes", "stages", "sqnr", "losses"])
def test_a_chart_is_one_inert_svg_element(drawn: dict[str, str], name: str) -> None:
    svg = drawn[name]
    root = parsed(svg)
    assert root.tag == "svg"
    assert root.get("role") == "img"
    assert root.get("aria-label")
    tags = {element.tag for element in root.iter()}
    assert tags <= {"svg", "g", "path", "text", "defs", "use", "clipPath", "rect", "tspan"}
    assert not re.search(r"<\?xml|<!DOCTYPE|<metadata|font-family|http:|https:", svg)


@pytest.mark.parametrize("name", ["accuracy", "bytes", "stages", "sqnr", "losses"])
def test_no_stand_in_colour_is_left_and_text_follows_the_page(
    drawn: dict[str, str], name: str
) -> None:
    svg = drawn[name]
    assert not re.search(r"#(0[0-9a-f]|1[0-9a-f]|2[0-4]){3}\b", svg)
    fills = set(re.findall(r"<text style=\"[^\"]*fill: ([^;\"]+)", svg))
    assert fills
    assert fills <= {"currentColor", "var(--muted, #767676)"}


def test_ids_are_unique_over_all_charts_and_every_reference_is_met(drawn: dict[str, str]) -> None:
    page = "".join(drawn.values())
    ids = re.findall(r'\bid="([^"]+)"', page)
    references = re.findall(r'(?:url\(#|href="#)([^")]+)', page)
    assert len(ids) == len(set(ids))
    assert set(references) == set(ids)
    assert ids


def test_equal_reports_give_equal_charts_whatever_the_users_settings(drawn: dict[str, str]) -> None:
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert charts(full_report()) == drawn


def test_drawing_leaves_no_global_state() -> None:
    before = dict(mpl.rcParams)
    assert charts(full_report())["sqnr"]
    assert dict(mpl.rcParams) == before


def test_hostile_names_are_text_and_nothing_else() -> None:
    report: Any = full_report()
    report["layers"][0]["name"] = HOSTILE
    report["stages"][0]["name"] = HOSTILE
    report["synthesis"]["history"] = {HOSTILE: [1.0, 0.5], "_hidden": [2.0, 1.0]}
    for name in ("sqnr", "stages", "losses"):
        svg = charts(report)[name] or ""
        assert "<script" not in svg
        attributes = {key for element in parsed(svg).iter() for key in element.attrib}
        assert not [key for key in attributes if key.startswith("on")]
        assert any("漢字" in text for text in texts(svg))


def test_every_curve_is_in_the_legend_also_one_that_starts_with_an_underscore() -> None:
    assert {"_hidden", "shown"} <= set(texts(losses({"_hidden": [2, 1], "shown": [1, 2]}) or ""))


def test_accuracy_says_both_numbers() -> None:
    svg = figures.accuracy_svg(full_report()["accuracy"])  # type: ignore[arg-type]  # it is there
    assert {"98.83\u00a0%", "98.66\u00a0%", "float", "quantized"} <= set(texts(svg))


@pytest.mark.parametrize("top1", [0.0, 100.0])
def test_accuracy_without_interval_at_the_ends_of_the_scale_is_drawn(top1: float) -> None:
    accuracy: Any = full_report()["accuracy"]
    for part in (accuracy["float"], accuracy["quantized"]):
        part |= {"top1": top1, "low": None, "high": None}
    assert f"{top1:.2f}\u00a0%" in texts(figures.accuracy_svg(accuracy))


def test_the_worst_layers_come_first_and_stand_out(drawn: dict[str, str]) -> None:
    layers = full_report()["layers"]
    by_noise = sorted(layers, key=lambda layer: layer["output_sqnr_db"] or 0)
    names = [text for text in texts(drawn["sqnr"]) if text in {layer["name"] for layer in layers}]
    assert names == [layer["name"] for layer in by_noise]
    assert drawn["sqnr"].count("fill: var(--warm") == figures.NUM_HIGHLIGHTED


def test_of_many_layers_only_the_worst_are_drawn_and_the_caption_says_so() -> None:
    layers: Any = full_report()["layers"] * 10
    svg = figures.sqnr_svg(layers)
    assert svg is not None
    assert svg.count("fill: var(--accent") + svg.count("fill: var(--warm") == figures.MAX_LAYERS
    assert "the output of the 24 worst of 140 layers" in figures.sqnr_caption(layers)


def test_without_outputs_the_weights_are_shown_and_named() -> None:
    layers: Any = full_report()["layers"]
    for layer in layers:
        layer["output_sqnr_db"] = None
    assert "41.6" in texts(figures.sqnr_svg(layers) or "")
    assert "of the weights of each layer" in figures.sqnr_caption(layers)


def test_negative_sqnr_is_drawn() -> None:
    layers: Any = full_report()["layers"][:2]
    layers[0]["output_sqnr_db"] = -3.0
    assert "\u22123.0" in texts(figures.sqnr_svg(layers) or "")


def test_losses_with_gaps_zeros_or_one_value_are_drawn() -> None:
    for history in ({"a": [1.0, None, 0.5]}, {"a": [0.0, -1.0]}, {"a": [3.0]}, {"a": [0.0]}):
        assert losses(dict(history))


@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.bytes_svg(bare_report()["bytes"]),
        lambda: figures.stages_svg([]),
        lambda: figures.sqnr_svg([]),
        lambda: losses({}),
        lambda: losses({"a": [], "b": [None]}),
    ],
    ids=["bytes", "stages", "sqnr", "losses", "gaps"],
)
def test_nothing_measured_draws_nothing(draw: Callable[[], str | None]) -> None:
    assert draw() is None
