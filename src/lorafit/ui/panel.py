"""A run as it goes on, on the page: its state, its curves, stop and resume."""

from typing import Any, NamedTuple

import gradio as gr
import pandas as pd

from lorafit.ui import jobs, views, watch
from lorafit.ui.events import Event, event
from lorafit.ui.watch import UNDER_WAY, Watched

_SECONDS_BETWEEN_LOOKS = 1.0
_LAST_AS_WORD = 19


class Panel(NamedTuple):
    """What the other steps need of this one."""

    run: gr.Dropdown
    onward: gr.Button
    follow: Event
    """Shows the run that is chosen, and goes on doing so."""


def build() -> Panel:
    """Put it onto the page."""
    gr.HTML("<h2 id='runs'>Runs</h2>")
    run = gr.Dropdown(watch.names(), value=None, label="Run", info="Those under way come first.", interactive=True)
    status = gr.HTML()
    with gr.Row():
        losses = gr.LinePlot(x="step", y="loss", title="Training loss", visible=False, height=260, buttons=[])
        scores = gr.LinePlot(
            x="epoch",
            y="score",
            color="of",
            color_title="",
            title="Validation, by epoch; 0 is the base",
            y_lim=[0, 1],
            visible=False,
            height=260,
            buttons=[],
        )
    with gr.Row():
        stop = gr.Button("Stop", visible=False, variant="stop")
        resume = gr.Button("Resume", visible=False)
        onward = gr.Button("See what it gained", visible=False, variant="primary")
    timer = gr.Timer(_SECONDS_BETWEEN_LOOKS, active=False)
    seen = gr.State(None)

    outputs = [status, losses, scores, stop, resume, onward, timer, seen]
    follow = event(_followed, run, outputs, again=True)
    run.input(**follow)
    timer.tick(**event(_ticked, [run, seen], outputs))
    stop.click(**event(_stop, run, stop))
    resume.click(**event(_resume, run, resume)).success(**follow)
    return Panel(run, onward, follow)


def _followed(name: str | None) -> tuple[Any, ...]:
    if not name:
        return (gr.skip(),) * 8
    return _filled(watch.look(name)) if watch.is_known(name) else _nothing()


def _ticked(name: str | None, seen: tuple[Any, ...] | None) -> tuple[Any, ...]:
    """Return what has changed since the last look: mostly nothing, and then nothing is sent."""
    if not name or not watch.is_known(name):
        return _nothing()
    watched = watch.look(name)
    if _mark(watched) == seen:
        return (gr.skip(),) * 8
    filled = _filled(watched)
    if seen is None or seen[:2] != (watched.name, watched.state):
        return filled
    status, losses, scores, *_, mark = filled  # in the same state buttons stay as they are, "Stopping ..." too
    return (status, losses, scores, *(gr.skip(),) * 4, mark)


def _nothing() -> tuple[Any, ...]:
    """Return the panel where no run is chosen, or the one that was has gone."""
    hidden = (gr.LinePlot(visible=False),) * 2 + (gr.Button(visible=False),) * 3
    return ("", *hidden, gr.Timer(active=False), None)


def _filled(watched: Watched) -> tuple[Any, ...]:
    return (
        views.status(watched),
        gr.LinePlot(value=_by_whole("step", watched.losses), visible=len(watched.losses) > 1),
        gr.LinePlot(value=_by_whole("epoch", watched.scores), visible=len(watched.scores) > 2),
        gr.Button("Stop", visible=watched.can_stop, interactive=True),
        gr.Button(visible=watched.can_resume),
        gr.Button(visible=watched.state == "finished"),
        gr.Timer(active=watched.state in UNDER_WAY),
        _mark(watched),
    )


def _by_whole(column: str, curve: pd.DataFrame) -> pd.DataFrame:
    """Return a curve with the first steps or epochs as words: between few numbers the axis would have halves."""
    if curve.empty or curve[column].max() > _LAST_AS_WORD:
        return curve
    return curve.assign(**{column: curve[column].map("{:2.0f}".format)})  # in this width their order is that of numbers


def _mark(watched: Watched) -> tuple[Any, ...]:
    return watched.name, watched.state, watched.sentence, watched.step, len(watched.scores), len(watched.warnings)


def _stop(name: str | None) -> gr.Button:
    job = jobs.find(name) if name and watch.is_known(name) else None
    if job is not None:
        job.stop()
    return gr.Button("Stopping ...", interactive=False)


def _resume(name: str | None) -> gr.Button:
    run = watch.open_named(name)
    jobs.begin(run.path.name, ["train", "--resume", str(run.path)])
    return gr.Button(visible=False)
