"""The report as one HTML file that needs no network and no other file, and works without script.

Everything in it that came from outside is escaped by the template engine; only our own charts are
inserted as markup. A content security policy in the page forbids what should not be there anyway:
of scripts it lets run the one that sorts tables, known by its digest, and no other.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fdda_deploy.pipeline.report import diagnosis, figures, latency_plot, mixed, phrases, rounding
from fdda_deploy.pipeline.report import synthesis as synthesis_part
from fdda_deploy.pipeline.report.schema import Report
from fdda_deploy.pipeline.report.verdict import verdict

_TEMPLATES = Path(__file__).parent / "templates"
SORT_SCRIPT = "sort.js"
_ABSENT = Markup('<span class="absent">{}</span>')
_SAYERS: tuple[Callable[..., str], ...] = (
    phrases.decimal,
    phrases.significant,
    phrases.percent,
    phrases.points,
    phrases.size,
    phrases.duration,
)


def render_html(report: Report, *, contact_sheet_png: bytes | None) -> str:
    """Returns the report as one self-contained HTML document.

    Args:
        report: A report that :func:`schema.validate` has passed.
        contact_sheet_png: The synthetic images as one PNG; None where there are none.

    Raises:
        jinja2.UndefinedError: The report lacks a key; ``validate`` names it better.
    """
    shown = cast("Report", _plain_tree(report))
    sheet = None if contact_sheet_png is None else base64.b64encode(contact_sheet_png).decode()
    page = _environment().get_template("report.html.j2")
    script = (_TEMPLATES / SORT_SCRIPT).read_text(encoding="utf-8")
    return page.render(
        report=shown,
        verdict=verdict(shown),
        charts=_charts(shown),
        precisions=Counter(layer["precision"] for layer in shown["layers"]).most_common(),
        contact_sheet=sheet,
        script=Markup(script),  # noqa: S704  # a file of ours, with nothing put in
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for say in _SAYERS:
        environment.filters[say.__name__] = _marking_absence(say)
    environment.filters["text"] = _text
    environment.filters["whole"] = _marking_absence(lambda number: f"{number:,.0f}")
    environment.globals["interval"] = phrases.interval
    environment.globals["factor"] = phrases.factor
    environment.globals["counted"] = phrases.counted
    environment.globals["change_of_size"] = phrases.change_of_size
    environment.globals["chosen_point"] = mixed.chosen_point
    environment.globals["widths_in_words"] = mixed.widths_in_words
    environment.globals["worth_showing"] = diagnosis.worth_showing
    environment.globals["known_kl"] = rounding.known_kl
    environment.globals["rounding_sentences"] = rounding.rounding_sentences
    environment.globals["synthesis_sentences"] = synthesis_part.synthesis_sentences
    environment.globals["sqnr_caption"] = figures.sqnr_caption
    return environment


def _charts(report: Report) -> dict[str, Markup | None]:
    """Returns every chart by name; None where there is nothing to draw."""
    accuracy, synthesis, finetune = report["accuracy"], report["synthesis"], report["finetune"]
    drawn = {
        "accuracy": figures.accuracy_svg(accuracy) if accuracy else None,
        "bytes": figures.bytes_svg(report["bytes"]),
        "sqnr": figures.sqnr_svg(report["layers"]),
        "stages": figures.stages_svg(report["stages"]),
        "sweep": latency_plot.sweep_svg(report["bench"].get("sweep", [])),
        "pareto": mixed.pareto_svg(report["mixed"]) if report["mixed"] else None,
        "synthesis": None,
        "bns_distance": None,
        "finetune": None,
    }
    if synthesis is not None:
        drawn["synthesis"] = figures.losses_svg(
            synthesis["history"],
            synthesis["history_every"],
            name="synthesis",
            description="Losses of synthesis over its steps",
        )
        drawn["bns_distance"] = synthesis_part.distances_svg(synthesis)
    if finetune is not None:
        drawn["finetune"] = figures.losses_svg(
            finetune["history"],
            finetune.get("history_every", 1),
            name="finetune",
            description="Losses of fine-tuning over its steps",
        )
    # Markup is safe here: svg.py serialises an element tree, which escapes every text in it.
    return {name: Markup(svg) if svg else None for name, svg in drawn.items()}  # noqa: S704  # as said


def _plain_tree(value: Any) -> Any:
    """Returns a copy of JSON data without control characters in any text or key."""
    if isinstance(value, dict):
        return {phrases.plain(key): _plain_tree(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_tree(item) for item in value]
    return phrases.plain(value) if isinstance(value, str) else value


def _marking_absence(say: Callable[..., str]) -> Callable[..., str]:
    """Returns a filter that says numbers with ``say`` and sets "not measured" apart from them."""

    def said(value: float | None, *arguments: int) -> str:
        return _ABSENT.format(phrases.NOT_MEASURED) if value is None else say(value, *arguments)

    return said


def _text(value: object) -> str:
    """Says any JSON value in words; nothing at all is "not recorded"."""
    if value is None or value == "":
        return _ABSENT.format("not recorded")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_inner(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_inner, value)) or "none"
    return str(value)


def _inner(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
