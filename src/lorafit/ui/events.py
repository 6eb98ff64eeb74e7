"""What an event of the page is, and how it says no: the command line's sentence, in a box that stays until closed."""

import functools
from collections.abc import Callable
from typing import Any

import gradio as gr
from markupsafe import escape

from lorafit.errors import LorafitError

Event = dict[str, Any]
"""What Gradio is to do: "fn" with the values of "inputs", and what it returns into "outputs"."""


def event(function: Callable[..., Any], inputs: Any, outputs: Any) -> Event:
    """Return an event without an animation over what it changes: the steps say in words what they do.

    >>> button.click(**event(shown(answer), text, answer_shown))
    """
    return {
        "fn": function,
        "inputs": inputs,
        "outputs": outputs,
        "show_progress": "hidden",
        "api_visibility": "private",
    }


def shown(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function of an event, whose refusals are shown; nothing else on the page changes then."""

    @functools.wraps(function)
    def asked(*values: Any) -> Any:
        try:
            return function(*values)
        except LorafitError as error:
            raise gr.Error(str(escape(str(error))), duration=None, print_exception=False) from None

    return asked
