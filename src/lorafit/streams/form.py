"""What a file is, by its name."""

from dataclasses import dataclass
from pathlib import Path

from lorafit.errors import DataError
from lorafit.streams.compression import CODECS
from lorafit.tables import SUFFIXES


@dataclass(frozen=True)
class Form:
    """`kind` is ".csv", ".tsv", ".jsonl" or ".parquet"; `codec` is such as ".gz", or "" for none."""

    kind: str
    codec: str = ""

    def __str__(self) -> str:
        return (self.kind + self.codec)[1:].upper()


def form_of(file: Path) -> Form:
    """Return what a file is by its name.

    Raises:
        DataError: an unknown format.

    >>> form_of(Path("reviews.csv.gz"))
    Form(kind='.csv', codec='.gz')
    """
    suffixes = [suffix.lower() for suffix in file.suffixes]
    codec = suffixes.pop() if suffixes and suffixes[-1] in CODECS else ""
    kind = suffixes[-1] if suffixes else ""
    if kind not in SUFFIXES or (codec and kind == ".parquet"):
        raise DataError(
            f"{file} has an unknown format; lorafit reads and writes {', '.join(SUFFIXES)}, "
            f"and all but Parquet compressed: {', '.join(CODECS)}."
        )
    return Form(kind, codec)
