"""The page in a real browser: no console error, no sideways scroll on a phone, tables that sort."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from report_sample import full_report, sample_images

from fdda_deploy.pipeline.report.contact_sheet import contact_sheet_png
from fdda_deploy.pipeline.report.html import render_html
from fdda_deploy.pipeline.report.schema import Report

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
PHONE_PX, DESKTOP_PX = 360, 1100

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason=f"no browser: looked for {', '.join(NAMES)} on the PATH"
)

# A window cannot be as narrow as a phone, a frame can. The frame has the page's own policy.
HARNESS = """<!doctype html><meta charset="utf-8"><title>harness</title>
<style>body{margin:0} iframe{border:0;height:900px}</style>
<iframe id="phone" style="width:PHONEpx" srcdoc="PAGE"></iframe>
<iframe id="desktop" style="width:DESKTOPpx" srcdoc="PAGE"></iframe>
<pre id="out"></pre>
<script>
addEventListener("load", () => {
  const frame = (id) => document.getElementById(id).contentDocument;
  const phone = frame("phone"), desktop = frame("desktop");
  const table = desktop.querySelector("#layers table"), heads = [...table.tHead.rows[0].cells];
  const column = (n) => [...table.tBodies[0].rows].map((row) => row.cells[n].textContent.trim());
  const steps = (n) => [0, 1, 2, 3].map((times) => {
    if (times) heads[n].querySelector("button").click();
    return [heads[n].getAttribute("aria-sort"), column(n)];
  });
  const wide = (root) => root.documentElement.scrollWidth;
  const cut = [...phone.body.querySelectorAll("*")].filter((element) =>
    !element.closest(".scroll") && !element.closest("svg")
    && element.getBoundingClientRect().right > PHONE + 1);
  document.getElementById("out").textContent = JSON.stringify({
    phone: wide(phone), desktop: wide(desktop),
    sideways: [...desktop.querySelectorAll(".scroll")]
      .filter((element) => element.scrollWidth > element.clientWidth)
      .map((element) => element.getAttribute("aria-label")),
    cut: cut.map((element) => element.tagName + " " + element.className),
    names: steps(0), output: steps(5),
    buttons: desktop.querySelectorAll("thead button").length,
    sortable: desktop.querySelectorAll("table.sortable thead th").length,
    reached: [...desktop.querySelectorAll("thead button")].every((button) => button.tabIndex === 0),
    unnamed: [...desktop.querySelectorAll("img:not([alt]), svg:not([aria-label])")].length,
  });
});
</script>"""


def chromium(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    flags += [f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--no-first-run"]
    return subprocess.run(
        [CHROMIUM, *flags, *arguments], capture_output=True, text=True, check=True, timeout=600
    )


def wordy_report() -> Report:
    """The report, with names and words as long as those of a real mobilenet_v2."""
    report = full_report()
    assert report["accuracy"] is not None
    for part in (report["accuracy"]["float"], report["accuracy"]["quantized"]):
        part["runs_on"] = "ONNX Runtime 1.31.1, CPU, 1 thread, optimizations none"
    times = report["bench"]["cpu"]
    assert times is not None
    times |= {"what": "model.qdq.onnx, ONNX Runtime on the CPU", "images_per_s": 1234.5}
    times["latency_ms"] = dict.fromkeys(times["latency_ms"], 123.456)
    report["diagnosis"][0] |= {
        "node": "features.17.conv.0.0/Conv",
        "tensor": "features.16.conv.1.2/Clip_output",
        "option": "more images with --calib-data, or --observer minmax",
    }
    return report


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "report.html"
    png = contact_sheet_png(sample_images(24), [n % 10 for n in range(24)], None)
    file.write_text(render_html(wordy_report(), contact_sheet_png=png), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def seen(page: Path) -> tuple[dict[str, Any], str]:
    """What the harness measured, and what the browser wrote to its log."""
    harness = page.with_name("harness.html")
    inner = html.escape(page.read_text(encoding="utf-8"), quote=True)
    text = HARNESS.replace("PHONE", str(PHONE_PX)).replace("DESKTOP", str(DESKTOP_PX))
    harness.write_text(text.replace("PAGE", inner), encoding="utf-8")
    done = chromium(page.parent, "--window-size=1500,1000", "--dump-dom", harness.as_uri())
    found = re.search(r'<pre id="out">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None
    return json.loads(html.unescape(found[1])), done.stderr


def test_the_console_stays_empty(seen: tuple[dict[str, Any], str]) -> None:
    assert [line for line in seen[1].splitlines() if "CONSOLE" in line] == []


def test_nothing_but_a_table_or_a_picture_is_wider_than_a_phone(
    seen: tuple[dict[str, Any], str],
) -> None:
    assert seen[0]["phone"] <= PHONE_PX
    assert seen[0]["cut"] == []
    assert seen[0]["desktop"] <= DESKTOP_PX


def test_no_table_scrolls_sideways_on_a_desk(seen: tuple[dict[str, Any], str]) -> None:
    assert seen[0]["sideways"] == []


def test_a_heading_sorts_up_then_down_then_back(seen: tuple[dict[str, Any], str]) -> None:
    (_, original), (up, ascending), (down, descending), (back, restored) = seen[0]["output"]
    assert (up, down, back) == ("ascending", "descending", None)
    known = [float(text) for text in ascending if re.fullmatch(r"-?[\d.]+", text)]
    assert len(known) > 5
    assert known == sorted(known)
    assert [float(t) for t in descending if re.fullmatch(r"-?[\d.]+", t)] == known[::-1]
    assert restored == original != ascending
    names = seen[0]["names"]
    assert sorted(names[1][1]) == sorted(names[0][1])


def test_every_heading_of_a_sortable_table_can_be_reached_with_the_keyboard(
    seen: tuple[dict[str, Any], str],
) -> None:
    assert seen[0]["buttons"] == seen[0]["sortable"] > 10
    assert seen[0]["reached"] is True


def test_every_picture_has_words(seen: tuple[dict[str, Any], str]) -> None:
    assert seen[0]["unnamed"] == 0


def test_dark_and_light_pages_differ_and_paper_gets_its_own(page: Path) -> None:
    shots = {}
    for name, number in (("dark", 0), ("light", 1)):
        shot = page.with_name(f"{name}.png")
        chromium(
            page.parent,
            f"--blink-settings=preferredColorScheme={number}",
            "--window-size=600,400",
            f"--screenshot={shot}",
            page.as_uri(),
        )
        shots[name] = mean_brightness(shot)
    assert shots["dark"] < 80
    assert shots["light"] > 180
    pdf = page.with_name("page.pdf")
    chromium(page.parent, f"--print-to-pdf={pdf}", page.as_uri())
    assert pdf.read_bytes().startswith(b"%PDF")


def mean_brightness(file: Path) -> float:
    import numpy as np
    from PIL import Image

    with Image.open(file) as image:
        return float(np.asarray(image.convert("L")).mean())
