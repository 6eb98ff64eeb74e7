"""The third step: the runs there are, what one gained over its base, several beside each other, files to take along."""

import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import gradio as gr

from lorafit import runs
from lorafit.errors import DataError, LorafitError
from lorafit.files import storing
from lorafit.runs import Run
from lorafit.ui import jobs, libraries, uploads, views, watch
from lorafit.ui.events import Event, event
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
    with gr.Column(visible=False) as downloads:
        gr.HTML(views.note("The bundle is the classifier itself, for programs elsewhere; here it stays in runs/."))
        with gr.Row():
            bundle = gr.DownloadButton("Download the bundle (zip)")
            page = gr.DownloadButton("Download the report")
            onward = gr.Button("Try it", variant="primary")
    with gr.Accordion("The whole report", open=False, visible=False) as whole:
        written = gr.HTML()
    with gr.Accordion("Several runs beside each other", open=False):
        several = gr.Dropdown(
            label="Evaluated runs with the same test texts; each is compared with the first",
            choices=_evaluated_ones(),
            multiselect=True,
            interactive=True,
        )
        compare = gr.Button("Compare them")
        beside = gr.HTML()
    timer = gr.Timer(_SECONDS_BETWEEN_LOOKS, active=False)

    outputs = [table, status, found, downloads, bundle, page, whole, written, evaluate, several, timer]
    show = event(_shown, run, outputs, again=True, in_turn="show")
    refresh = event(_refreshed, [run, several], [table, run, several])
    begin = event(_begun, run, timer)
    run.input(**show)
    evaluate.click(**begin).success(**show)
    timer.tick(**event(_shown, run, outputs, in_turn="show"))
    compare.click(**event(_compared, several, beside))
    return CompareStep(run, onward, refresh, begin, show)


def _finished() -> list[str]:
    return [run.path.name for run in runs.list_runs() if run.finished]


def _evaluated_ones() -> list[str]:
    return [run.path.name for run in runs.list_runs() if run.scores]


def _refreshed(name: str | None, several: list[str]) -> tuple[Any, ...]:
    there, evaluated = _finished(), _evaluated_ones()
    return (
        views.runs_table(runs.list_runs()),
        gr.Dropdown(choices=there, value=name if name in there else next(iter(there), None)),
        gr.Dropdown(choices=evaluated, value=[one for one in several or [] if one in evaluated]),
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
    """Return what there is to show of a run: what it gained, or that it is not evaluated yet."""
    if not name:
        return _waiting("", may_evaluate=False)
    libraries.ready()
    from lorafit import report

    try:
        run, watched = watch.open_named(name), watch.look(name)
        if watched.state in UNDER_WAY:
            return _waiting(views.status(watched), may_evaluate=False, goes_on=True)
        if not report.is_whole(run):
            return _waiting(_why_not(run), may_evaluate=True)
        return _evaluated(run)
    except LorafitError as error:
        return _waiting(views.refused(str(error)), may_evaluate=False)


def _why_not(run: Run) -> str:
    """Return why the last evaluation came to nothing; an empty text where there was none."""
    job = jobs.find(run.path.name)
    has_failed = job is not None and job.arguments[0] == "evaluate" and not job.interrupted
    return views.refused(watch.why_it_ended(job)) if has_failed else ""


def _waiting(status: str, *, may_evaluate: bool, goes_on: bool = False) -> tuple[Any, ...]:
    hidden = (gr.Column(visible=False), gr.skip(), gr.skip(), gr.Accordion(visible=False), "")
    return gr.skip(), status, "", *hidden, gr.Button(visible=may_evaluate), gr.skip(), gr.Timer(active=goes_on)


def _evaluated(run: Run) -> tuple[Any, ...]:
    files = _offered(run)
    return (
        views.runs_table(runs.list_runs()),
        "",
        views.evaluation(run),
        gr.Column(visible=True),
        *(gr.DownloadButton(value=str(file)) for file in files),
        gr.Accordion(visible=True),
        views.report(run),
        gr.Button(visible=False),
        gr.Dropdown(choices=_evaluated_ones()),
        gr.Timer(active=False),
    )


def _offered(run: Run) -> tuple[Path, Path]:
    """Return the bundle as a zip, and the report, to download; made once for each state of the run."""
    page = run.path / "report.html"
    folder = uploads.offered(f"{run.path.name}-{page.stat().st_mtime_ns}")
    zipped, copied = folder / f"{run.path.name}-adapter.zip", folder / f"{run.path.name}-report.html"
    with storing(folder):
        if not zipped.is_file():
            made = shutil.make_archive(str(folder / f"making-{uuid4().hex}"), "zip", run.path, "adapter")
            Path(made).replace(zipped)
        shutil.copyfile(page, copied)
    return zipped, copied


def _compared(names: list[str]) -> str:
    libraries.ready()
    from lorafit import comparison

    if len(names or []) < 2:
        raise DataError("Choose two runs or more.")
    folders = [watch.open_named(name).path for name in names]
    with tempfile.TemporaryDirectory(dir=INCOMING) as out:
        found = comparison.compare(folders, Path(out))
        (figure,) = Path(out).glob("*.svg")
        return views.compared(found, figure.read_text(encoding="utf-8"))
