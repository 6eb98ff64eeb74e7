"""The third step: the runs there are, what one gained over its base, several beside each other, files to take along."""

import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from lorafit import runs
from lorafit.ui import jobs, libraries, views, watch
from lorafit.ui.events import Event, event, shown
from lorafit.ui.uploads import INCOMING
from lorafit.ui.watch import UNDER_WAY

_SECONDS_BETWEEN_LOOKS = 1.0


class CompareStep(NamedTuple):
    """What the other steps need of this one."""

    run: gr.Dropdown
    onward: gr.Button
    refresh: Event
    """The event that lists the runs anew."""
    begin: Event
    show: Event
    """The events that begin to evaluate the run that is chosen, where it is not yet, and show it."""


def build() -> CompareStep:
    """Put the step onto the page."""
    table = gr.HTML()
    run = gr.Dropdown(label="Run", choices=_finished(), value=None, interactive=True)
    with gr.Row():
        evaluate = gr.Button("Evaluate on the test texts", variant="primary", visible=False)
    status = gr.HTML()
    found = gr.HTML()
    with gr.Row(visible=False) as downloads:
        bundle = gr.DownloadButton("Download the bundle (zip)")
        page = gr.DownloadButton("Download the report")
        onward = gr.Button("Try it", variant="primary")
    with gr.Accordion("The whole report", open=False, visible=False) as whole:
        written = gr.HTML()
    with gr.Accordion("Several runs beside each other", open=False):
        several = gr.Dropdown(
            label="Evaluated runs with the same test texts; each is compared with the first",
            choices=_finished(),
            multiselect=True,
            interactive=True,
        )
        compare = gr.Button("Compare them")
        beside = gr.HTML()
    timer = gr.Timer(_SECONDS_BETWEEN_LOOKS, active=False)

    outputs = [status, found, downloads, bundle, page, whole, written, evaluate, timer]
    show = event(shown(_shown), run, outputs)
    refresh = event(_refreshed, [run, several], [table, run, several])
    begin = event(shown(_begun), run, timer)
    run.input(**show)
    evaluate.click(**begin).success(**show)
    timer.tick(**show, trigger_mode="once")
    timer.tick(**refresh, trigger_mode="once")
    compare.click(**event(shown(_compared), several, beside))
    return CompareStep(run, onward, refresh, begin, show)


def _finished() -> list[str]:
    return [run.path.name for run in runs.list_runs() if run.finished]


def _refreshed(name: str | None, several: list[str]) -> tuple[Any, ...]:
    there = _finished()
    return (
        views.runs_table(runs.list_runs()),
        gr.Dropdown(choices=there, value=name if name in there else next(iter(there), None)),
        gr.Dropdown(choices=there, value=[one for one in several or [] if one in there]),
    )


def _begun(name: str | None) -> Any:
    """Begin to evaluate a run, unless it is evaluated, or being so, already."""
    libraries.ready()
    from lorafit import report

    run = watch.open_named(name)
    job = jobs.find(run.path.name)
    if not report.is_whole(run) and (job is None or job.state == "ended"):
        jobs.begin(run.path.name, ["evaluate", str(run.path)])
    return gr.Timer(active=True)


def _shown(name: str | None) -> tuple[Any, ...]:
    libraries.ready()
    from lorafit import report

    if not name:
        return ("", "", *(gr.skip(),) * 7)
    run, watched = watch.open_named(name), watch.look(name)
    working = watched.state in UNDER_WAY
    whole = not working and report.is_whole(run)
    if not whole:
        hidden = (gr.Row(visible=False), gr.skip(), gr.skip(), gr.Accordion(visible=False), "")
        return views.status(watched), "", *hidden, gr.Button(visible=not working), gr.Timer(active=working)
    folder = Path(tempfile.mkdtemp(dir=INCOMING))
    zipped = shutil.make_archive(str(folder / f"{name}-adapter"), "zip", run.path, "adapter")
    page = shutil.copy(run.path / "report.html", folder / f"{name}-report.html")
    return (
        "",
        views.evaluation(run),
        gr.Row(visible=True),
        gr.DownloadButton(value=zipped),
        gr.DownloadButton(value=page),
        gr.Accordion(visible=True),
        views.report(run),
        gr.Button(visible=False),
        gr.Timer(active=False),
    )


def _compared(names: list[str]) -> str:
    libraries.ready()
    from lorafit import comparison

    folders = [watch.open_named(name).path for name in names or []]
    with tempfile.TemporaryDirectory(dir=INCOMING) as out:
        found = comparison.compare(folders, Path(out))
        (figure,) = Path(out).glob("*.svg")
        return views.compared(found, figure.read_text(encoding="utf-8"))
