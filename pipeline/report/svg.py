"""Turns a matplotlib figure into an SVG that can stand inside a page and takes the page's colours.

Matplotlib knows no CSS. So charts are drawn in stand-in colours, and the finished SVG gets the
page's variables in their place: one drawing is right in light, in dark and on paper.
"""

from __future__ import annotations

import io
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, LINE = "#010203", "#040506", "#070809"
ACCENT, WARM, SOFT = "#0a0b0c", "#0d0e0f", "#101112"
SERIES = ("#131415", "#161718", "#191a1b", "#1c1d1e", "#1f2021", "#222324")
"""Stand-ins for lines of one chart, in order."""

_CSS = {
    INK: "currentColor",
    MUTED: "var(--muted, #767676)",
    LINE: "var(--line, #9a9a9a)",
    ACCENT: "var(--accent, #3d7ea6)",
    WARM: "var(--warm, #c0652d)",
    SOFT: "var(--soft, #9fb4c0)",
    SERIES[0]: "var(--series-1, #3d7ea6)",
    SERIES[1]: "var(--series-2, #c0652d)",
    SERIES[2]: "var(--series-3, #4f8f5b)",
    SERIES[3]: "var(--series-4, #8a63a8)",
    SERIES[4]: "var(--series-5, #b08a1e)",
    SERIES[5]: "var(--series-6, #767676)",
}
_SVG = "http://www.w3.org/2000/svg"
_HREF = "{http://www.w3.org/1999/xlink}href"
_DROPPED = (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style")
_SETTINGS: Any = {  # matplotlib types its keys as one literal of hundreds of names
    "svg.fonttype": "none",  # text stays text: selectable, searchable, in the page's own font
    "text.parse_math": False,  # a layer may be called $x$
    "font.size": 9.0,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid.axis": "x",
    "grid.color": LINE,
    "grid.alpha": 0.35,
    "grid.linewidth": 0.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "savefig.edgecolor": "none",
    "legend.frameon": False,
}


def inline_svg(
    draw: Callable[[Figure], None], *, name: str, description: str, size_inches: tuple[float, float]
) -> str:
    """Returns what ``draw`` puts on an empty figure as one ``<svg>`` element.

    It has no script, style element, date, or file around it, its ids begin with ``name``, and equal
    drawings give equal text.

    Args:
        draw: Gets the figure; uses the stand-in colours of this file.
        name: Unique on the page; letters and hyphens.
        description: What a reader who cannot see the figure should hear.
        size_inches: Width and height.
    """
    from matplotlib import rc_context, rcdefaults, rcParams
    from matplotlib.figure import Figure

    stream = io.BytesIO()
    with rc_context(), warnings.catch_warnings():
        rcdefaults()  # a matplotlibrc of this user must not change a report
        rcParams.update(_SETTINGS | {"svg.hashsalt": name})
        # Glyphs that matplotlib's font lacks are drawn by the browser, which has them.
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        figure = Figure(figsize=size_inches, layout="constrained")
        draw(figure)
        figure.savefig(stream, format="svg", metadata={"Date": None}, transparent=True)
    # Parsing is safe: matplotlib wrote this a line ago, with all text escaped and no entities.
    root = ET.fromstring(stream.getvalue())  # noqa: S314
    return _serialized(_tidied(root, name, description))


def _tidied(root: ET.Element, name: str, description: str) -> ET.Element:
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in _DROPPED]:
            parent.remove(child)
    used = {ref for element in root.iter() for ref in _references(element)}
    for element in root.iter():
        _adapt(element, name, used)
    root.set("role", "img")
    root.set("aria-label", description)
    root.set("class", "chart")
    return root


def _references(element: ET.Element) -> list[str]:
    clip = element.get("clip-path", "")
    link = element.get(_HREF, "")
    return [reference.removeprefix("url(").strip("#)") for reference in (clip, link) if reference]


def _adapt(element: ET.Element, name: str, used: set[str]) -> None:
    """Gives one element the page's colours and font, and ids that are unique on the page."""
    style = element.get("style")
    if style is not None:
        parts = (part.strip() for part in style.split(";"))
        kept = [_restyled(part) for part in parts if part and not part.startswith("font-family")]
        element.set("style", "; ".join(kept))
    identity = element.attrib.pop("id", None)
    if identity in used:
        element.set("id", f"{name}-{identity}")
    if element.get("clip-path"):
        element.set("clip-path", f"url(#{name}-{_references(element)[0]})")
    link = element.attrib.pop(_HREF, None)
    if link is not None:
        element.set("href", f"#{name}-{link.strip('#')}")


def _restyled(declaration: str) -> str:
    for stand_in, css in _CSS.items():
        declaration = declaration.replace(stand_in, css)
    return declaration


def _serialized(root: ET.Element) -> str:
    ET.register_namespace("", _SVG)
    return ET.tostring(root, encoding="unicode").replace(f' xmlns="{_SVG}"', "", 1)
