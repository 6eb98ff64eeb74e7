"""What a search found: a row a trial, figures, and a report that says out of how many the best one was chosen."""

import math

import pandas as pd

from lorafit import report
from lorafit.console import duration
from lorafit.files import write_atomically
from lorafit.intervals import as_interval
from lorafit.report.blocks import Code, Facts, Picture, Pictures, Prose, Report, Section, Table
from lorafit.report.style import drawing
from lorafit.runs import Run
from lorafit.sweep.figures import history, importance, tradeoff
from lorafit.sweep.space import as_toml, shown
from lorafit.sweep.studies import Study
from lorafit.sweep.trials import Trial

_FACTS = ("best_epoch", "loss", "seconds", "trained_parameters")
_NAMES = {"accuracy": "accuracy", "f1": "macro F1"}


def write(study: Study, trials: list[Trial], best: Trial, winner: Run) -> None:
    """Write trials.csv, the report and the figures into the sweep's folder.

    Args:
        study: the search.
        trials: all of them.
        best: the one with the highest score.
        winner: its run, evaluated.

    Raises:
        StorageError: a disk that is full or not writable.
    """
    rows = table(trials, study.by)
    write_atomically(study.folder / "trials.csv", lambda file: rows.to_csv(file, index=False))
    with drawing():
        report.write_pages(study.folder, _report(study, trials, best, winner))


def table(trials: list[Trial], by: str) -> pd.DataFrame:
    """Return a row a trial, counted from 1, in their order: state, score, what it cost, the keys that it chose."""
    return pd.DataFrame(
        [
            {"trial": trial.number + 1, "state": trial.state, f"validation_{by}": trial.score}
            | {name: trial.facts.get(name) for name in _FACTS}
            | {"same_as": trial.facts["same_as"] + 1 if "same_as" in trial.facts else None}
            | trial.changes
            | {"reason": trial.reason, "run": str(trial.folder)}
            for trial in trials
        ]
    )


def _report(study: Study, trials: list[Trial], best: Trial, winner: Run) -> Report:
    assert winner.scores is not None
    test, by = winner.scores["test"], _NAMES[study.by]
    reached, interval = test["adapted"][study.by], test["adapted"][f"{study.by}_interval"]
    finished = [trial for trial in trials if trial.state == "finished"]
    verdict = (
        f"The best of {len(trials)} trials reaches {reached:.3f} {by} on {test['n']:,} test texts (95% interval "
        f"{as_interval(interval)}); on validation, where it was chosen, {best.score:.3f}."
    )
    return Report(
        name=study.folder.name,
        about=f"A search over {', '.join(best.changes)}, by {by} on validation.",
        verdict=verdict,
        sections=[
            Section("Result", [_facts(trials, best, winner), Prose(_caution(study, trials))]),
            Section(
                "The best recipe", [Code(_as_settings(best), "toml"), Prose(f"All of it: `{study.folder}/best.toml`.")]
            ),
            Section("What matters", [Pictures(_pictures(study, finished, trials, best, by))]),
            Section("Trials", [_trials(trials, by)]),
        ],
    )


def _facts(trials: list[Trial], best: Trial, winner: Run) -> Facts:
    assert winner.scores is not None
    states = [trial.state for trial in trials]
    seconds = sum(trial.facts.get("seconds", 0.0) for trial in trials)
    return Facts(
        [
            ("trials", ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(states)))),
            ("training and validation", duration(seconds)),
            (
                "the best",
                f"trial {best.number + 1}, {duration(best.facts['seconds'])}, in `trials/{winner.path.name}`",
            ),
            ("parameters trained", f"{best.facts['trained_parameters']:,}"),
            ("test", report.verdict(winner.scores)),
        ]
    )


def _caution(study: Study, trials: list[Trial]) -> str:
    looks = len(study.tests())
    said = (
        f"The validation score is the highest of {len(trials)}, which luck alone lifts; the test score is not, for the "
        f"test texts had no part in the choice. They were looked at {'once' if looks == 1 else f'{looks} times'}"
    )
    said += "." if looks == 1 else ", for the search was gone on with after its end: the last look is not quite fresh."
    if len({trial.facts["validation_sha256"] for trial in trials if "validation_sha256" in trial.facts}) > 1:
        said += (
            " The trials had splits of their own: their scores differ by their texts too, and texts of the winner's "
            "test were training or validation texts of others. A `data.test_source` is the same for all."
        )
    return said


def _as_settings(best: Trial) -> str:
    return "\n".join(f"{key} = {as_toml(value)}" for key, value in best.changes.items())


def _trials(trials: list[Trial], by: str) -> Table:
    keys = list(dict.fromkeys(key for trial in trials for key in trial.changes))
    best_first = sorted(trials, key=lambda trial: (trial.state == "finished", *trial.merit), reverse=True)
    rows = [
        [
            str(trial.number + 1),
            trial.state + (f": {trial.reason}" if trial.reason else ""),
            *(shown(trial.changes[key]) if key in trial.changes else "" for key in keys),
            "" if math.isnan(trial.score) else f"{trial.score:.4f}",
            f"{trial.facts['seconds']:,.1f}" if "seconds" in trial.facts else "",
            f"{trial.facts['trained_parameters']:,}" if "trained_parameters" in trial.facts else "",
        ]
        for trial in best_first
    ]
    headers = ["trial", "state", *keys, by, "seconds", "parameters trained"]
    return Table(f"Trials, the best first; {by} on validation", headers, rows, text_columns=2 + len(keys))


def _pictures(study: Study, finished: list[Trial], trials: list[Trial], best: Trial, by: str) -> list[Picture]:
    shares = study.importances()
    found = [
        Picture(
            "history",
            history(trials, by),
            f"Validation {by} of each trial, and the best so far.",
            "Each dot is a trial that came to its end; the line is the best so far, grey marks were stopped early.",
        ),
        Picture(
            "tradeoff",
            tradeoff(finished, best, by),
            f"Validation {by} against time and against the number of trained parameters.",
            "What accuracy costs: no trial on the line is beaten by one that is cheaper. Times are this search's own, "
            "and a trial that shared its machine with others took longer.",
        ),
    ]
    if shares:
        found.insert(
            1,
            Picture(
                "importance",
                importance(shares),
                "Each key's share of what the score varies by.",
                "fANOVA (Hutter et al. 2014) over the finished trials, within the ranges that were searched; with few "
                "trials it is a hint.",
            ),
        )
    return found
