"""What a report says of each label: scores with intervals, what it is confused with, and its curves."""

from collections.abc import Sequence
from typing import Any

from lorafit.intervals import as_interval
from lorafit.report import figures
from lorafit.report.blocks import Block, Picture, Pictures, Prose, Section, Table

MOST_DRAWN = 20  # labels in a heat map; more can't be read
MOST_CURVES = 10
WORST_CURVES = 5  # drawn where all would be too many
MOST_PAIRS = 20
_FIRST = 10
_INTERVAL = "95% interval"


def labels_section(test: dict[str, Any]) -> Section:
    """Return the section about labels: table, confusion, curves."""
    return Section("Labels", [_table(test), *_confusion(test), *_curves(test)])


def _table(test: dict[str, Any]) -> Table:
    """Return a line a label; of many labels the worst come first, and the others are folded away."""
    found, thresholds = test["per_class"], test.get("thresholds")
    labels = list(found)
    many = len(labels) > MOST_DRAWN
    rows = [_row(label, found[label]) for label in labels]
    if thresholds is not None:
        rows = [[*row, f"{limit:.2f}"] for row, limit in zip(rows, thresholds, strict=True)]
    if many:
        order = sorted(range(len(labels)), key=lambda place: found[labels[place]]["f1"])
        rows = [rows[place] for place in order]
    headers = ["label", "texts"] + [cell for name in ("precision", "recall", "F1") for cell in (name, _INTERVAL)]
    caption = f"Each of {len(labels)} labels{', lowest F1 first' if many else ''}"
    return Table(caption, headers + ["threshold"] * (thresholds is not None), rows, shown=_FIRST if many else len(rows))


def _row(label: str, found: dict[str, Any]) -> list[str]:
    scores = [cell for key in ("precision", "recall", "f1") for cell in _with_interval(found, key)]
    return [label, f"{found['support']:,.0f}", *scores]


def _with_interval(found: dict[str, Any], key: str) -> list[str]:
    """Return a score and its interval; there is none where the score is not defined."""
    interval = found[f"{key}_interval"]
    return [f"{found[key]:.3f}", as_interval(interval) if interval else "none"]


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


def _curves(test: dict[str, Any]) -> list[Block]:
    """Return the areas of all labels and their mean, and the curves: of many labels the worst and the mean."""
    curves = test.get("curves", {})
    if not curves:
        return []
    mean, many = test["macro_curves"], len(curves) > MOST_CURVES
    area, average = _with_interval(mean["roc"], "auc"), _with_interval(mean["pr"], "average_precision")
    said = Prose(
        f"Mean over {len(curves)} labels, each against all others: area under the ROC curve {area[0]} ({_INTERVAL} "
        f"{area[1]}), average precision {average[0]} ({average[1]})."
    )
    worst = sorted(curves, key=lambda label: curves[label]["pr"]["average_precision"])
    if many:
        return [said, Pictures(_drawn({label: curves[label] for label in worst[:WORST_CURVES]}, mean)), _areas(curves)]
    return [said, Pictures(_drawn(curves)), _areas(curves)]


def _areas(curves: dict[str, Any]) -> Table:
    many = len(curves) > MOST_DRAWN
    rows = [
        [label, *_with_interval(curve["roc"], "auc"), *_with_interval(curve["pr"], "average_precision")]
        for label, curve in curves.items()
    ]
    if many:
        rows.sort(key=lambda row: curves[row[0]]["pr"]["average_precision"])
    headers = ("label", "ROC area", _INTERVAL, "average precision", _INTERVAL)
    caption = f"The curves’ areas{', lowest average precision first' if many else ''}"
    return Table(caption, headers, rows, shown=_FIRST if many else len(rows))


def _drawn(curves: dict[str, Any], mean: dict[str, Any] | None = None) -> list[Picture]:
    which = f" The {len(curves)} labels with the lowest average precision, and the mean of all." if mean else ""
    shown = curves | ({"the mean of all": mean} if mean else {})
    areas = ", ".join(f"{label} {curve['roc']['auc']:.3f}" for label, curve in shown.items())
    averages = ", ".join(f"{label} {curve['pr']['average_precision']:.3f}" for label, curve in shown.items())
    return [
        Picture(
            "roc",
            figures.roc(curves, mean),
            f"ROC curves; area under each: {areas}.",
            f"The nearer to the upper left corner, the better; the dotted line is chance. Numbers are areas.{which}",
        ),
        Picture(
            "precision_recall",
            figures.precision_recall(curves, mean),
            f"Precision-recall curves; average precision: {averages}.",
            f"The nearer to the upper right corner, the better. Numbers are average precisions.{which}",
        ),
    ]
