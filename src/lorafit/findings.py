"""What to say about texts and labels before training: one function a question, each over rows.

An error is what training refuses, or what would make its score wrong. A warning is worth a look, a note good to know.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from lorafit import duplicates
from lorafit.data import TAG

Severity = Literal["error", "warning", "note"]
FEWEST_TEXTS = 5  # of a class
_IMBALANCE = 10  # texts of the commonest class for one of the rarest
_EXAMPLES = 2
_NAMED = 5  # classes
_SHOWN_CHARACTERS = 70
_SHOWN_MARKUP = 16

# What the bytes 0x80 to 0xBF of UTF-8 become when they are taken for Windows-1252, or for Latin-1 where that has gaps.
_TAIL = re.escape("".join(bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in range(0x80, 0xC0)))
_ENCODING_FAULTS = {
    "lost characters": (re.compile("\ufffd"), "hold U+FFFD, which stands where a character was lost"),
    "wrong encoding": (
        re.compile(f"[ÂÃÐÑ][{_TAIL}]|â[{_TAIL}]{{2}}|ð[{_TAIL}]{{3}}"),
        "look like UTF-8 that was read as Windows-1252",
    ),
    "control characters": (
        re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"),
        "hold control characters; \\x80 to \\x9f are as a rule the quotes and dashes of Windows-1252, read as Latin-1",
    ),
}
_UNSHOWN = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_ENTITY = re.compile(r"&(?:[a-zA-Z]{2,8}|#\d{1,6}|#[xX][\da-fA-F]{1,5});")


class Row(NamedTuple):
    """One text with its labels, and where it stands."""

    number: int  # from 1, counted after the header
    text: str
    labels: tuple[str, ...]
    split: str = ""  # empty: in none
    own: str = ""  # "validation" or "test": it stands in that split's own source
    own_source: str = ""  # the name of that

    @property
    def place(self) -> str:
        """Where to find it: "row 7", or "test.csv row 7"."""
        return f"{self.own_source} row {self.number}".lstrip()


@dataclass(frozen=True)
class Finding:
    """Something to know about the data."""

    severity: Severity
    about: str
    sentence: str
    texts: int = 0  # how many it is about
    examples: list[str] = field(default_factory=list)


def too_few(rows: Sequence[Row], labels: Sequence[str]) -> list[Finding]:
    """Warn of classes with fewer than five texts, and of a class ten times as common as another."""
    counts = Counter(label for row in rows for label in row.labels)
    found = []
    rare = {label: counts[label] for label in labels if counts[label] < FEWEST_TEXTS}
    if rare:
        sentence = (
            f"{_of(len(rare), 'class has', 'classes have')} fewer than {FEWEST_TEXTS} texts: {_named(rare)}. "
            "No score of so few means anything: find more, or join classes."
        )
        found.append(Finding("warning", "rare classes", sentence, sum(rare.values())))
    if not counts:
        return found
    (common, most), (least_common, least) = counts.most_common()[0], counts.most_common()[-1]
    if most >= _IMBALANCE * least:
        sentence = (
            f"{common!r} has {most:,} texts, {least_common!r} {least:,}. Read macro F1 rather than accuracy; "
            'training.class_weights = "balanced" lets the rare ones count as much.'
        )
        found.append(Finding("warning", "imbalance", sentence, len(rows)))
    return found


def missing_classes(rows: Sequence[Row], labels: Sequence[str]) -> list[Finding]:
    """Say which classes a split has no text of: an error in train, where nothing can be learned of them."""
    found = []
    for split in dict.fromkeys(row.split for row in rows if row.split):
        there = {label for row in rows if row.split == split for label in row.labels}
        missing = [label for label in labels if label not in there]
        if missing:
            severity: Severity = "error" if split == "train" else "warning"
            why = "nothing can be learned of it" if split == "train" else "its score says nothing of them"
            sentence = f"No {split} text has the label {_listed(missing)}: {why}."
            found.append(Finding(severity, "missing classes", sentence))
    return found


def leaks(rows: Sequence[Row]) -> list[Finding]:
    """Say which texts of a split's own source stand in that of another split too: its score would be too good."""
    pairs = (("validation", ""), ("test", ""), ("test", "validation"))
    return [finding for one, other in pairs for finding in _leaks(rows, one, other)]


def _leaks(rows: Sequence[Row], one: str, other: str) -> list[Finding]:
    known = {row.text: row for row in rows if row.own == other}
    twice = [row for row in rows if row.own == one and row.text in known]
    if not twice:
        return []
    sentence = (
        f"{_texts(twice)} of the {one} source {'stands' if len(twice) == 1 else 'stand'} in the "
        f"{other or 'training'} source too. Take them out of one of the two."
    )
    return [_finding("error", "leak", sentence, twice, lambda row: _pair(row, known[row.text]))]


def repeated(rows: Sequence[Row]) -> list[Finding]:
    """Note the texts that stand more than once in one source."""
    first: dict[tuple[str, str], Row] = {}
    for row in rows:
        first.setdefault((row.own, row.text), row)
    extra = [row for row in rows if first[row.own, row.text] is not row]
    if not extra:
        return []
    sentence = (
        f"{_texts(extra)} {'is' if len(extra) == 1 else 'are'} the same as an earlier one. "
        "Our splits keep identical texts together."
    )
    return [_finding("note", "duplicates", sentence, extra, lambda row: _pair(first[row.own, row.text], row))]


def contradictions(rows: Sequence[Row]) -> list[Finding]:
    """Warn of texts that stand there with different labels."""
    groups = [group for group in _same(rows) if len({row.labels for row in group}) > 1]
    if not groups:
        return []
    sentence = (
        f"{_of(len(groups), 'text stands', 'texts stand')} there with different labels. At most one of them is right."
    )
    examples = [quoted(group[0].text, " and ".join(_labelled(_one_a_label(group)))) for group in groups]
    return [Finding("warning", "contradictions", sentence, sum(map(len, groups)), examples[:_EXAMPLES])]


def near_duplicates(rows: Sequence[Row]) -> list[Finding]:
    """Note the texts that are nearly the same, warn where they stand in train and in another split."""
    same = {group[0].text: group for group in _same(rows)}
    texts = list(same)
    alike = [[row for place in group for row in same[texts[place]]] for group in duplicates.find(texts).groups]
    if not alike:
        return []
    members = [row for group in alike for row in group]
    other = sum(len({row.labels for row in group}) > 1 for group in alike)
    sentence = (
        f"{_texts(members)} are nearly the same as another, in {_of(len(alike), 'group', 'groups')}"
        + (f"; {other:,} of these {'holds' if other == 1 else 'hold'} different labels" if other else "")
        + "."
    )
    examples = [quoted(group[0].text, " and ".join(_labelled([group[0], group[-1]]))) for group in alike]
    found = [Finding("note", "near duplicates", sentence, len(members), examples[:_EXAMPLES])]
    return [*_across_splits(alike), *found]


def _across_splits(alike: list[list[Row]]) -> list[Finding]:
    trained = {id(group): row for group in alike for row in group if row.split == "train"}
    held_out = [(group, row) for group in alike for row in group if id(group) in trained]
    twins = {row: trained[id(group)] for group, row in held_out if row.split in ("validation", "test")}
    if not twins:
        return []
    counts = Counter(row.split for row in twins)
    sentence = (
        f"{' and '.join(f'{count:,} {split}' for split, count in counts.items())} "
        f"{'text has' if len(twins) == 1 else 'texts have'} a near duplicate in train: their score is too good. "
        "Keep one of each group."
    )
    return [_finding("warning", "near duplicates", sentence, list(twins), lambda row: _pair(twins[row], row))]


def encodings(rows: Sequence[Row]) -> list[Finding]:
    """Warn of texts that were damaged on their way: lost characters, a wrong encoding, control characters."""
    found = []
    for about, (pattern, sentence) in _ENCODING_FAULTS.items():
        hits = {row: match.start() for row in rows if (match := pattern.search(row.text))}
        if hits:
            one = sentence.replace("hold", "holds").replace("look", "looks")
            said = f"{_texts(hits)} {one if len(hits) == 1 else sentence}."
            examples = [quoted(row.text, row.place, start) for row, start in hits.items()]
            found.append(Finding("warning", about, said, len(hits), examples[:_EXAMPLES]))
    return found


def markup(rows: Sequence[Row], html: str) -> list[Finding]:
    """Note the share of texts with tags such as ``<br />``, and with entities such as ``&amp;``."""
    found = []
    kept = 'data.html = "strip" takes them out' if html == "keep" else "they are taken out"
    for about, pattern, what_then in (("tags", TAG, kept), ("entities", _ENTITY, "nothing turns them into characters")):
        hits = [match.group()[:_SHOWN_MARKUP] for row in rows if (match := pattern.search(row.text))]
        if hits:
            most = ", ".join(mark for mark, _ in Counter(hits).most_common(3))
            sentence = f"{len(hits):,} of {_texts(rows)} hold HTML {about} ({most}); {what_then}."
            found.append(Finding("note", f"HTML {about}", sentence, len(hits)))
    return found


def _same(rows: Iterable[Row]) -> list[list[Row]]:
    groups: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.text].append(row)
    return list(groups.values())


def _one_a_label(rows: Iterable[Row]) -> list[Row]:
    return list({row.labels: row for row in rows}.values())


def _labelled(rows: Iterable[Row]) -> list[str]:
    return [f"{row.place} ({', '.join(row.labels) or 'no label'})" for row in rows]


def _pair(one: Row, other: Row) -> str:
    return f"{one.place} and {other.place}"


def _finding(
    severity: Severity, about: str, sentence: str, rows: Sequence[Row], place: Callable[[Row], str]
) -> Finding:
    examples = [quoted(row.text, place(row)) for row in rows[:_EXAMPLES]]
    return Finding(severity, about, sentence, len(rows), examples)


def quoted(text: str, place: str, start: int = 0) -> str:
    """Return the place and a piece of the text, from a little before `start`, on one line."""
    first = max(0, start - _SHOWN_CHARACTERS // 2)
    piece = text[first : first + _SHOWN_CHARACTERS]
    before, after = "..." if first else "", "..." if first + len(piece) < len(text) else ""
    shown = _UNSHOWN.sub(lambda mark: f"\\x{ord(mark.group()):02x}", " ".join(piece.split()))
    return f'{place}: "{before}{shown}{after}"'


def _of(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _texts(texts: Sequence[Row] | dict[Row, int]) -> str:
    return _of(len(texts), "text", "texts")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(repr(name) for name in names[:_NAMED]) + more


def _named(counts: dict[str, int]) -> str:
    more = f" and {len(counts) - _NAMED} more" if len(counts) > _NAMED else ""
    return ", ".join(f"{name!r} ({count})" for name, count in list(counts.items())[:_NAMED]) + more
