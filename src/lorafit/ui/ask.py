"""The fourth step: a text in, probabilities out, base beside adapted; the words that carried it; many texts at once."""

import importlib.util
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gradio as gr
import pandas as pd

from lorafit import runs
from lorafit.errors import DataError, LorafitError, RunError
from lorafit.runs import Run
from lorafit.ui import libraries, views, watch
from lorafit.ui.events import Event, event, shown
from lorafit.ui.uploads import INCOMING

if TYPE_CHECKING:
    from lorafit.data import Text
    from lorafit.predict import Classifier

_CLASSIFIERS_KEPT = 4
_MOST_LINES = 2_000  # at once; more are a file's, and the command line's
_WARM_UP = "One text, so that nobody waits for what is made once."


class AskStep(NamedTuple):
    """What the other steps need of this one."""

    run: gr.Dropdown
    refresh: Event
    """The event that lists the runs anew, and gets the chosen one ready."""


class _Classifiers:
    """The last few that were asked, each ready to answer; on one thread, so that answers never share a core."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, int], Classifier] = OrderedDict()
        self._thread = ThreadPoolExecutor(1)

    def ask(self, run: Run, question: Callable[["Classifier"], Any]) -> Any:
        """Return what a question to a run's classifier returns."""
        return self._thread.submit(lambda: question(self._of(run))).result()

    def _of(self, run: Run) -> "Classifier":
        libraries.ready()
        from lorafit import checks
        from lorafit.predict import Classifier

        weights = run.adapter / checks.WEIGHTS
        if not weights.is_file():
            raise RunError(f"{run.path} is not finished. Go on with: lorafit train --resume {run.path}")
        key = (run.path.name, weights.stat().st_mtime_ns)
        if key not in self._kept:
            # Two threads that wait for each other would, beside a training, wait for its threads too.
            self._kept[key] = classifier = Classifier.load(run.path, threads=1)
            question = (_WARM_UP, _WARM_UP) if classifier.text_pair else _WARM_UP
            for base in (False, True):
                classifier.predict([question], base=base)
        self._kept.move_to_end(key)
        while len(self._kept) > _CLASSIFIERS_KEPT:
            self._kept.popitem(last=False)
        return self._kept[key]


_classifiers = _Classifiers()


def build() -> AskStep:
    """Put the step onto the page."""
    run = gr.Dropdown(label="Run", choices=_trained(), value=None, interactive=True)
    state = gr.HTML()
    with gr.Tabs():
        with gr.Tab("One text"):
            text = gr.Textbox(label="Text", lines=4, max_lines=12, placeholder="A film to remember.")
            second = gr.Textbox(label="Its second text", lines=2, visible=False)
            ask = gr.Button("Ask", variant="primary")
            answer = gr.HTML()
            words = gr.HTML()
        with gr.Tab("Many texts"):
            lines = gr.Textbox(
                label="Texts, one a line",
                info="Of pairs, with a tab between the two.",
                lines=6,
                max_lines=16,
            )
            ask_all = gr.Button("Ask about all of them", variant="primary")
            answers = gr.Dataframe(visible=False, interactive=False, wrap=True, label="Answers", max_height=420)
            download = gr.DownloadButton("Download as CSV", visible=False)

    run.change(**event(shown(_readied), run, [state, second]))
    asked = [ask.click, text.submit, second.submit]
    answering = event(shown(_answered), [run, text, second], [answer, words])
    explaining = event(shown(_explained), [run, text], words)
    gr.on(asked, **answering).success(**explaining, concurrency_id="explain", concurrency_limit=1)
    ask_all.click(**event(shown(_answered_all), [run, lines], [answers, download]))
    refresh = event(_refreshed, run, run)
    return AskStep(run, refresh)


def _trained() -> list[str]:
    return [run.path.name for run in runs.list_runs() if run.finished]


def _refreshed(name: str | None) -> Any:
    there = _trained()
    return gr.Dropdown(choices=there, value=name if name in there else next(iter(there), None))


def _readied(name: str | None) -> tuple[str, Any]:
    if not name:
        return views.note("There is no trained run yet."), gr.Textbox(visible=False)
    run = watch.open_named(name)
    labels, pairs = _classifiers.ask(run, lambda classifier: (classifier.labels, classifier.text_pair))
    return views.note(f"It tells apart: {', '.join(labels)}."), gr.Textbox(visible=pairs)


def _answered(name: str | None, text: str, second: str) -> tuple[str, str]:
    run = watch.open_named(name)

    def question(classifier: "Classifier") -> tuple[list[str], Any, Any]:
        asked: list[Text] = [(text, second) if classifier.text_pair else text]
        adapted, base = (classifier.predict(asked, base=base)[0] for base in (False, True))
        return classifier.labels, adapted, base

    return views.answer(*_classifiers.ask(run, question)), ""


def _explained(name: str | None, text: str) -> str:
    libraries.ready()
    from lorafit import explain

    if importlib.util.find_spec("captum") is None:
        return views.note("Which words carried it is shown with: pip install 'lorafit[explain]'")
    try:
        return views.words(explain.explain(watch.open_named(name).path, text))
    except LorafitError as error:  # of pairs, for example, there is none
        return views.note(str(error))


def _answered_all(name: str | None, lines: str) -> tuple[Any, Any]:
    run = watch.open_named(name)
    given = [line for line in (lines or "").split("\n") if line.strip()]
    if not given:
        raise DataError("No text given: write one a line.")
    if len(given) > _MOST_LINES:
        raise DataError(
            f"{len(given):,} lines are more than {_MOST_LINES:,}. Put them into a file: "
            f"lorafit predict {run.path} --input FILE --output FILE"
        )
    answers = _classifiers.ask(run, lambda classifier: classifier.predict(_texts(given, classifier.text_pair)))
    table = pd.DataFrame([_row(answer) for answer in answers])
    file = Path(tempfile.mkdtemp(dir=INCOMING)) / f"{run.path.name}-answers.csv"
    table.to_csv(file, index=False)
    shown_table = table.round(4)
    return gr.Dataframe(value=shown_table, visible=True), gr.DownloadButton(value=str(file), visible=True)


def _texts(lines: list[str], pairs: bool) -> "list[Text]":
    if not pairs:
        return list(lines)
    found: list[Text] = []
    for number, line in enumerate(lines, start=1):
        first, tab, second = line.partition("\t")
        if not tab or "\t" in second:
            raise DataError(f"This adapter reads pairs: line {number} needs one tab, between its two texts.")
        found.append((first, second))
    return found


def _row(answer: dict[str, Any]) -> dict[str, Any]:
    return {key: ", ".join(value) if isinstance(value, list) else value for key, value in answer.items()}
