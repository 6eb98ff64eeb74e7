"""What a report is made of. All text in it is plain: whoever writes it as HTML or Markdown escapes it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from matplotlib.figure import Figure

from lorafit.report.style import WIDTH


@dataclass(frozen=True)
class Prose:
    """A paragraph."""

    kind: ClassVar[str] = "prose"
    text: str


@dataclass(frozen=True)
class Code:
    """Lines to be read, or copied, as they are."""

    kind: ClassVar[str] = "code"
    text: str
    language: str = "text"


@dataclass(frozen=True)
class Facts:
    """What is known, each under its name."""

    kind: ClassVar[str] = "facts"
    facts: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """Rows under headers. The first `text_columns` hold words, the others numbers; rows after `shown` are folded."""

    kind: ClassVar[str] = "table"
    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1
    shown: int = 20


@dataclass(frozen=True)
class Picture:
    """A figure: its file's name, what it says to those who can't see it, and how to read it."""

    name: str
    figure: Figure
    alternative: str
    caption: str

    @property
    def wide(self) -> bool:
        """Whether it is drawn wider than a phone, and scrolled there."""
        return self.figure.get_figwidth() > WIDTH

    @property
    def smallest_pixels(self) -> int:
        """The width below which its text could not be read."""
        return round(0.9 * 72 * self.figure.get_figwidth())


@dataclass(frozen=True)
class Pictures:
    """Figures that belong side by side."""

    kind: ClassVar[str] = "pictures"
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Example:
    """A text that was taken for something else: what it is, what was given, how surely, and the text or the pair."""

    true: str
    given: str
    probability: float
    texts: Sequence[str]


@dataclass(frozen=True)
class Examples:
    """Texts to read."""

    kind: ClassVar[str] = "examples"
    examples: Sequence[Example]


Block = Prose | Code | Facts | Table | Pictures | Examples


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Report:
    """A whole report: whose it is, the verdict, and the sections."""

    name: str
    about: str
    verdict: str
    sections: Sequence[Section]

    @property
    def claim(self) -> str:
        """The verdict up to its first colon or semicolon."""
        return re.split("(?<=[:;]) ", self.verdict, maxsplit=1)[0]

    @property
    def support(self) -> str:
        """The rest of the verdict."""
        return self.verdict.removeprefix(self.claim).strip()

    @property
    def pictures(self) -> list[Picture]:
        """All figures, in order."""
        groups = [block for section in self.sections for block in section.blocks if isinstance(block, Pictures)]
        return [picture for group in groups for picture in group.pictures]
