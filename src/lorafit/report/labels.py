"""What a report says of each label: scores, what it is confused with, and its curves."""

from collections.abc import Sequence
from typing import Any

from lorafit.report import figures
from lorafit.report.blocks import Block, Picture, Pictures, Prose, Section, Table

MOST_DRAWN = 20  # labels in a heat map; more can't be read
MOST_CURVES = 10
MOST_PAIRS = 20
_FIRST = 10


def labels_section(test: dict[str, Any]) -> Section:
    """Return the section about labels: table, confusion, curves."""
    return Section("Labels", [_table(test), *_confusion(test), *_curves(test.get("curves", {}))])


def _table(test: dict[str, Any]) -> Table:
    """Return a line a label; of many labels the worst come first, and the others are folded away."""
    found, curves, thresholds = test["per_class"], test.get("curves", {}), test.get("thresholds")
    labels = list(found)
    many = len(labels) > MOST_DRAWN
    rows = [_row(label, found[label], curves.get(label)) for label in labels]
    if thresholds is not None:
        rows = [[*row, f"{limit:.2f}"] for row, limit in zip(rows, thresholds, strict=True)]
    if many:
        order = sorted(range(len(labels)), key=lambda place: found[labels[place]]["f1"])
        rows = [rows[place] for place in order]
    headers = ["label", "precision", "recall", "F1", "texts", "ROC area", "average precision"]
    caption = f"Each of {len(labels)} labels{', lowest F1 first' if many else ''}"
    return Table(caption, headers + ["threshold"] * (thresholds is not None), rows, shown=_FIRST if many else len(rows))


def _row(label: str, found: dict[str, float], curves: dict[str, Any] | None) -> list[str]:
    areas = ["", ""]
    if curves is not None:
        areas = [f"{curves['roc']['auc']:.3f}", f"{curves['pr']['average_precision']:.3f}"]
    scores = [f"{found[key]:.3f}" for key in ("precision", "recall", "f1")]
    return [label, *scores, f"{found['support']:,.0f}", *areas]


def _confusion(test: dict[str, Any]) -> list[Block]:
    labels, confusion = test["labels"], test["confusion"]
    if test["task"] == "multi_label":
        return [_each_confusion(confusion)]
    blocks: list[Block] = [_pairs(labels, confusion)] if len(labels) > 2 else []
    if len(labels) <= MOST_DRAWN:
        blocks.insert(0, Pictures([_matrix(labels, confusion)]))
    return blocks


def _matrix(labels: Sequence[str], confusion: Sequence[Sequence[int]]) -> Picture:
    right, n = sum(row[place] for place, row in enumerate(confusion)), sum(map(sum, confusion))
    return Picture(
        "confusion",
        figures.confusion(labels, confusion),
        f"Confusion matrix of {len(labels)} labels: {right:,} of {n:,} texts lie on the diagonal, which is right.",
        "Rows are true labels, columns the labels given. The fuller its colour, the larger a cell’s share of the row.",
    )


def _pairs(labels: Sequence[str], confusion: Sequence[Sequence[int]]) -> Table:
    wrong = [
        (count, true, given)
        for true, row in enumerate(confusion)
        for given, count in enumerate(row)
        if count and true != given
    ]
    wrong.sort(key=lambda pair: -pair[0])
    rows = [
        [labels[true], labels[given], f"{count:,}", f"{count / sum(confusion[true]):.1%}"]
        for count, true, given in wrong[:MOST_PAIRS]
    ]
    headers = ("true", "predicted", "texts", "of its texts")
    return Table("The most confused pairs of labels", headers, rows, text_columns=2, shown=_FIRST)


def _each_confusion(confusion: dict[str, Sequence[Sequence[int]]]) -> Table:
    """Return a line a label of what a text with several labels can have right and wrong."""
    rows = [
        [label, f"{hit:,}", f"{missed:,}", f"{false:,}", f"{absent:,}"]
        for label, ((absent, false), (missed, hit)) in confusion.items()
    ]
    headers = ("label", "rightly given", "missed", "wrongly given", "rightly not given")
    shown = _FIRST if len(rows) > MOST_DRAWN else len(rows)
    return Table("Texts by what was given and what is true", headers, rows, shown=shown)


def _curves(curves: dict[str, Any]) -> list[Block]:
    if not curves:
        return []
    roc = sum(curve["roc"]["auc"] for curve in curves.values()) / len(curves)
    average = sum(curve["pr"]["average_precision"] for curve in curves.values()) / len(curves)
    said = Prose(
        f"Mean over {len(curves)} labels, each against all others: area under the ROC curve {roc:.3f}, average "
        f"precision {average:.3f}."
    )
    return [said, Pictures(_drawn(curves))] if len(curves) <= MOST_CURVES else [said]


def _drawn(curves: dict[str, Any]) -> list[Picture]:
    areas = ", ".join(f"{label} {curve['roc']['auc']:.3f}" for label, curve in curves.items())
    averages = ", ".join(f"{label} {curve['pr']['average_precision']:.3f}" for label, curve in curves.items())
    return [
        Picture(
            "roc",
            figures.roc(curves),
            f"ROC curves; area under each: {areas}.",
            "The nearer to the upper left corner, the better; the dotted line is chance. Numbers are areas.",
        ),
        Picture(
            "precision_recall",
            figures.precision_recall(curves),
            f"Precision-recall curves; average precision: {averages}.",
            "The nearer to the upper right corner, the better. Numbers are average precisions.",
        ),
    ]
