"""A search as figures: how it went, what matters, what accuracy costs."""

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lorafit.report.figures import legend_below, title_of
from lorafit.report.style import ADAPTED, BASE, BEST, WIDTH
from lorafit.sweep.trials import Trial


def history(trials: list[Trial], by: str) -> Figure:
    """Return each trial's score, and the best so far as a line."""
    figure = Figure(figsize=(WIDTH, 3.4))
    axes = figure.subplots()
    finished = [trial for trial in trials if trial.state == "finished"]
    best: list[float] = []
    for trial in finished:
        best.append(max([trial.score, *best[-1:]]))
    axes.step([trial.number + 1 for trial in finished], best, where="post", color=BEST, label="best so far")
    axes.plot([t.number + 1 for t in finished], [t.score for t in finished], "o", color=ADAPTED, label="trial")
    lowest = min(trial.score for trial in finished)
    others = [trial.number + 1 for trial in trials if trial.state in ("stopped early", "failed")]
    if others:
        axes.plot(others, [lowest] * len(others), "x", color=BASE, label="stopped early, or failed")
    axes.set(xlabel="trial", ylabel=f"validation {by}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    title_of(figure, "Scores by trial")
    legend_below(figure, axes.get_lines())
    return figure


def importance(shares: dict[str, float]) -> Figure:
    """Return the keys' shares as bars, the largest on top."""
    ordered = sorted(shares.items(), key=lambda item: item[1])
    figure = Figure(figsize=(WIDTH, 1.2 + 0.42 * len(ordered)))
    axes = figure.subplots()
    axes.barh([key for key, _ in ordered], [share for _, share in ordered], color=ADAPTED)
    for place, (_, share) in enumerate(ordered):
        axes.annotate(f"{share:.0%}", (share, place), (4, 0), textcoords="offset points", va="center")
    axes.set(xlabel="share of the score's variance", xlim=(0, 1.12 * max(share for _, share in ordered)))
    title_of(figure, "What the score depends on")
    return figure


def tradeoff(finished: list[Trial], best: Trial, by: str) -> Figure:
    """Return the score against seconds of training, and against the number of trained parameters."""
    figure = Figure(figsize=(WIDTH, 6.2))
    own = [trial for trial in finished if "same_as" not in trial.facts]
    for axes, (name, title) in zip(
        figure.subplots(2),
        {"seconds": "seconds of training", "trained_parameters": "trained parameters"}.items(),
        strict=True,
    ):
        costs, scores = [trial.facts[name] for trial in own], [trial.score for trial in own]
        axes.plot(costs, scores, "o", color=ADAPTED, label="trial")
        front = _front(costs, scores)
        axes.plot(*zip(*front, strict=True), color=BEST, drawstyle="steps-post", linewidth=1, label="cheapest for it")
        axes.plot([best.facts[name]], [best.score], "o", markersize=13, fillstyle="none", color=BEST, label="chosen")
        axes.set(xlabel=title, ylabel=f"validation {by}")
        if max(costs) > 20 * min(costs):
            axes.set_xscale("log")
    title_of(figure, "Accuracy against time and size")
    legend_below(figure, axes.get_lines())
    return figure


def _front(costs: list[float], scores: list[float]) -> list[tuple[float, float]]:
    """Return the points that no cheaper one reaches, the cheapest first."""
    front: list[tuple[float, float]] = []
    for cost, score in sorted(zip(costs, scores, strict=True), key=lambda point: (point[0], -point[1])):
        if not front or score > front[-1][1]:
            front.append((cost, score))
    return front
