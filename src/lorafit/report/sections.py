"""What a report says, in the order in which a careful reader asks."""

from collections.abc import Sequence
from typing import Any

import tomli_w

from lorafit import recipe as recipes
from lorafit import splits
from lorafit.baselines import DESCRIBED
from lorafit.intervals import as_interval
from lorafit.manifest import reading_of
from lorafit.report import figures
from lorafit.report.blocks import Code, Example, Examples, Facts, Picture, Pictures, Prose, Report, Section, Table
from lorafit.report.labels import labels_section
from lorafit.report.verdict import (
    UNTRAINED,
    as_mean,
    as_p,
    beside_each_other,
    four_lines,
    seeds_of,
    verdict,
)
from lorafit.runs import Run

_SCORES = {
    "accuracy": "accuracy",
    "f1": "macro F1",
    "precision": "macro precision",
    "recall": "macro recall",
    "loss": "loss (nats)",
}

_METHODS = (
    ("macro scores", "The plain mean over labels, so that rare labels count as much as common ones."),
    (
        "other intervals",
        "Percentiles of 1,000 resamples of the test texts, drawn with a fixed seed (bootstrap). Where nothing was got "
        "wrong, such as of a label with few texts, they have no width and are surer than they should be.",
    ),
    (
        "comparison",
        "McNemar’s exact test looks only at texts that one of two classifiers has right and the other wrong; p is how "
        "often chance alone makes a difference as large.",
    ),
    (
        "baselines",
        "Trained on the same training texts and scored on the same test texts; they show what can be had without LoRA. "
        "Where LoRA gives labels by thresholds fitted on validation, so do they, each by its own, fitted in the same "
        "way on the same texts; the majority class and the untrained base have none.",
    ),
    (
        "calibration",
        "The expected calibration error is the mean distance between confidence and accuracy over 15 bins, weighted by "
        "their answers (Guo et al. 2017). Few texts make it too high, which its interval allows for: where that begins "
        "at 0, the probabilities may well mean what they say.",
    ),
    (
        "what is left out",
        "Intervals tell what other test texts would change, not what another seed or other training texts would: for "
        "that there is `lorafit train --seeds`.",
    ),
)


def report_of(run: Run) -> Report:
    """Return the report of an evaluated run; its figures take the style that holds when this is called."""
    scores, record = run.scores, run.record
    assert scores is not None
    test = scores["test"]
    about = (
        f"{run.recipe.encoder.name} with {run.recipe.adapter}, trained on {record['texts']['train']:,} texts of "
        f"{recipes.without_folders(run.recipe)['data']['source']}"
    )
    sections = [
        *_seeds(seeds_of(scores), test["compared_by"]),
        _result(test, record),
        _training(run),
        _calibration(test["calibration"]),
        labels_section(test),
        *_lengths(test["by_length"], run),
        *_errors(test["errors"]),
        _cost(record),
        _recipe(run),
        _method(test),
    ]
    return Report(run.recipe.name, about, verdict(scores), sections)


def _seeds(seeds: dict[str, Any] | None, by: str) -> list[Section]:
    if seeds is None:
        return []
    summary = Prose(
        f"Trained {seeds['n']} times. Mean ± standard deviation: accuracy {as_mean(seeds['accuracy'])}, macro F1 "
        f"{as_mean(seeds['f1'])}, improvement {as_mean(seeds['improvement_points'], 2)} points. {seeds['note']} What "
        "follows is the first seed’s run."
    )
    rows = [
        [
            str(one["seed"]),
            *(f"{one[key]:.4f}" for key in ("accuracy", "f1", "base_accuracy")),
            f"{one['seconds']:,.0f}",
        ]
        for one in seeds["runs"]
    ]
    headers = ("seed", "accuracy", "macro F1", "base accuracy", "seconds")
    beside = Table(
        "Each seed beside base and baselines; LoRA’s gain is the mean ± standard deviation of the differences seed by "
        "seed",
        *beside_each_other(seeds, by),
    )
    return [Section("Seeds", [summary, Table("Each seed’s result", headers, rows), beside])]


def _result(test: dict[str, Any], record: dict[str, Any]) -> Section:
    chosen = Prose(
        f"The best of {record['epochs']} epochs (number {record['best_epoch']}) was chosen on "
        f"{record['texts']['validation']:,} validation texts; the scores below are on {test['n']:,} test texts, looked "
        f"at once. The base is {UNTRAINED}: what the adapter started from, not what the encoder could do."
    )
    left_out = splits.describe(record.get("overlaps", {}))  # an earlier version kept none
    low, high = test["improvement_interval"]
    gain = Prose(
        f"The improvement’s 95% interval is {low:.1f} to {high:.1f} points. {test['mcnemar']['only_adapted_right']:,} "
        f"texts are right with the adapter only, {test['mcnemar']['only_base_right']:,} with the base only "
        f"(McNemar’s exact test, {as_p(test['mcnemar_p'])})."
    )
    bars = Picture(
        "accuracy_bar",
        figures.accuracy_bar(test),
        f"Bars of accuracy and macro F1: {_spoken(test)}.",
        "Accuracy and macro F1 of each classifier on the same texts. Lines are 95% intervals.",
    )
    return Section(
        "Result",
        [
            chosen,
            *([Prose(left_out)] if left_out else []),
            Code("\n".join(four_lines(test))),
            _rivals(test, record["seconds"]),
            gain,
            Pictures([bars]),
            _all_scores(test),
        ],
    )


def _spoken(test: dict[str, Any]) -> str:
    found = {"the base": test["base"]} | {DESCRIBED[name]: one for name, one in test["baselines"].items()}
    lines = [f"{name} {one['accuracy']:.3f}" for name, one in (found | {"LoRA": test["adapted"]}).items()]
    return ", ".join(lines)


def _rivals(test: dict[str, Any], seconds: float) -> Table:
    rows = [
        _rival(DESCRIBED[name].removeprefix("the "), found, as_p(found["mcnemar_p"]), found.get("seconds"))
        for name, found in test["baselines"].items()
    ]
    base = _rival("base", test["base"], as_p(test["mcnemar_p"]), None)
    headers = ("classifier", "accuracy", "95% interval", "macro F1", "95% interval", "against LoRA", "seconds to train")
    return Table(
        "LoRA beside its base and the baselines, on the same test texts; p by McNemar’s exact test",
        headers,
        [_rival("LoRA", test["adapted"], "", seconds), base, *rows],
    )


def _rival(name: str, found: dict[str, Any], p: str, seconds: float | None) -> list[str]:
    scores = [*_with_interval(found, "accuracy"), *_with_interval(found, "f1")]
    return [name, *scores, p, "" if seconds is None else f"{seconds:,.1f}"]


def _all_scores(test: dict[str, Any]) -> Table:
    rows = [
        [name, *(cell for who in ("base", "adapted") for cell in _with_interval(test[who], key))]
        for key, name in _SCORES.items()
    ]
    return Table("All scores, base and adapted", ("", "base", "95% interval", "adapted", "95% interval"), rows)


def _with_interval(found: dict[str, Any], key: str) -> tuple[str, str]:
    return f"{found[key]:.4f}", as_interval(found[f"{key}_interval"])


def _training(run: Run) -> Section:
    record, validations = run.record, run.validations
    heights = ", ".join(f"{line['epoch']}: {line['validation']['accuracy']:.3f}" for line in validations)
    line = Picture(
        "accuracy_line",
        figures.accuracy_line(validations, record["best_epoch"]),
        f"A line of validation accuracy by epoch: {heights}.",
        f"Validation accuracy by epoch, the base as a dashed line. Epoch {record['best_epoch']} was kept.",
    )
    return Section("Training", [Pictures([line])])


def _calibration(calibration: dict[str, Any]) -> Section:
    before, after = calibration["ece_before"], calibration["ece_after"]
    limits = [as_interval(calibration[f"ece_{which}_interval"]) for which in ("before", "after")]
    said = Prose(
        f"A temperature of {calibration['temperature']:.3f}, fitted on the validation texts, divides the logits; it is "
        f"folded into the saved head. The expected calibration error on the test texts is {before:.3f} without it (95% "
        f"interval {limits[0]}) and {after:.3f} with it ({limits[1]})."
    )
    diagram = Picture(
        "reliability",
        figures.reliability(calibration),
        f"Reliability diagram; expected calibration error {before:.3f} before and {after:.3f} after the temperature.",
        "On the dotted line an answer is right as often as its probability says; below it the model is too sure of "
        "itself. The bars count the answers of each confidence.",
    )
    return Section("Calibration", [said, Pictures([diagram])])


def _lengths(bins: Sequence[dict[str, Any]], run: Run) -> list[Section]:
    if not bins:
        return []
    rows = [
        [f"{one['from_tokens']} to {one['to_tokens']}", f"{one['n']:,}", *_with_interval(one, "accuracy")]
        for one in bins
    ]
    points = ", ".join(f"{row[0]} tokens {row[2]}" for row in rows)
    dots = Picture("by_length", figures.by_length(bins), f"Accuracy by length: {points}.", "Lines are 95% intervals.")
    table = Table("Accuracy by length of the texts", ("tokens", "texts", "accuracy", "95% interval"), rows)
    data = run.recipe.data
    window = Prose(
        f"Tokens are counted over the whole text. A text is read {reading_of(data.max_tokens, data.long_text)}."
    )
    return [Section("Short and long texts", [window, Pictures([dots]), table])]


def _errors(errors: Sequence[dict[str, Any]]) -> list[Section]:
    if not errors:
        return []
    said = Prose(f"The {len(errors)} wrong answers of which the model was surest. Look for labels that are wrong, too.")
    return [Section("Most confident errors", [said, Examples([_example(error) for error in errors])])]


def _example(error: dict[str, Any]) -> Example:
    def named(labels: str | list[str]) -> str:
        return labels if isinstance(labels, str) else ", ".join(labels) or "no label"

    texts = [error["text"]] if isinstance(error["text"], str) else error["text"]
    shown = [text if text.strip() else "(an empty text)" for text in texts]
    return Example(named(error["label"]), named(error["predicted"]), error["probability"], shown)


def _cost(record: dict[str, Any]) -> Section:
    parameters, runtime, machine = record["parameters"], record["runtime"], record["machine"]
    share = parameters["trainable"] / parameters["total"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    facts = [
        ("trained parameters", f"{parameters['trainable']:,} of {parameters['total']:,} ({share:.2%})"),
        ("adapter", f"{record['adapter_bytes'] / 1000:,.0f} kB"),
        ("training", f"{record['seconds']:,.0f} s, {record['steps']:,} steps, {record['tokens']:,} tokens"),
        ("peak memory", f"{record['peak_memory_bytes'] / 1e9:.1f} GB"),
        ("ran on", f"{runtime['device']}, {runtime['threads']} threads, {runtime['precision']} ({runtime['reason']})"),
        ("machine", f"{machine['processor']}, {machine['cores']} cores"),
        ("packages", packages),
    ]
    return Section("Cost", [Facts(facts)])


def _recipe(run: Run) -> Section:
    said = Prose(
        f"Seed {run.recipe.seed}. The whole recipe, paths shortened to their last name; `lorafit train recipe.toml` in "
        "the run’s folder repeats the run."
    )
    return Section("Recipe", [said, Code(tomli_w.dumps(recipes.without_folders(run.recipe)), "toml")])


def _method(test: dict[str, Any]) -> Section:
    right = "all its labels are right" if test["task"] == "multi_label" else "its label is right"
    accuracy = f"The share of test texts of which {right}; its interval is Wilson’s (1927)."
    return Section("How the numbers were made", [Facts([("accuracy", accuracy), *_METHODS])])
