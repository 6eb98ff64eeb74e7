"""The figures of a report, drawn from a run's record. `style.drawing` makes them look alike."""

import math
from collections.abc import Iterable, Sequence
from itertools import cycle, product
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from lorafit.report.style import ADAPTED, BASE, BEST, INK, LABELS, LINE, MUTED, PAPER, WIDTH, in_short

_DASHES = (), (5, 1.5), (1.2, 1.2), (6, 1.5, 1.2, 1.5), (3, 1.2, 1.2, 1.2, 1.2, 1.2)  # drawn and not, in widths
_WIDTHS = 1.4, 2.6
_SHORT = {
    "majority": "majority class",
    "base": "base, untrained head",
    "tfidf": "TF-IDF + log. regression",
    "frozen": "frozen + log. regression",
    "full": "full fine-tuning",
    "adapted": "LoRA",
}


def accuracy_bar(test: dict[str, Any]) -> Figure:
    """Return bars of accuracy and macro F1 with their 95% intervals: baselines, base, and the adapted model last.

    >>> accuracy_bar(run.scores["test"]).savefig("accuracy_bar.png")
    """
    found = {"base": test["base"], **test["baselines"], "adapted": test["adapted"]}
    names = [name for name in _SHORT if name in found]
    figure = Figure(figsize=(WIDTH, 1.1 + 0.52 * len(names)))
    axes = figure.subplots()
    for place, name in enumerate(reversed(names)):
        colour = ADAPTED if name == "adapted" else BASE
        _bar(axes, place + 0.19, found[name]["accuracy"], found[name]["accuracy_interval"], colour)
        _bar(axes, place - 0.19, found[name]["f1"], found[name]["f1_interval"], colour, faint=True)
    axes.set_yticks(range(len(names)), [_SHORT[name] for name in reversed(names)])
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 1.13)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    title_of(figure, f"Accuracy and macro F1 on {test['n']:,} test texts")
    kinds = [Patch(color=MUTED, label="accuracy"), Patch(color=MUTED, alpha=0.45, label="macro F1")]
    legend_below(figure, kinds)
    return figure


def _bar(axes: Axes, y: float, score: float, interval: Sequence[float], colour: str, faint: bool = False) -> None:
    axes.barh(y, score, 0.36, color=colour, alpha=0.45 if faint else 1)
    axes.plot(interval, [y, y], color=INK, linewidth=1.2)
    at = max(score, interval[1])
    axes.annotate(f"{score:.3f}", (at, y), (4, 0), textcoords="offset points", va="center", fontsize=9)


def accuracy_line(validations: list[dict[str, Any]], best_epoch: int) -> Figure:
    """Return validation accuracy by epoch; epoch 0, before training, is the base and stays as a line."""
    figure = Figure(figsize=(WIDTH, 3.4))
    axes = figure.subplots()
    epochs = [line["epoch"] for line in validations]
    accuracy = [line["validation"]["accuracy"] for line in validations]
    best = epochs.index(best_epoch)
    axes.axhline(accuracy[0], color=BASE, linestyle="--", label="base")
    axes.plot(epochs, accuracy, color=ADAPTED, marker="o", label="LoRA")
    circle: dict[str, Any] = {"markersize": 13, "fillstyle": "none", "color": BEST, "label": "best epoch, kept"}
    axes.plot(epochs[best], accuracy[best], "o", **circle)
    label = f"{accuracy[best]:.3f}"
    axes.annotate(label, (epochs[best], accuracy[best]), (0, 11), textcoords="offset points", ha="center")
    axes.set_xlabel("epoch")
    axes.set_xticks(epochs if len(epochs) <= 12 else epochs[:: len(epochs) // 8])
    axes.set_ylim(min(0.4, *accuracy) - 0.02, 1.06)
    title_of(figure, "Validation accuracy by epoch")
    legend_below(figure, axes.get_lines())
    return figure


def reliability(calibration: dict[str, Any]) -> Figure:
    """Return how often answers of each confidence are right, before and after the temperature, over their counts.

    Perfect calibration lies on the diagonal (Guo et al. 2017, arXiv:1706.04599).
    """
    figure = Figure(figsize=(WIDTH, 4.7))
    axes, counts = figure.subplots(2, sharex=True, height_ratios=(4, 1))
    axes.plot([0, 1], [0, 1], color=MUTED, linestyle=":", linewidth=1, label="perfect")
    for which, colour, mark in (("before", BASE, "s--"), ("after", ADAPTED, "o-")):
        bins = _filled(calibration[f"bins_{which}"])
        points = [line["confidence"] for line in bins], [line["accuracy"] for line in bins]
        axes.plot(*points, mark, color=colour, markersize=5, label=f"{which}: ECE {calibration[f'ece_{which}']:.3f}")
    bins = _filled(calibration["bins_after"])
    width = 0.8 / max(15, len(bins))
    counts.bar([line["confidence"] for line in bins], [line["count"] for line in bins], width, color=ADAPTED)
    axes.set(ylim=(0, 1.03), ylabel="share that is right")
    title_of(figure, "Confidence against accuracy")
    counts.set(xlabel="confidence: the probability of the label given", ylabel="answers", xlim=(0, 1.03))
    legend_below(figure, axes.get_lines())
    return figure


def _filled(bins: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in bins if line["count"]]


def confusion(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> Figure:
    """Return the confusion matrix: counts, shaded by the share of each true label's texts."""
    size, names = len(labels), in_short(labels)
    longest = max(map(len, names))
    side = max(WIDTH, 0.9 + 0.075 * longest + 0.42 * size)
    figure = Figure(figsize=(side, side if size > 6 else 0.8 * side))
    axes = figure.subplots()
    for true, given in product(range(size), repeat=2):
        share = counts[true][given] / max(1, sum(counts[true]))
        axes.add_patch(Rectangle((given - 0.5, true - 0.5), 1, 1, facecolor=ADAPTED, alpha=share, linewidth=0))
        colour = PAPER if share > 0.7 else INK if share else MUTED
        text = f"{counts[true][given]:,}"
        axes.text(given, true, text, color=colour, ha="center", va="center", fontsize=10 if size <= 8 else 8)
    axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), xlabel="predicted", ylabel="true")
    upright = size > 4 or longest > 12
    axes.set_xticks(range(size), names, rotation=90 if upright else 0)
    axes.set_yticks(range(size), names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    title_of(figure, "Confusion matrix: texts")
    return figure


def roc(curves: dict[str, Any], mean: dict[str, Any] | None = None) -> Figure:
    """Return the receiver operating characteristic of each label against all others, and of their mean, if given."""
    figure, axes = _square()
    axes.plot([0, 1], [0, 1], color=MUTED, linestyle=":", linewidth=1)
    drawn = [*curves.values(), *([mean] if mean else [])]
    lines = [
        axes.plot(curve["roc"]["fpr"], curve["roc"]["tpr"], **look)[0]
        for curve, look in zip(drawn, _looks(len(curves)), strict=False)
    ]
    axes.set(xlabel="share of other texts given the label", ylabel="share of its own texts given it")
    title_of(figure, "ROC curves")
    legend_below(figure, lines, _numbered(curves, [curve["roc"]["auc"] for curve in drawn]))
    return figure


def precision_recall(curves: dict[str, Any], mean: dict[str, Any] | None = None) -> Figure:
    """Return precision against recall of each label against all others, and of their mean, if given.

    In steps, between which there is nothing: average precision is the area under them.
    """
    figure, axes = _square()
    drawn = [*curves.values(), *([mean] if mean else [])]
    lines = [
        axes.plot(curve["pr"]["recall"], curve["pr"]["precision"], drawstyle="steps-post", **look)[0]
        for curve, look in zip(drawn, _looks(len(curves)), strict=False)
    ]
    axes.set(xlabel="recall", ylabel="precision")
    title_of(figure, "Precision-recall curves")
    legend_below(figure, lines, _numbered(curves, [curve["pr"]["average_precision"] for curve in drawn]))
    return figure


def _numbered(labels: Iterable[str], areas: Sequence[float]) -> list[str]:
    """Return what each line is called: the labels' names, and the mean after them."""
    return [f"{name}  {area:.3f}" for name, area in zip([*in_short(labels), "mean of all"], areas, strict=False)]


def _square() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, 4.8))
    axes = figure.subplots()
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
    axes.grid(linewidth=0.6)
    return figure, axes


def _looks(lines: int) -> list[dict[str, Any]]:
    """Return how up to ten lines are told apart, by colour and also without; and last a line for their mean."""
    strokes = [(width, dash) for width in _WIDTHS for dash in _DASHES]
    looks = [
        {"color": colour, "linewidth": width, "linestyle": (0, dash)}
        for colour, (width, dash) in zip(cycle(LABELS), strokes, strict=False)
    ]
    return [*looks[:lines], {"color": INK, "linewidth": 3}]


def by_length(bins: Sequence[dict[str, Any]]) -> Figure:
    """Return accuracy by the length of the texts in tokens, with 95% intervals."""
    figure = Figure(figsize=(WIDTH, 3.4))
    axes = figure.subplots()
    for place, line in enumerate(bins):
        axes.plot([place, place], line["accuracy_interval"], color=INK, linewidth=1.2)
        axes.plot(place, line["accuracy"], "o", color=ADAPTED, markersize=7)
        text = f"{line['accuracy']:.3f}"
        axes.annotate(text, (place, line["accuracy"]), (8, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_xticks(range(len(bins)), [f"{line['from_tokens']}–{line['to_tokens']}" for line in bins])
    lowest = min(line["accuracy_interval"][0] for line in bins)
    axes.set(
        xlim=(-0.5, len(bins) - 0.25),
        ylim=(max(0, lowest - 0.05), 1.01),
        xlabel="tokens of the whole text",
        ylabel="accuracy",
    )
    axes.grid(axis="y", linewidth=0.6, color=LINE)
    title_of(figure, "Accuracy by length")
    return figure


def title_of(figure: Figure, title: str) -> None:
    """Put a figure's title on its left."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")


def legend_below(figure: Figure, lines: Sequence[Line2D | Patch], names: Sequence[str] | None = None) -> None:
    """Put a legend under a figure, which grows by it."""
    names = names or [str(line.get_label()) for line in lines]
    longest = max(map(len, names))
    columns = 3 if longest < 18 else 2 if longest < 30 else 1
    figure.set_figheight(figure.get_figheight() + 0.17 * math.ceil(len(names) / columns))
    figure.legend(
        lines, names, loc="outside lower center", ncols=columns, fontsize=9, columnspacing=1.4, handlelength=3
    )
