"""The fourth step: a text in, probabilities out, base beside adapted; the words that carried it; many texts at once."""

import functools
import importlib.util
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import gradio as gr
import pandas as pd

from lorafit import runs
from lorafit.errors import DataError, LorafitError, RunError
from lorafit.files import storing
from lorafit.runs import Run
from lorafit.ui import libraries, uploads, views, watch
from lorafit.ui.events import Event, event

if TYPE_CHECKING:
    from lorafit.data import Text
    from lorafit.predict import Classifier

_CLASSIFIERS_KEPT = 4
_TEXTS_AT_ONCE = 8  # of many
_MOST_CHARACTERS = 100_000  # of a text; hundreds of windows
_MOST_CHARACTERS_AT_ONCE = 5_000_000  # of many
_MOST_LINES = 2_000  # at once; more are a file's, and the command line's
_CHARACTERS_A_TOKEN = 4  # of English, about
Asked = tuple[str, str]
"""A run's name, and a text."""

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
        self.loading = threading.Lock()
        """An untrained head is drawn from torch's one generator: whoever loads does so alone."""
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
            with self.loading:
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
            text = gr.Textbox(
                label="Text", lines=4, max_lines=12, placeholder="A film to remember.", max_length=_MOST_CHARACTERS
            )
            second = gr.Textbox(label="Its second text", lines=2, visible=False)
            ask = gr.Button("Ask", variant="primary")
            answer = gr.HTML()
            words = gr.HTML()
            asked, explained = gr.State(None), gr.State(None)  # run and text; and with what was found
        with gr.Tab("Many texts"):
            lines = gr.Textbox(
                label="Texts, one a line",
                lines=6,
                max_lines=16,
            )
            ask_all = gr.Button("Ask about all of them", variant="primary")
            answers = gr.HTML()
            download = gr.DownloadButton("Download as CSV", visible=False)

    readied = [state, second, lines, answer, words, answers, download]
    run.change(**event(_readied, run, readied, again=True, in_turn="ready"))
    text.input(None, None, [answer, words], js="() => ['', '']", show_progress="hidden", api_visibility="private")
    gr.on(
        [ask.click, text.submit, second.submit],
        **event(_answered, [run, text, second], [answer, words, asked], again=True),
    ).success(**event(_explained, [asked, explained], explained, again=True, in_turn="explain")).success(
        **event(_if_still_asked, [explained, asked], words, again=True)
    )
    ask_all.click(**event(_answered_all, [run, lines], [answers, download]))
    refresh = event(_refreshed, run, run)
    return AskStep(run, refresh)


def _trained() -> list[str]:
    return [run.path.name for run in runs.list_runs() if run.finished]


def _refreshed(name: str | None) -> Any:
    there = _trained()
    return gr.Dropdown(choices=there, value=name if name in there else next(iter(there), None))


def _readied(name: str | None) -> tuple[Any, ...]:
    """Return what is told of a run, and nothing of what another one answered."""
    no_answers = ("", "", "", gr.DownloadButton(visible=False))
    if not name:
        none = "Choose a run." if _trained() else "There is no trained run yet."
        return views.note(none), gr.Textbox(visible=False), gr.skip(), *no_answers
    run = watch.open_named(name)
    labels, pairs = _classifiers.ask(run, lambda classifier: (classifier.labels, classifier.text_pair))
    scores = run.scores
    found = (
        views.right_answers(scores["test"]) if scores else "How often it is right is not known yet: compare it first."
    )
    between = "Of each pair, with a tab between its two texts." if pairs else ""
    said = views.note(f"It tells apart: {', '.join(labels)}. {found}")
    return said, gr.Textbox(visible=pairs), gr.Textbox(info=between), *no_answers


def _answered(name: str | None, text: str | None, second: str | None) -> tuple[str, str, Asked]:
    run = watch.open_named(name)
    text, second = text or "", second or ""  # a field that nobody has filled holds nothing
    _refuse_longer([text, second], _MOST_CHARACTERS)

    def question(classifier: "Classifier") -> tuple[list[str], Any, Any]:
        asked: list[Text] = [(text, second) if classifier.text_pair else text]
        adapted, base = (classifier.predict(asked, base=base)[0] for base in (False, True))
        return classifier.labels, adapted, base

    looking = views.note("Looking for the words that carried it ...")
    return views.answer(*_classifiers.ask(run, question)), looking, (run.path.name, text)


def _refuse_longer(texts: list[str], most: int) -> None:
    found = sum(map(len, texts))
    if found > most:
        raise DataError(
            f"{found:,} characters are more than {most:,}, which the page is for. Ask with lorafit predict."
        )


def _explained(asked: Asked, before: tuple[Asked, str] | None) -> tuple[Asked, str]:
    if before is not None and before[0] == asked:  # what is asked several times in a row is explained once
        return before
    libraries.ready()
    from lorafit import explain

    name, text = asked
    run = watch.open_named(name)
    if importlib.util.find_spec("captum") is None:
        return asked, views.note("Which words carried it is shown with: pip install 'lorafit[explain]'")
    if run.recipe.data.long_text.startswith("windows") and len(text) > _CHARACTERS_A_TOKEN * run.recipe.data.max_tokens:
        return asked, views.note(
            f"Words of texts of several windows take long. Ask with: lorafit explain {run.path} TEXT"
        )
    try:
        with _classifiers.loading:
            return asked, views.words(explain.explain(run.path, text))
    except LorafitError as error:  # of pairs, for example, there is none
        return asked, views.note(str(error))


def _if_still_asked(explained: tuple[Asked, str], asked: Asked) -> Any:
    """Return the words, unless another text was asked about meanwhile."""
    of_text, words = explained
    return words if of_text == asked else gr.skip()


def _answered_all(name: str | None, lines: str) -> tuple[Any, Any]:
    libraries.ready()
    from lorafit.predict import refuse_non_texts

    run = watch.open_named(name)
    given = [line for line in (lines or "").split("\n") if line.strip()]
    _refuse_longer(given, _MOST_CHARACTERS_AT_ONCE)
    if not given:
        raise DataError("No text given: write one a line.")
    if len(given) > _MOST_LINES:
        raise DataError(
            f"{len(given):,} lines are more than {_MOST_LINES:,}. Put them into a file: "
            f"lorafit predict {run.path} --input FILE --output FILE"
        )
    reader = _classifiers.ask(run, lambda classifier: classifier.reader)
    texts = _texts(given, reader.manifest.text_pair)
    refuse_non_texts(texts, reader.manifest)  # all of them, before the first is asked about
    answers: list[dict[str, Any]] = []
    for start in range(0, len(texts), _TEXTS_AT_ONCE):  # in between others are answered
        some = texts[start : start + _TEXTS_AT_ONCE]
        answers += _classifiers.ask(run, functools.partial(_predictions, some))
    table = pd.DataFrame([_row(answer) for answer in answers])
    file = uploads.offered(uuid4().hex) / f"{run.path.name}-answers.csv"
    with storing(file):
        table.to_csv(file, index=False, encoding="utf-8-sig")  # spreadsheets take it for Windows-1252 otherwise
    return views.answers(reader.manifest.labels, answers), gr.DownloadButton(value=str(file), visible=True)


def _predictions(texts: "list[Text]", classifier: "Classifier") -> list[dict[str, Any]]:
    return classifier.predict(texts)


def _texts(lines: list[str], pairs: bool) -> "list[Text]":
    from lorafit.data import pairs_of_lines

    return [*pairs_of_lines(lines)] if pairs else [*lines]


def _row(answer: dict[str, Any]) -> dict[str, Any]:
    return {key: ", ".join(value) if isinstance(value, list) else value for key, value in answer.items()}
