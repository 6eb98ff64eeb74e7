"""Results as text on standard output: an evaluation, seeds, a comparison, findings, an explanation."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from lorafit.bulk import Scored
    from lorafit.bundle import Contents
    from lorafit.doctor import Findings
    from lorafit.explain import Explanation
    from lorafit.export import Done
    from lorafit.overview import Overview
    from lorafit.runs import Run

_MOST_COLUMNS = 8  # of probabilities, that fit beside a text
_MOST_CLASSES = 20  # in a table
_SEVERITY_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def print_evaluation(run: "Run") -> None:
    """Print what an evaluated run scores: the verdict first, which says what LoRA does not beat."""
    from lorafit import overview, report
    from lorafit.report.verdict import as_p

    scores = run.scores
    assert scores is not None
    test = scores["test"]
    typer.echo(f"{report.verdict(scores)}\n")
    typer.echo("\n".join(report.four_lines(test)) + "\n")
    low, high = test["improvement_interval"]
    typer.echo(f"Improvement, 95% interval: {low:.2f} to {high:.2f} points; McNemar's {as_p(test['mcnemar_p'])}")
    _print(overview.of_scores(test))
    typer.echo("")
    others = _table("", "base", "95% interval", "adapted", "95% interval")
    for name in ("precision", "recall", "loss"):
        shown = (cell for who in ("base", "adapted") for cell in overview.with_intervals(test[who], name))
        others.add_row(name, *shown)
    _stdout().print(others)
    calibration = test["calibration"]
    after, before = (
        "{} ({})".format(*overview.with_intervals(calibration, name)) for name in ("ece_after", "ece_before")
    )
    typer.echo(
        f"\non {test['n']:,} test texts; precision and recall are macro averages. Expected calibration error {after}, "
        f"{before} before temperature {calibration['temperature']:.3g}."
    )


def print_seeds(run: "Run") -> None:
    """Print what several seeds say together, from the scores of the first one's run: the verdict first."""
    from lorafit import report
    from lorafit.report.verdict import as_mean, beside_each_other

    assert run.scores is not None
    seeds, by = run.scores["seeds"], run.scores["test"]["compared_by"]
    typer.echo(f"{report.verdict(run.scores)}\n")
    rows = _table("seed", "run", "base", "accuracy", "macro F1", "time")
    for one in seeds["runs"]:
        scores = (f"{one[key]:.4f}" for key in ("base_accuracy", "accuracy", "f1"))
        rows.add_row(str(one["seed"]), one["path"], *scores, f"{one['seconds']:,.0f} s")
    _stdout().print(rows)
    typer.echo(
        f"\naccuracy {as_mean(seeds['accuracy'], 4)}, macro F1 {as_mean(seeds['f1'], 4)}: mean ± standard deviation "
        f"over {seeds['n']} seeds. {seeds['note']}\n"
    )
    headers, lines = beside_each_other(seeds, by)
    beside = _table(*headers)
    for line in lines:
        beside.add_row(*line)
    _stdout().print(beside)


def print_compared(compared: dict[str, Any]) -> None:
    """Print what `comparison.compare` returns."""
    from lorafit import overview

    _print(overview.of_compared(compared))
    typer.echo(f"\n{compared['note']}")


def print_findings(found: "Findings") -> None:
    """Print what the doctor found: counts, lengths, and a row a finding."""
    from rich.text import Text

    splits = [name for name, count in found.texts.items() if count]
    counts = _table("label", *splits, "share")
    by_count = sorted(found.classes.items(), key=lambda item: -item[1]["all"])
    for label, texts in by_count[:_MOST_CLASSES]:
        share = f"{texts['all'] / found.texts['all']:.1%}"
        counts.add_row(label, *(f"{texts[name]:,}" for name in splits), share)
    if len(by_count) > _MOST_CLASSES:
        counts.add_row(f"and {len(by_count) - _MOST_CLASSES} more")
    counts.add_row("texts", *(f"{found.texts[name]:,}" for name in splits))
    _stdout().print(counts)
    if found.lengths is not None:
        lengths = found.lengths
        typer.echo(
            f"\ntokens a text: median {lengths.median:,}, 95% have up to {lengths.percentile_95:,}, the longest "
            f"{lengths.longest:,}; data.max_tokens is {lengths.max_tokens:,}"
        )
    typer.echo("")
    rows = _table("", "about", found.source)
    for finding in found.findings:
        said = "\n".join([finding.sentence, *(f"  {example}" for example in finding.examples)])
        rows.add_row(Text(finding.severity, _SEVERITY_STYLES[finding.severity]), finding.about, said)
    if not found.findings:
        rows.add_row("", "", "Nothing stands out.")
    _stdout().print(rows)


def print_explanation(found: "Explanation") -> None:
    """Print the text, blue words for the label and orange ones against it; where there is no colour, with numbers."""
    from rich.text import Text

    from lorafit.explain import pieces_of

    console = _stdout()
    coloured = console.color_system is not None and not console.no_color
    most = max((abs(word.attribution) for word in found.words), default=0.0)
    shown = Text()
    for between, word in pieces_of(found):
        shown.append(between)
        if word is None:
            continue
        strong = abs(word.attribution) > most / 3
        colour = (
            ("dodger_blue1" if word.attribution > 0 else "dark_orange") if abs(word.attribution) > most / 10 else ""
        )
        shown.append(word.word, f"bold {colour}" if strong else colour)
        if not coloured:
            shown.append(f"({word.attribution:+.2f})")
    how = "for it in blue, against it in orange" if coloured else "for and against it in log-odds"
    typer.echo(f"{found.label}, probability {found.probability:.3f}; {how}")
    console.print(shown, soft_wrap=True)
    for sentence in filter(None, [found.reading, str(found.check), found.caveat]):
        typer.echo(sentence)


def print_predictions(answers: list[dict[str, Any]]) -> None:
    """Print a row a text: what it was given, the probabilities, the text."""
    labels = [key.removesuffix("_prob") for key in answers[0] if key.endswith("_prob")]
    texts = [key for key in ("text", "text_pair") if key in answers[0]]
    few = len(labels) <= _MOST_COLUMNS
    rows = _table("given", *([f"{label}_prob" for label in labels] if few else ["most probable"]), *texts)
    for answer in answers:
        probabilities = {label: answer[f"{label}_prob"] for label in labels}
        given = answer["label"] if "label" in answer else ", ".join(answer["labels"]) or "-"
        most = sorted(labels, key=lambda label: -probabilities[label])[:3]
        shown = [f"{p:.3f}" for p in probabilities.values()] if few else [_listed(probabilities, most)]
        rows.add_row(given, *shown, *(answer[key] for key in texts))
    _stdout().print(rows)


def print_scored(scored: "Scored", target: Path, rejected: Path) -> None:
    """Print what became of a file, or of a folder's files."""
    from lorafit.console import duration

    facts = [f"{scored.rows_per_second:,.0f} a second"]
    facts += [f"repeated texts, scored once: {scored.repeated:,}"] if scored.repeated else []
    rest = f"; rejected: {scored.rejected:,}, in {rejected}" if scored.rejected else ""
    typer.echo(f"Wrote {scored.rows:,} rows to {target} in {duration(scored.seconds)} ({'; '.join(facts)}){rest}.")


def print_contents(contents: "Contents") -> None:
    """Print what a bundle holds."""
    made, lora = contents.manifest, contents.lora
    targets = ", ".join(sorted(lora.target_modules))
    facts = {
        "adapter": f"LoRA r={lora.r}, alpha={lora.lora_alpha:g}, on {targets}; {contents.parameters:,} parameters",
        "trained whole": ", ".join(contents.trained_whole) or "-",
    }
    if made is None:
        facts["not known"] = "labels, base weights, window: lorafit did not make it"
    else:
        facts |= {
            "base": str(made.base),
            "labels": ", ".join(made.labels) + ("; a text may have several" if made.task == "multi_label" else ""),
            "texts": f"{'pairs, ' if made.text_pair else ''}{made.reading}; html: {made.html}",
        }
        if made.training is not None:
            score, counts = made.training.validation, made.training.texts
            facts["trained"] = (
                f"on {counts.train:,} texts of {made.training.data}, {made.training.precision}; "
                f"accuracy {score.accuracy:.4f} on {counts.validation:,} validation texts, "
                f"epoch {made.training.best_epoch}"
            )
        if made.proof is not None:
            facts["proved"] = (
                f"on {made.proof.texts} texts by a fresh process; logit gap {made.proof.gap:.1g}, "
                f"{made.proof.gap_fp32:.1g} in plain PEFT"
            )
    facts["files"] = "\n".join(f"{size:>11,} bytes  {name}" for name, size in contents.bytes_by_file.items())
    rows = _table("", str(contents.folder))
    for name, value in facts.items():
        rows.add_row(name, value)
    _stdout().print(rows)


def print_export(done: "Done") -> None:
    """Print where an export lies, how far its answers are from the original's, and its size and rate."""
    made, found = done.made, done.made.agreement
    rows = _table("", f"{made.form}, in {done.folder}")
    rows.add_row("asked", found.drawn_from.rstrip(","))
    rows.add_row("largest logit gap", f"{found.largest_logit_gap:.1e}")
    rows.add_row("decided otherwise", f"{found.decided_otherwise} of {found.texts}")
    if found.accuracy is not None:
        low, high = found.accuracy.gap_interval
        rows.add_row("accuracy", f"{found.accuracy.export:.4f}; the original {found.accuracy.original:.4f}")
        rows.add_row(
            "accuracy gap", f"{found.accuracy.gap_points:+.1f} points (95% interval {low:+.1f} to {high:+.1f})"
        )
    rows.add_row("size", f"{made.bytes / 1e6:.1f} MB")
    rows.add_row(
        "texts a second",
        f"{found.texts_per_second:,.1f}; lorafit in {found.lorafit_precision} {found.lorafit_texts_per_second:,.1f}",
    )
    _stdout().print(rows)
    for sentence in done.lost:
        _stdout().print(sentence, soft_wrap=True)


def print_runs(found: "list[Run]") -> None:
    """Print a row a run."""
    from lorafit import overview

    _print(overview.of_runs(found))


def _listed(probabilities: dict[str, float], labels: list[str]) -> str:
    return ", ".join(f"{label} {probabilities[label]:.3f}" for label in labels)


def _print(found: "Overview") -> None:
    rows = _table(*found.headers)
    for row in found.rows:
        rows.add_row(*row)
    _stdout().print(rows)


def _table(*headers: str) -> "Table":
    """Return an empty table with these columns."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False)
    for header in headers:
        made.add_column(header, overflow="fold")  # a path cut short can't be copied
    return made


def _stdout() -> "Console":
    """Return where tables are printed."""
    from rich.console import Console

    # A pipe has no width: nothing is folded there.
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 1000)
