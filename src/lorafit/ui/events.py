"""What an event of the page is, and how it says no: the command line's sentence, in a box in the corner."""

import functools
import traceback
from collections.abc import Callable
from typing import Any

import gradio as gr
from markupsafe import escape

from lorafit.errors import LorafitError

_SECONDS_SHOWN = 20

Event = dict[str, Any]
"""What Gradio is to do: "fn" with the values of "inputs", and what it returns into "outputs"."""


def event(function: Callable[..., Any], inputs: Any, outputs: Any, *, again: bool = False, in_turn: str = "") -> Event:
    """Return an event whose refusals are shown, without an animation over what it changes: words say what is done.

    Args:
        function: what happens.
        inputs: the components whose values it is given.
        outputs: those that what it returns goes into.
        again: asked once more while it works, it works once more; without it the second press of a button is lost.
        in_turn: events under the same name work one after the other, so that what was asked last is shown last.

    >>> button.click(**event(answer, text, answer_shown))
    """
    mode = "multiple" if again else "once"
    turn = {"concurrency_id": in_turn, "concurrency_limit": 1} if in_turn else {}
    return turn | {
        "fn": _shown(function),
        "inputs": inputs,
        "outputs": outputs,
        "show_progress": "hidden",
        "api_visibility": "private",
        "trigger_mode": mode,
    }


def looking_at(element: str) -> Event:
    """Return the event that brings an element into sight, in the browser alone."""
    js = f"() => document.getElementById('{element}').scrollIntoView()"
    return {"fn": None, "js": js, "show_progress": "hidden", "api_visibility": "private"}


def _shown(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function of an event, whose refusals are shown; nothing else on the page changes then."""

    @functools.wraps(function)
    def asked(*values: Any) -> Any:
        try:
            return function(*values)
        except LorafitError as error:
            raise _refusal(str(error)) from None
        except Exception as error:  # noqa: BLE001  or the page would show nothing, and seem to do nothing
            traceback.print_exc()
            broken = f"Something went wrong that should not ({type(error).__name__})."
            raise _refusal(f"{broken} Where the page was started, more is said.") from None

    return asked


def _refusal(sentence: str) -> gr.Error:
    return gr.Error(str(escape(sentence)), duration=_SECONDS_SHOWN, print_exception=False)
