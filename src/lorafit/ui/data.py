"""The first step: a file or bundled reviews, their columns, what the doctor finds, a look at the rows."""

from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import pandas as pd

from lorafit import tables
from lorafit.errors import DataError, LorafitError
from lorafit.ui import choice as choices
from lorafit.ui import libraries, uploads, views
from lorafit.ui.choice import BUNDLED, Choice
from lorafit.ui.events import Event, event

_ROWS_SHOWN = 8
_CHARACTERS_SHOWN = 300
_NO_COLUMN = "(none)"

Examined = tuple[Choice | None, str, bool]
"""What was looked at, what was found, and whether it may be trained on."""


class DataStep(NamedTuple):
    """What the other steps need of this one."""

    onward: gr.Button
    found: gr.State
    """Where what is `restored` goes."""
    fill: Event
    """Shows it, unless something was chosen meanwhile."""
    look: Event
    tell: Event
    """Have the doctor look at what is chosen, and tell what was found."""


def build(choice: gr.State) -> DataStep:
    """Put the step onto the page; `choice` is where it leaves the visitor's."""
    with gr.Row():
        with gr.Column():
            upload = gr.File(label="Your own: a CSV, TSV, JSONL or Parquet file", height=150)
        with gr.Column():
            bundled = gr.Radio(
                [(name, recipe) for recipe, name in BUNDLED.items()],
                label="Or reviews that come with lorafit",
                info="Each with a recipe that suits it.",
            )
    about = gr.HTML(views.note("Drop a file, or choose reviews."))
    with gr.Row(visible=False) as columns:
        text = gr.Dropdown(label="Column with the texts", interactive=True, min_width=260)
        labels = gr.Dropdown(
            label="Column with the labels",
            info="Several columns of 0 and 1 are a label each.",
            multiselect=True,
            interactive=True,
            min_width=260,
        )
        pair = gr.Dropdown(
            label="Column with second texts", info="Only where pairs are classified.", interactive=True, min_width=260
        )
    findings = gr.HTML()
    rows = gr.HTML()
    onward = gr.Button("On to training", variant="primary", interactive=False)

    taken = [choice, upload, bundled, about, columns, text, labels, pair, rows, findings, onward]
    examined = gr.State(None)
    look = event(_examined, [choice, examined], examined, again=True, in_turn="doctor")
    tell = event(_if_still_chosen, [examined, choice], [findings, onward], again=True)
    upload.upload(**event(_take_file, upload, taken, again=True, in_turn="choose")).then(**look).then(**tell)
    bundled.input(**event(_take_bundled, bundled, taken, again=True, in_turn="choose")).then(**look).then(**tell)
    corrected = event(_correct, [choice, text, labels, pair], [choice, onward], again=True, in_turn="choose")
    gr.on([text.input, labels.input, pair.input], **corrected).then(**look).then(**tell)
    found = gr.State(None)  # what a reload finds again
    fill = event(_if_nothing_chosen, [found, choice], taken, in_turn="choose")
    return DataStep(onward, found, fill, look, tell)


def restored(browser: Any) -> tuple[Any, ...] | None:
    """Return what the step shows of the choice that the visitor's browser kept; nothing where that is gone."""
    try:
        file = Path(str(browser["source"]))
        if uploads.is_kept(file):
            labels = tuple(map(str, browser["labels"]))
            return _shown(Choice(file, str(browser["text"]), labels, str(browser["pair"])), tables.read(file))
        if browser["bundled"] in BUNDLED:
            return _take_bundled(browser["bundled"])
    except (LorafitError, KeyError, TypeError):  # somebody changed the file, or the browser's note of it
        return None
    return None


def _if_nothing_chosen(found: tuple[Any, ...] | None, chosen: Choice | None) -> tuple[Any, ...]:
    return found if found is not None and chosen is None else (gr.skip(),) * 11


def _take_file(arrived: str) -> tuple[Any, ...]:
    try:
        file, table = uploads.keep(Path(arrived))
    except LorafitError as error:
        return _refused(error)
    try:
        found = tables.guess_columns(table, str(file))
    except DataError:  # the visitor names them
        return _shown(Choice(file), table)
    return _shown(Choice(file, found.text, (found.label,)), table)


def _take_bundled(name: str) -> tuple[Any, ...]:
    libraries.ready()
    from lorafit import data

    chosen = choices.bundled(name)
    try:
        source = data.open_source(chosen.recipe().data.source)
    except LorafitError as error:  # they are an extra
        return _refused(error)
    return (chosen, None, name, *_about(f"{BUNDLED[name]}, {len(source.table):,} rows", source.table, None, chosen))


def _refused(error: LorafitError) -> tuple[Any, ...]:
    """Return the step as it was before anything was chosen, with the sentence, and room for another file."""
    nothing = (gr.skip(),) * 3
    return (None, None, None, views.refused(str(error)), gr.Row(visible=False), *nothing, "", "", _onward(False))


def _onward(is_ready: bool) -> gr.Button:
    return gr.Button(interactive=is_ready)


def _shown(chosen: Choice, table: pd.DataFrame) -> tuple[Any, ...]:
    about = f"{chosen.source}, {len(table):,} rows"
    return (chosen, None, None, *_about(about, table, [str(name) for name in table.columns], chosen))


def _about(about: str, table: pd.DataFrame, names: list[str] | None, chosen: Choice) -> tuple[Any, ...]:
    """Return what all fillings of the step have in common, from `about` on."""
    asked = "" if chosen.is_ready else " No columns were found that look like texts and labels: choose them."
    pairs = [(_NO_COLUMN, ""), *((name, name) for name in names or [])]
    return (
        views.note(f"{about}.{asked}"),
        gr.Row(visible=names is not None),
        gr.Dropdown(choices=names or [], value=chosen.text or None),
        gr.Dropdown(choices=names or [], value=list(chosen.labels)),
        gr.Dropdown(choices=pairs, value=chosen.pair),
        views.rows_table(_first_rows(table), len(table)),
        views.note("The doctor looks at it ...") if chosen.is_ready else "",
        _onward(chosen.is_ready),
    )


def _first_rows(table: pd.DataFrame) -> pd.DataFrame:
    def cut(cell: Any) -> str:
        shown = str(cell)
        return f"{shown[:_CHARACTERS_SHOWN]} …" if len(shown) > _CHARACTERS_SHOWN else shown

    return table.head(_ROWS_SHOWN).map(cut)


def _correct(chosen: Choice | None, text: str | None, labels: list[str], pair: str | None) -> tuple[Any, Any]:
    if chosen is None:  # the page has been open for longer than the server remembers
        raise DataError("The choice is forgotten. Drop the file once more.")
    corrected = Choice(chosen.source, text or "", tuple(labels), pair or "")
    return corrected, _onward(corrected.is_ready)


def _examined(chosen: Choice | None, before: Examined | None) -> Examined:
    if chosen is None or not chosen.is_ready:
        return chosen, "", False
    if before is not None and before[0] == chosen:  # what is asked several times in a row is looked at once
        return before
    libraries.ready()
    from lorafit import doctor

    try:
        return chosen, views.findings(doctor.examine(chosen.recipe())), True
    except LorafitError as error:
        return chosen, views.refused(str(error)), False


def _if_still_chosen(examined: Examined, chosen: Choice | None) -> tuple[Any, Any]:
    """Return what was found, unless something else was chosen meanwhile."""
    looked_at, found, is_good = examined
    return (found, _onward(is_good)) if looked_at == chosen else (gr.skip(), gr.skip())
