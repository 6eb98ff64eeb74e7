"""A run -> figures and a report that can be read without us."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lorafit.files import storing
from lorafit.runs import Run

# Okabe and Ito's blue and vermillion stay apart for colour-blind readers; grey is for what was there before.
BASE, ADAPTED, LOSS = "#8a8f98", "#0072b2", "#d55e00"
_STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 13,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "savefig.dpi": 160,
}
UNTRAINED = "the same encoder with an untrained head"


def write(run: Run) -> Path:
    """Write `report.md` and the figures of an evaluated run; returns the report's path.

    Raises:
        StorageError: a disk that is full or not writable.
    """
    scores = run.scores
    assert scores is not None
    with storing(run.path), mpl.rc_context(_STYLE):
        (run.path / "figures").mkdir(exist_ok=True)
        accuracy_bar(scores["test"]).savefig(run.path / "figures" / "accuracy_bar.png")
        accuracy_line(run.validations, run.record["best_epoch"]).savefig(run.path / "figures" / "accuracy_line.png")
    run.write("report.md", _markdown(run, scores["test"]))
    return run.path / "report.md"


def accuracy_bar(test: dict[str, Any]) -> Figure:
    """Return the bars before and after: accuracy and macro F1 on the test texts."""
    figure = Figure(figsize=(6.4, 4))
    axes = figure.subplots()
    for offset, (who, colour) in zip((-0.19, 0.19), (("base", BASE), ("adapted", ADAPTED)), strict=True):
        heights = [test[who]["accuracy"], test[who]["f1"]]
        bars = axes.bar([x + offset for x in range(2)], heights, 0.36, color=colour, label=who)
        axes.bar_label(bars, labels=[f"{height:.3f}" for height in heights], padding=2)
    axes.set_xticks([0, 1], ["accuracy", "macro F1"])
    axes.set_ylim(0, 1.08)
    axes.set_title(f"Before and after, {test['n']:,} test texts")
    _legend_below(axes)
    return figure


def accuracy_line(validations: list[dict[str, Any]], best_epoch: int) -> Figure:
    """Return validation accuracy by epoch; epoch 0, before training, is the base and stays as a line."""
    figure = Figure(figsize=(6.4, 4))
    axes = figure.subplots()
    epochs = [line["epoch"] for line in validations]
    accuracy = [line["validation"]["accuracy"] for line in validations]
    best = epochs.index(best_epoch)
    axes.axhline(accuracy[0], color=BASE, linestyle="--", label="base")
    axes.plot(epochs, accuracy, color=ADAPTED, marker="o", label="adapted")
    axes.plot(
        epochs[best],
        accuracy[best],
        "o",
        markersize=13,
        fillstyle="none",
        color=LOSS,
        label="best epoch, kept",
    )
    axes.annotate(
        f"{accuracy[best]:.3f}",
        (epochs[best], accuracy[best]),
        (0, 12),
        textcoords="offset points",
        ha="center",
    )
    axes.set_xlabel("epoch")
    axes.set_xticks(epochs if len(epochs) <= 12 else epochs[:: len(epochs) // 8])
    axes.set_ylim(min(0.4, *accuracy) - 0.02, 1.02)
    axes.set_title("Validation accuracy by epoch")
    _legend_below(axes)
    return figure


def _legend_below(axes: Axes) -> None:
    axes.figure.legend(loc="outside lower center", ncols=3, frameon=False)


def four_lines(test: dict[str, Any]) -> list[str]:
    """Return base accuracy, adapted accuracy, improvement and relative improvement, as the demo project A says them."""
    relative = test["relative_improvement"]
    return [
        f"Base accuracy:         {test['base']['accuracy']:.4f}   ({UNTRAINED})",
        f"Adapted accuracy:      {test['adapted']['accuracy']:.4f}",
        f"Improvement:           {test['improvement_points']:.2f} percentage points",
        f"Relative improvement:  {'not defined' if relative is None else f'{relative:.2%}'}",
    ]


def _markdown(run: Run, test: dict[str, Any]) -> str:
    record = run.record
    scores = "\n".join(
        f"| {who} | " + " | ".join(f"{test[who][key]:.4f}" for key in ("accuracy", "f1", "precision", "recall")) + " |"
        for who in ("base", "adapted")
    )
    return _TEMPLATE.format(
        recipe=run.recipe,
        record=record,
        packages=record["machine"]["packages"],
        n=test["n"],
        four_lines="\n".join(four_lines(test)),
        scores=scores,
        untrained=UNTRAINED,
        adapter_kilobytes=record["adapter_bytes"] / 1000,
        peak_gigabytes=record["peak_memory_bytes"] / 1e9,
    )


_TEMPLATE = """\
# {recipe.name}

{recipe.encoder.name} with {recipe.adapter}, trained on
{record[texts][train]:,} texts of {recipe.data.source}. The best of {record[epochs]} epochs (number
{record[best_epoch]}) was chosen on {record[texts][validation]:,} validation texts; the scores below are on {n:,} test
texts, looked at once.

```
{four_lines}
```

| | accuracy | macro F1 | macro precision | macro recall |
|---|---|---|---|---|
{scores}

*base* is {untrained}: what the adapter started from, not what the encoder could do.

![Accuracy and macro F1, base and adapted](figures/accuracy_bar.png)

![Validation accuracy by epoch, the base as a line](figures/accuracy_line.png)

## Cost

* {record[parameters][trainable]:,} of {record[parameters][total]:,} parameters trained; the adapter's weights take
  {adapter_kilobytes:,.0f} kB.
* {record[seconds]:,.0f} s of training, {record[steps]:,} steps, {record[tokens]:,} tokens, peak memory
  {peak_gigabytes:.1f} GB.
* {record[runtime][device]}, {record[runtime][threads]} threads, {record[runtime][precision]}
  ({record[runtime][reason]}); {record[machine][processor]}, {record[machine][cores]} cores;
  torch {packages[torch]}, transformers {packages[transformers]}, peft {packages[peft]}.

Seed {recipe.seed}. The whole recipe stands in `recipe.toml`; `lorafit train recipe.toml` repeats the run.
"""
