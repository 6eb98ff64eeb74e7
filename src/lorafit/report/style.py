"""How our figures look: sizes, colours that colour-blind readers tell apart, their form in a light or dark page."""

import io
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.figure import Figure

# Readable at the width of a phone (374 points), where a figure is shown as large as it is drawn.
WIDTH = 5.2
INK, MUTED, LINE, PAPER = "#1b1e23", "#5b6470", "#d5d9df", "#ffffff"
# Okabe and Ito's colours (Color Universal Design, 2008) without black and yellow, orange and sky blue darkened to three
# to one against white; grey is for what was there before.
BASE, ADAPTED, BEST = "#8a8f98", "#0072b2", "#d55e00"
LABELS = (ADAPTED, BEST, "#009e73", "#cc79a7", "#b87f00", "#2f95cf")
# In a page each colour is a variable of it, so that one figure serves a light page and a dark one.
VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    LINE: "line",
    PAPER: "paper",
    BASE: "base",
    ADAPTED: "blue",
    BEST: "vermillion",
    "#009e73": "green",
    "#cc79a7": "purple",
    "#b87f00": "orange",
    "#2f95cf": "sky",
}
# Fonts that write what matplotlib's own can't, where a system has one.
_WIDE_FONTS = ("Noto Sans CJK SC", "Noto Sans", "PingFang SC", "Hiragino Sans", "Microsoft YaHei", "Arial Unicode MS")


@contextmanager
def drawing() -> Iterator[None]:
    """Have figures drawn and saved in our style.

    A letter that no font here has is a box in a PNG, and drawn by the reader's own fonts in SVG and in the page.

    >>> with drawing():
    ...     accuracy_bar(test).savefig("bar.png")
    """
    with mpl.rc_context(_rules()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        yield


def _rules() -> dict[Any, Any]:
    there = {font.name for font in font_manager.fontManager.ttflist}
    return {
        "font.family": ["DejaVu Sans", *(name for name in _WIDE_FONTS if name in there)],
        "font.size": 10,
        "text.color": INK,
        "text.parse_math": False,  # "$" in a label's name is a dollar
        "axes.labelcolor": INK,
        "axes.edgecolor": MUTED,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "grid.color": LINE,
        "legend.frameon": False,
        "figure.facecolor": PAPER,
        "axes.facecolor": "none",
        "figure.constrained_layout.use": True,
        "savefig.dpi": 200,
        "svg.fonttype": "none",  # text stays text: it can be found, read aloud, and drawn in the reader's own font
    }


def as_svg(figure: Figure, name: str) -> str:
    """Return a figure as SVG, the same for the same figure; `name` keeps its ids apart from those of others."""
    written = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    return written.getvalue()


def as_inline(svg: str) -> str:
    """Return an SVG to stand in a page: its colours are the page's variables, and it is as wide as its place."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # matplotlib numbers these from 1 in each figure
    svg = re.sub(r'style="[^"]*"', lambda style: _with_variables(style[0]), svg)
    return re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg, count=1)


def _with_variables(style: str) -> str:
    for colour, variable in VARIABLES.items():
        style = style.replace(colour, f"var(--{variable})")
    return style


def in_short(labels: Iterable[str]) -> list[str]:
    """Return labels' names for a figure: each on one line, its middle left out where it is long, told apart if need be.

    >>> in_short(["card payment: fee charged in a shop", "other"])
    ['card paym…n a shop', 'other']
    """
    names = [" ".join(label.split()) for label in labels]
    shortened: list[str] = []
    for characters in (18, 26, 34):
        shortened = [_without_middle(name, characters) for name in names]
        if len(set(shortened)) == len(set(names)):
            break
    return shortened


def _without_middle(name: str, characters: int) -> str:
    if len(name) <= characters:
        return name
    half = (characters - 1) // 2
    return f"{name[: characters - 1 - half]}…{name[-half:]}"
