"""The second step: settings, the command that they equal, an estimate of the time, a training begun."""

import json
import tomllib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gradio as gr

from lorafit.errors import LorafitError, RecipeError, RunError
from lorafit.files import storing
from lorafit.runs import DEFAULT_ROOT
from lorafit.ui import jobs, settings, views, watch
from lorafit.ui.choice import Choice, as_command
from lorafit.ui.events import Event, event, looking_at
from lorafit.ui.panel import Panel

_NO_DATA = "Choose data in the first step."

Values = dict[str, str]
"""What stands in the fields, by their keys."""


class TrainStep(NamedTuple):
    """What the other steps need of this one."""

    begin: gr.Button
    fill: Event
    """Fills the settings anew, for the data chosen."""
    tell_time: Callable[[Callable[..., Any]], None]
    """Measures the time whenever a listener such as `button.click` hears something, and tells it unless another setting
    was changed meanwhile."""
    train: Callable[[gr.Dropdown], Event]
    """Begins the training, and chooses its run in a dropdown."""


def build(choice: gr.State) -> TrainStep:
    """Put the step onto the page."""
    no_data = gr.HTML(views.note(_NO_DATA))
    with gr.Column(visible=False) as form:
        with gr.Row(elem_classes="fields"):
            name = gr.Textbox(label="Name of the run", info="Its folder below runs/.", max_lines=1, max_length=100)
            fields = settings.main_fields()
        with gr.Accordion("All other settings", open=False):
            fields |= settings.other_fields()
        command = gr.Textbox(label="The command it equals", interactive=False, lines=2, buttons=["copy"])
        with gr.Row():
            estimate = gr.Button("Estimate the time")
            begin = gr.Button("Train", variant="primary")
        estimated = gr.HTML()

    keys = list(fields)
    inputs = [choice, name, *fields.values()]

    def of_values(function: Callable[[Choice, str, Values], Any]) -> Callable[..., Any]:
        """Return the function of an event that is given the fields' values one by one."""

        def asked(chosen: Choice | None, name: str, *values: str | None) -> Any:
            if chosen is None:  # the page has been open for longer than the server remembers
                raise RecipeError("The choice is forgotten. Choose data in the first step once more.")
            if not chosen.is_ready:
                raise RecipeError(_NO_DATA)
            given = {key: (value or "").strip() for key, value in zip(keys, values, strict=True)}
            return function(chosen, name.strip(), given)

        return asked

    filled = [no_data, form, name, *fields.values(), command, estimated]
    fill = event(lambda chosen: _filled(chosen, keys), choice, filled, again=True)
    measured = gr.State(None)  # of which command, and what was said
    measure = event(lambda: views.note("Measuring ..."), None, estimated)
    estimating = event(of_values(_estimated), inputs, measured, again=True)
    changes = [field.change for field in (name, *fields.values())]
    gr.on(changes, **event(of_values(_recommanded), inputs, [command, estimated]) | {"trigger_mode": "always_last"})
    tell = event(_if_still_asked, [measured, command], estimated, again=True)
    clear = event(lambda: "", None, estimated)

    def tell_time(listen: Callable[..., Any]) -> None:
        told = listen(**measure).then(**estimating)
        told.success(**tell)
        told.failure(**clear)

    tell_time(estimate.click)

    def training(run: gr.Dropdown) -> Event:
        return event(of_values(_begun), inputs, [run, name, estimated])

    return TrainStep(begin, fill, tell_time, training)


def lead_to(step: TrainStep, panel: Panel) -> None:
    """Let the button begin a training, and the panel follow it."""
    step.begin.click(**step.train(panel.run)).success(**panel.follow).success(**looking_at("runs"))


def _filled(chosen: Choice | None, keys: list[str]) -> tuple[Any, ...]:
    if chosen is None or not chosen.is_ready:
        return (views.note(_NO_DATA), gr.Column(visible=False), *(gr.skip() for _ in range(len(keys) + 3)))
    recipe = chosen.recipe()
    free = jobs.free_name(recipe.name)
    values = settings.shown_values(recipe, keys)
    return (
        views.note(f"Data: {chosen}. All settings can stay as they are."),
        gr.Column(visible=True),
        free,
        *values,
        _command(chosen, free, {}),
        "",
    )


def _changes(chosen: Choice, name: str, values: Values) -> list[str]:
    recipe = chosen.recipe()
    return [*([f"name={_as_setting(name)}"] if name != recipe.name else []), *settings.changed(recipe, values)]


def _as_setting(name: str) -> str:
    """Return a name as it may stand behind ``-s name=``: one that TOML takes for something else is quoted."""
    try:
        tomllib.loads(f"name = {name}")
    except tomllib.TOMLDecodeError:
        return name
    return json.dumps(name, ensure_ascii=False)


def _without_name(arguments: Sequence[str]) -> list[str]:
    """Return a command's arguments without ``-s name=...``."""
    names = [at for at, word in enumerate(arguments) if word.startswith("name=") and arguments[at - 1] == "-s"]
    return [word for at, word in enumerate(arguments) if at not in names and at + 1 not in names]


def _command(chosen: Choice, name: str, values: Values) -> str:
    return as_command(chosen.arguments(_changes(chosen, name, values)))


def _arguments(chosen: Choice, name: str, values: Values) -> list[str]:
    """Return the command's arguments, once it is sure that they make a recipe."""
    changes = _changes(chosen, name, values)
    chosen.recipe(changes)
    return chosen.arguments(changes)


def _recommanded(chosen: Choice, name: str, values: Values) -> tuple[str, str]:
    """Return the command anew, and no estimate: it was of another one."""
    return _command(chosen, name, values), ""


def _estimated(chosen: Choice, name: str, values: Values) -> tuple[str, str]:
    command = _command(chosen, name, values)
    try:
        return command, _measured(_arguments(chosen, name, values))
    except LorafitError as error:
        return command, views.refused(str(error))


def _if_still_asked(measured: tuple[str, str], command: str) -> Any:
    of_command, said = measured
    return said if of_command == command else gr.skip()


def _measured(arguments: list[str]) -> str:
    others = jobs.under_way()
    if not others:
        return views.sentences(jobs.estimate(arguments))
    return views.note(
        f"{DEFAULT_ROOT / others[0].name} is being worked on, so no time can be measured; this training comes after it."
    )


def _begun(chosen: Choice, name: str, values: Values) -> tuple[Any, ...]:
    """Begin a training, under another name where that has been taken meanwhile."""
    _arguments(chosen, name, values)
    with storing(DEFAULT_ROOT / name):  # which may be too long
        free = jobs.free_name(name)
    arguments = _arguments(chosen, free, values)
    for other in jobs.under_way():  # a second press would train the same once more
        if _without_name(other.arguments) == _without_name(arguments):
            raise RunError(f"{DEFAULT_ROOT / other.name} is being trained with these very settings.")
    job = jobs.begin(free, arguments, fresh=True)
    return gr.Dropdown(choices=watch.names(), value=job.name), job.name, ""
