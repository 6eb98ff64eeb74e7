"""A run -> a page, the same as Markdown, and figures: to be read without us."""

from pathlib import Path

from lorafit.files import storing, write_text
from lorafit.report import markdown, page
from lorafit.report.blocks import Report
from lorafit.report.figures import accuracy_bar, accuracy_line
from lorafit.report.sections import report_of
from lorafit.report.style import as_svg, drawing
from lorafit.report.verdict import UNTRAINED, four_lines, verdict
from lorafit.runs import Run

__all__ = [
    "UNTRAINED",
    "accuracy_bar",
    "accuracy_line",
    "four_lines",
    "is_whole",
    "remove",
    "verdict",
    "write",
    "write_pages",
]


def write(run: Run) -> None:
    """Write `report.html`, `report.md` and the figures, as PNG and SVG, of an evaluated run.

    The page needs nothing else: its figures stand in it. report.md comes last: where it is, the rest is whole.

    Raises:
        StorageError: a disk that is full or not writable.
    """
    remove(run)
    with drawing():
        write_pages(run.path, report_of(run))


def write_pages(folder: Path, report: Report) -> None:
    """Write a report's page, the same as Markdown, and its figures into a folder; call it within `drawing`.

    Raises:
        StorageError: a disk that is full or not writable.
    """
    svgs = _write_figures(folder / "figures", report)
    write_text(folder / "report.html", page.as_html(report, svgs))
    write_text(folder / "report.md", markdown.as_markdown(report))


def remove(run: Run) -> None:
    """Remove a run's report and figures, where they are there."""
    run.remove("report.md", "report.html", "figures")


def is_whole(run: Run) -> bool:
    """Tell whether a run has its report, with all that belongs to it."""
    return (run.path / "report.md").is_file()


def _write_figures(folder: Path, report: Report) -> dict[str, str]:
    """Return each figure's SVG by its name."""
    with storing(folder):
        folder.mkdir(exist_ok=True)
        for picture in report.pictures:
            picture.figure.savefig(folder / f"{picture.name}.png")
            picture.figure.set_layout_engine("none")  # it has found the places; to do so again takes half the time
    svgs = {picture.name: as_svg(picture.figure, picture.name) for picture in report.pictures}
    for name, svg in svgs.items():
        write_text(folder / f"{name}.svg", svg)
    return svgs
