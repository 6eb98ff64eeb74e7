"""Results as text on standard output: an evaluation, seeds, a comparison."""

import sys
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def print_evaluation(test: dict[str, Any]) -> None:
    """Print what `scores.json` holds under "test": what LoRA does not beat first, if there is such a baseline."""
    from lorafit import report

    for name in test["beaten_by"]:
        baseline, adapted = test["baselines"][name]["accuracy"], test["adapted"]["accuracy"]
        typer.echo(f"LoRA does not beat {_described(name)}: {adapted:.4f} against {baseline:.4f}.")
    typer.echo("\n".join(report.four_lines(test)) + "\n")
    low, high = test["improvement_interval"]
    typer.echo(f"Improvement, 95% interval: {low:.2f} to {high:.2f} points; McNemar's p: {_p(test['mcnemar_p'])}")
    rows = table("", "accuracy", "95% interval", "macro F1", "95% interval", "precision", "recall")
    for who in ("base", "adapted"):
        found = test[who]
        rows.add_row(who, *_with_intervals(found), f"{found['precision']:.4f}", f"{found['recall']:.4f}")
    for name, found in test["baselines"].items():
        rows.add_row(_described(name), *_with_intervals(found), "", "")
    stdout().print(rows)
    calibration = test["calibration"]
    typer.echo(
        f"\non {test['n']:,} test texts; precision and recall are macro averages. Expected calibration error "
        f"{calibration['ece_after']:.4f}, {calibration['ece_before']:.4f} before temperature "
        f"{calibration['temperature']:.3g}."
    )


def print_seeds(seeds: dict[str, Any]) -> None:
    """Print what `seeds.train` returns."""
    rows = table("seed", "run", "base", "accuracy", "macro F1", "time")
    for one in seeds["runs"]:
        scores = (f"{one[key]:.4f}" for key in ("base_accuracy", "accuracy", "f1"))
        rows.add_row(str(one["seed"]), one["path"], *scores, f"{one['seconds']:,.0f} s")
    stdout().print(rows)
    typer.echo(
        f"\naccuracy {_spread(seeds['accuracy'])}, macro F1 {_spread(seeds['f1'])}: mean ± standard deviation over "
        f"{seeds['n']} seeds. {seeds['note']}"
    )


def print_compared(compared: dict[str, Any]) -> None:
    """Print what `comparison.compare` returns."""
    rows = table("run", "recipe", "accuracy", "95% interval", "macro F1", "95% interval", "points", "p", "kB", "time")
    for row in compared["runs"]:
        rows.add_row(
            row["run"],
            ", ".join(f"{key}={value}" for key, value in row["recipe"].items()) or "-",
            *_with_intervals(row),
            _gained(row),
            "-" if row["mcnemar_p_holm"] is None else _p(row["mcnemar_p_holm"]),
            f"{row['adapter_bytes'] / 1000:,.0f}",
            f"{row['seconds']:,.0f} s",
        )
    stdout().print(rows)
    typer.echo(f"\n{compared['note']}")


def with_limits(scores: dict[str, Any]) -> str:
    """Return an accuracy with its interval, such as "0.8833 (0.842 to 0.915)"."""
    limits = scores.get("accuracy_interval")  # an earlier version wrote none
    return f"{scores['accuracy']:.4f}" + (f" ({limits[0]:.3f} to {limits[1]:.3f})" if limits else "")


def _described(name: str) -> str:
    from lorafit.baselines import DESCRIBED

    return DESCRIBED[name]


def _with_intervals(scores: dict[str, Any]) -> list[str]:
    """Return accuracy and macro F1, each with its interval."""
    return [
        shown
        for name in ("accuracy", "f1")
        for shown in (f"{scores[name]:.4f}", "{:.3f} to {:.3f}".format(*scores[f"{name}_interval"]))
    ]


def _gained(row: dict[str, Any]) -> str:
    if row["difference_interval"] is None:
        return "-"
    low, high = row["difference_interval"]
    return f"{row['difference_points']:+.2f} ({low:+.2f} to {high:+.2f})"


def _spread(values: dict[str, float]) -> str:
    return f"{values['mean']:.4f} ± {values['standard_deviation']:.4f}"


def _p(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def table(*headers: str) -> "Table":
    """Return an empty table with these columns."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False)
    for header in headers:
        made.add_column(header, overflow="fold")  # a path cut short can't be copied
    return made


def stdout() -> "Console":
    """Return where tables are printed."""
    from rich.console import Console

    # A pipe has no width: nothing is folded there.
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 1000)
