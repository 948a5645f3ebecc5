"""The page is one inert file that says everything measured, and "not measured" for the rest."""

from __future__ import annotations

import base64
import hashlib
import re
import types
import typing
from html.parser import HTMLParser
from typing import Annotated, Any

import pytest
from report_sample import bare_report, full_report, sample_images

from fdda_deploy.pipeline.report.contact_sheet import contact_sheet_png
from fdda_deploy.pipeline.report.html import render_html
from fdda_deploy.pipeline.report.schema import Report, validate
from fdda_deploy.pipeline.report.summary import summary_rows

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>javascript:{{7*7}}]]>&amp;"
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """What a page holds: tags with attributes, text, and whether every tag is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


def without_curves(report: Any) -> Any:
    """Returns the report with less to draw, for tests that render often."""
    report["stages"] = report["stages"][:1]
    for part in (report["synthesis"], report["finetune"]):
        if part is not None:
            part["history"] = {}
    return report


@pytest.fixture(scope="module")
def png() -> bytes:
    return contact_sheet_png(sample_images(4), [0, 1, 2, 3], None)


@pytest.fixture(scope="module")
def html(png: bytes) -> str:
    return render_html(full_report(), contact_sheet_png=png)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_the_page_is_well_formed_and_its_ids_are_unique(page: Page) -> None:
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert page.tags[0] == ("html", {"lang": "en"})


def test_the_page_needs_no_network_and_no_other_file(html: str, page: Page) -> None:
    names = {tag for tag, _ in page.tags}
    assert names.isdisjoint({"link", "iframe", "object", "embed", "base", "form", "a"})
    for _, attributes in page.tags:
        assert not [key for key in attributes if key.startswith("on")]
        for key in ("src", "href", "xlink:href", "srcset"):
            assert re.match(r"(data:image/png;base64,|#|$)", attributes.get(key) or "")
    assert not re.search(r"https?://|@import|url\((?!#)", html)
    assert "default-src 'none'" in html


def test_the_policy_lets_the_sorting_script_run_and_no_other(html: str) -> None:
    (script,) = re.findall(r"<script[^>]*>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    assert re.findall(r"script-src ([^;]*)", policy) == [f"'sha256-{digest}'"]


def test_tables_that_sort_stand_whole_without_the_script(page: Page) -> None:
    names = [tag for tag, _ in page.tags]
    kinds = [attributes.get("class") or "" for tag, attributes in page.tags if tag == "table"]
    assert sum("sortable" in kind for kind in kinds) >= 3
    assert "button" not in names  # the script makes them


def test_the_headline_holds_the_verdict_in_words_and_numbers(page: Page) -> None:
    text = page.text.replace("\u00a0", " ")
    start = text.index("digits as w4a8 for rtx")
    top = text[start : text.index("What ran")]
    for words in (
        "No measurable loss, 3.4\u00d7 smaller",
        "98.83 % to 98.66 % on 597 images",
        "a drop of 0.17 points (95 % interval of the drop \u22120.34 to 0.67, paired)",
        "TensorRT has no INT4 convolution",
        "GPU latency not measured",
        "Warning. 2 damaged images were skipped",
        "Calibrated on 1,200 real and 400 synthetic images.",
    ):
        assert words in top


def test_what_was_measured_stands_on_the_page(page: Page) -> None:
    text = page.text.replace("\u00a0", " ")
    for words in (
        "12 layers in INT8 (4-bit weight grid)",
        "reduced schedule: 1,200 of 80,000 generator steps",
        "97.39 to 99.32",
        "same class on 99.50 %",
        "Q/DQ ONNX in ONNX Runtime on the CPU",
        "they say nothing about the plan on a GPU",
        "1,200 real images and 400 synthetic images",
        "layer3.0.conv2",
        "T025",
        "sm 86, 89, 120",
        "1,413 MiB",
        "3f0c9a1be47d52c8aa01773e6f2b9d604c15e8f7a9d0b3c2214f5e6d7c8b9a00",
        "mean [0.305]",
        "tensorrtnot installed",
        "first_last_bits8",
    ):
        assert words.replace(" ", "") in text.replace(" ", ""), words


def test_the_contact_sheet_is_inside_with_a_description(page: Page, png: bytes) -> None:
    (image,) = [attributes for tag, attributes in page.tags if tag == "img"]
    source = image["src"] or ""
    assert base64.b64decode(source.removeprefix("data:image/png;base64,")) == png
    assert "synthetic images" in (image["alt"] or "")


def test_the_page_suits_dark_screens_phones_and_paper(html: str) -> None:
    for rule in ("prefers-color-scheme: dark", "max-width: 46rem", "@media print", "tabular-nums"):
        assert rule in html
    assert 'name="viewport"' in html


def test_equal_reports_give_equal_pages(html: str, png: bytes) -> None:
    assert render_html(full_report(), contact_sheet_png=png) == html


def test_a_bare_report_says_not_measured_and_draws_nothing() -> None:
    html = render_html(bare_report(), contact_sheet_png=None)
    page = Page(html)
    assert page.open == []
    assert {tag for tag, _ in page.tags}.isdisjoint({"svg", "img", "figure"})
    for words in ("Accuracy not measured", "nothing was timed", "No engine was built"):
        assert words in page.text
    assert not re.search(r"\bNone\b|\bnan\b|Undefined", page.text)


def poisoned(value: Any) -> Any:
    """Returns the report with every text, and every free key, made hostile."""
    if isinstance(value, dict):
        return {key: poisoned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    return f"{value}{HOSTILE}" if isinstance(value, str) else value


def test_nothing_from_outside_becomes_markup(page: Page) -> None:
    report = poisoned(full_report())
    report["versions"] = {HOSTILE: HOSTILE}
    report["config"] = {HOSTILE: {HOSTILE: HOSTILE, "list": [HOSTILE], "table": {HOSTILE: 1}}}
    report["synthesis"]["history"] = {HOSTILE: [1.0, 2.0]}
    report["model"]["preprocessing"] = {HOSTILE: [HOSTILE]}
    validate(report)
    hostile = Page(render_html(report, contact_sheet_png=None))
    assert hostile.open == []
    assert {tag for tag, _ in hostile.tags} <= {tag for tag, _ in page.tags}
    assert {key for _, attributes in hostile.tags for key in attributes}.isdisjoint(
        {"onerror", "onload"}
    )
    assert [tag for tag, _ in hostile.tags].count("script") == 1
    assert "49" not in re.findall(r"javascript:(\d+)", hostile.text)
    assert hostile.text.count("<script>alert(1)</script>") > 40


def test_text_that_cannot_be_encoded_or_hides_is_made_visible() -> None:
    report: Any = without_curves(full_report())
    report["model"]["name"] = "a\udc80b\u202ec\x00"
    html = render_html(report, contact_sheet_png=None)
    assert "a\ufffdb\ufffdc\ufffd" in html
    assert html.encode("utf-8")


def nullable(hint: Any, path: tuple[Any, ...], value: Any) -> list[tuple[Any, ...]]:
    """Returns the path of everything below ``value`` that may be None."""
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        rest = [kind for kind in arguments if kind is not type(None)]
        below = nullable(rest[0], path, value) if value is not None else []
        return ([path] if len(rest) < len(arguments) else []) + below
    if origin in (Annotated, typing.NotRequired):
        return nullable(arguments[0], path, value)
    if typing.is_typeddict(hint):
        hints = typing.get_type_hints(hint, include_extras=True)
        return [found for key in value for found in nullable(hints[key], (*path, key), value[key])]
    if origin is list and typing.is_typeddict(arguments[0]):
        return nullable(arguments[0], (*path, 0), value[0])
    return []


def with_none(path: tuple[Any, ...], report: Any) -> Any:
    place = report
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = None
    return report


PATHS = nullable(Report, (), full_report())
CONTAINERS = [path for path in PATHS if any(other[: len(path)] == path != other for other in PATHS)]


def test_the_search_for_optional_values_finds_them() -> None:
    assert len(PATHS) > 50
    assert ("accuracy", "drop", "low") in PATHS
    assert ("bench", "gpu") in PATHS
    assert ("layers", 0, "output_sqnr_db") in PATHS
    assert ("data", "evaluation") in CONTAINERS


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ".".join(map(str, path)))
def test_every_optional_value_may_be_none_in_the_summary(path: tuple[Any, ...]) -> None:
    report = with_none(path, full_report())
    validate(report)
    assert not [value for _, value in summary_rows(report) if "None" in value]


@pytest.mark.parametrize("path", [*CONTAINERS, None], ids=str)
def test_every_optional_part_may_be_none_on_the_page(path: tuple[Any, ...] | None) -> None:
    """Each part alone, and all single values at once."""
    report = without_curves(full_report())
    for each in [leaf for leaf in PATHS if leaf not in CONTAINERS] if path is None else [path]:
        with_none(each, report)
    validate(report)
    page = Page(render_html(report, contact_sheet_png=None))
    assert page.open == []
    assert not re.search(r"\bNone\b|\bnan\b|Undefined", page.text)


def test_a_gpu_that_was_timed_is_shown_as_such() -> None:
    report: Any = without_curves(full_report())
    report["bench"]["gpu"] = report["bench"]["cpu"] | {"what": "plan on an H200", "unstable": True}
    text = Page(render_html(report, contact_sheet_png=None)).text.replace("\u00a0", " ")
    assert "GPU latency 1.840 ms median, batch 1, unstable" in text
    assert "nothing was timed on a GPU" not in text
