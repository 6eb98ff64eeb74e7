"""A report as Markdown: the same as the page, with links to its figures."""

import html
import re
from collections.abc import Sequence

from lorafit.report.blocks import Block, Code, Example, Examples, Facts, Pictures, Prose, Report, Table
from lorafit.report.page import teaser


def as_markdown(report: Report) -> str:
    """Return a report as Markdown, its first line the verdict; text in it can't become markup."""
    parts = [f"# {escaped(report.verdict)}", f"**{escaped(report.name)}**: {escaped(report.about)}"]
    for section in report.sections:
        parts += [f"## {escaped(section.title)}", *(_block(block) for block in section.blocks)]
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Return plain text as Markdown on one line that shows it as it is; what can't be markup is left alone.

    >>> escaped("a|b <i>, *p* < 0.1")
    'a\\|b &lt;i>, \\*p\\* < 0.1'
    """
    one_line = re.sub(r"&(?=#?\w+;)", "&amp;", re.sub(r"\s+", " ", text))
    return re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", one_line))


def _block(block: Block) -> str:
    match block:
        case Prose(text):
            return _with_code(text)
        case Code(text, language):
            return _fenced(text, language)
        case Facts(facts):
            return "\n".join(f"* **{escaped(name)}**: {_with_code(value)}" for name, value in facts)
        case Table():
            return _table(block)
        case Pictures(pictures):
            return "\n\n".join(
                f"![{escaped(picture.alternative)}](figures/{picture.name}.png)\n\n{escaped(picture.caption)}"
                for picture in pictures
            )
        case Examples(examples):
            return "\n\n".join(_example(number, example) for number, example in enumerate(examples, start=1))


def _with_code(text: str) -> str:
    """Return our own prose, in which backticks mean code, and nothing else means anything."""
    return "`".join(part if place % 2 else escaped(part) for place, part in enumerate(text.split("`")))


def _fenced(text: str, language: str) -> str:
    longest = max((len(ticks) for ticks in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _table(table: Table) -> str:
    words = table.text_columns
    ruler = "|" + "---|" * words + "---:|" * (len(table.headers) - words)
    head = [f"**{escaped(table.caption)}**", "", _line(table.headers), ruler]
    shown, folded = table.rows[: table.shown], table.rows[table.shown :]
    lines = [*head, *map(_line, shown)]
    if folded:
        opening = ["", f"<details><summary>The other {len(folded)}</summary>", "", *head[2:]]
        lines += [*opening, *map(_line, folded), "", "</details>"]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(escaped, cells)) + " |"


def _example(number: int, example: Example) -> str:
    labels = f"true *{escaped(example.true)}*, predicted *{escaped(example.given)}*"
    whole, first = _html(" / ".join(example.texts)), _html(teaser(example.texts))
    if first:
        whole = f"<details><summary>{first}</summary>{whole}</details>"
    return (
        f'**{number}.** {labels}, probability {example.probability:.3f}\n\n<blockquote dir="auto">{whole}</blockquote>'
    )


def _html(text: str) -> str:
    """Return plain text as HTML on one line; a line that is empty would end the HTML in Markdown."""
    return html.escape(" ".join(text.split()))
