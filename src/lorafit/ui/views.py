"""What the page shows as HTML. All of it is escaped by jinja2: texts, labels and names are other people's.

Torch and its kin are imported where they are needed, here and in the steps, so that the page is there at once.
"""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lorafit import overview
from lorafit.errors import LorafitError
from lorafit.runs import Run
from lorafit.tables import HALF_CHARACTER
from lorafit.ui.watch import Watched

if TYPE_CHECKING:
    from lorafit.doctor import Findings
    from lorafit.explain import Explanation

_MOST_CLASSES = 20
_MOST_BARS = 8  # of probabilities
_FIGURES = {
    "accuracy_bar": "Accuracy and macro F1 of each classifier on the same test texts, with 95% intervals.",
    "accuracy_line": "Validation accuracy by epoch.",
    "confusion": "How many texts of each label were given which.",
    "reliability": "How often answers of each confidence are right.",
}


def findings(found: "Findings") -> str:
    """Return counts, lengths, and what the doctor found, the gravest first."""
    by_count = sorted(found.classes.items(), key=lambda item: -item[1]["all"])
    return _render("findings", found=found, classes=by_count[:_MOST_CLASSES], others=len(by_count[_MOST_CLASSES:]))


def status(watched: Watched) -> str:
    """Return what a run does just now, and how far it is."""
    return _render("status", run=watched)


def sentences(said: Sequence[str]) -> str:
    """Return sentences as a list."""
    return _render("sentences", said=said)


def note(sentence: str) -> str:
    """Return one sentence."""
    return _render("note", sentence=sentence)


def refused(sentence: str) -> str:
    """Return a refusal, to stay where it belongs."""
    return _render("refused", sentence=sentence)


def rows_table(first: pd.DataFrame, rows: int) -> str:
    """Return the first rows of a table, whose cells are short enough to be shown."""
    found = overview.Overview([str(name) for name in first.columns], first.astype(str).to_numpy().tolist())
    return _table(found, f"The first {len(first)} of {rows:,} rows")


def runs_table(found: Sequence[Run]) -> str:
    """Return the table of the runs."""
    if not found:
        return note("There are no runs yet. Train one first.")
    try:
        return _table(overview.of_runs(found), "The runs in this project, newest first")
    except LorafitError as error:  # one of them is of another version, or damaged
        return refused(str(error))


def evaluation(run: Run) -> str:
    """Return the verdict, base beside adapted, and the figures, of an evaluated run."""
    from lorafit.report.style import as_inline
    from lorafit.report.verdict import verdict

    scores = run.scores
    assert scores is not None
    files = {name: run.path / "figures" / f"{name}.svg" for name in _FIGURES}
    drawn = {name: Markup(as_inline(file.read_text("utf-8"))) for name, file in files.items() if file.is_file()}
    table = _table(overview.of_scores(scores["test"]), f"Scores on {scores['test']['n']:,} test texts")
    return _render(
        "evaluation",
        right=right_answers(scores["test"]),
        verdict=verdict(scores),
        table=table,
        drawn=drawn,
        captions=_FIGURES,
    )


def right_answers(test: dict[str, Any]) -> str:
    """Return a sentence on how many test texts were answered right; `test` is what `scores.json` holds under it.

    >>> right_answers({"n": 105, "adapted": {"accuracy": 75 / 105}})
    'Right on 75 of 105 texts that it had not seen.'
    """
    return f"Right on {test['n'] * test['adapted']['accuracy']:,.0f} of {test['n']:,} texts that it had not seen."


def report(run: Run) -> str:
    """Return the report's own page, within ours."""
    return _render("report", page=(run.path / "report.html").read_text(encoding="utf-8"), name=run.path.name)


def compared(found: dict[str, Any], figure: str) -> str:
    """Return runs beside each other; `figure` is the comparison's SVG."""
    from lorafit.report.style import as_inline

    table = _table(overview.of_compared(found), "Runs on the same test texts, each beside the first")
    return _render("compared", table=table, figure=Markup(as_inline(figure)), sentence=found["note"])


def answer(labels: Sequence[str], adapted: dict[str, Any], base: dict[str, Any]) -> str:
    """Return the probabilities as bars, base beside adapted; both as `Classifier.predict` gives them."""
    chance = {who: {label: found[f"{label}_prob"] for label in labels} for who, found in _both(adapted, base)}
    given = {who: given_labels(found) for who, found in _both(adapted, base)}
    order = list(labels)  # few stay where they are, question after question
    if len(order) > _MOST_BARS:
        order.sort(key=lambda label: -chance["adapted"][label])
    left_out = max(0, len(order) - _MOST_BARS)
    return _render("answer", labels=order[:_MOST_BARS], chance=chance, given=given, left_out=left_out)


def answers(labels: Sequence[str], given: Sequence[dict[str, Any]]) -> str:
    """Return many answers as a table, the label first: on a phone the rest may be out of sight."""
    texts = [name for name in ("text", "text_pair") if name in given[0]]
    rows = [
        [
            ", ".join(given_labels(answer)) or "no label",
            *(answer[name] for name in texts),
            *(f"{100 * answer[f'{label}_prob']:.1f}%" for label in labels),
        ]
        for answer in given
    ]
    shown = overview.Overview(("label", *("text", "second text")[: len(texts)], *labels), rows)
    return _table(shown, f"{len(rows):,} answers")


def given_labels(answer: dict[str, Any]) -> list[str]:
    """Return the labels that an answer gives, one or several."""
    return [answer["label"]] if "label" in answer else list(answer["labels"])


def words(found: "Explanation") -> str:
    """Return the text with its words shaded by what they add to the decision."""
    from lorafit.explain import pieces_of

    most = max((abs(word.attribution) for word in found.words), default=0.0) or 1.0
    return _render("words", found=found, pieces=pieces_of(found), most=most)


def _both(adapted: dict[str, Any], base: dict[str, Any]) -> Sequence[tuple[str, dict[str, Any]]]:
    return (("base", base), ("adapted", adapted))


def _table(found: overview.Overview, caption: str) -> Markup:
    return Markup(_render("table", found=found, caption=caption))


def _render(macro: str, **values: Any) -> str:
    page = str(getattr(_environment().get_template("views.html").module, macro)(**values))
    return HALF_CHARACTER.sub("\N{REPLACEMENT CHARACTER}", page)  # what JSON could say, and no browser is told


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("lorafit.ui", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
