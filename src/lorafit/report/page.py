"""A report as one HTML page that needs nothing else: no network, no script, no font of its own."""

import re
from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lorafit.report.blocks import Report
from lorafit.report.style import as_inline

_TEASER = 240  # characters of a long text that are shown before it is opened


def as_html(report: Report, svgs: dict[str, str]) -> str:
    """Return the page of a report.

    Args:
        report: what it says.
        svgs: each figure's SVG by its name.
    """
    environment = Environment(
        loader=PackageLoader("lorafit.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"anchor": _anchor, "teaser": teaser}
    # matplotlib has escaped the text in them.
    inline = {name: Markup(as_inline(svg)) for name, svg in svgs.items()}
    return environment.get_template("page.html").render(report=report, svgs=inline)


def _anchor(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower())


def teaser(texts: Sequence[str]) -> str:
    """Return the beginning of a text or pair that is too long to be shown whole, or nothing."""
    whole = " ".join(" / ".join(texts).split())
    return f"{whole[:_TEASER].rstrip()} …" if len(whole) > 1.3 * _TEASER else ""
