"""A recipe's settings as fields of the page, made of its own tables: names, meanings and defaults have one home."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

import gradio as gr
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lorafit.recipe import Adapter, Data, Encoder, Recipe, Training
from lorafit.ui.choice import value_of, written

# What matters most, in plain words.
MAIN = {
    "encoder.name": "Encoder",
    "data.train_size": "Texts to train on",
    "data.max_tokens": "Tokens read of a text, at most",
    "training.epochs": "Epochs",
    "training.learning_rate": "Learning rate",
    "adapter.rank": "Rank of the adapter",
}
_OF_THE_FIRST_STEP = ("data.source", "data.text", "data.text_pair", "data.label")
_TABLES: dict[str, type[BaseModel]] = {"data": Data, "encoder": Encoder, "adapter": Adapter, "training": Training}

Fields = dict[str, Any]
"""A component by its key, such as ``adapter.rank``."""


def main_fields() -> Fields:
    """Put the few settings that matter onto the page."""
    return {key: _field(key, label) for key, label in MAIN.items()}


def other_fields() -> Fields:
    """Put all others onto the page, a group a table of the recipe."""
    made = {"seed": _field("seed", "seed")}
    for table, model in _TABLES.items():
        keys = [f"{table}.{name}" for name in model.model_fields]
        left = [key for key in keys if key not in MAIN and key not in _OF_THE_FIRST_STEP]
        gr.HTML(f"<h3>{table}</h3>")
        with gr.Row(elem_classes="fields"):
            made |= {key: _field(key, key.removeprefix(f"{table}.")) for key in left}
    return made


def shown_values(recipe: Recipe, keys: Sequence[str]) -> list[str]:
    """Return a recipe's values as its fields show them."""
    return [written(value_of(recipe, key)) for key in keys]


def changed(recipe: Recipe, values: Mapping[str, str]) -> list[str]:
    """Return the settings that differ from the recipe's, as they stand behind ``-s``.

    >>> changed(Recipe(), {"adapter.rank": "4", "seed": "0"})
    ['adapter.rank=4']
    """
    return [f"{key}={value}" for key, value in values.items() if value != written(value_of(recipe, key))]


def _field(key: str, label: str) -> Any:
    info = _info(key)
    meaning = " ".join((info.description or "").split())
    value = written(value_of(Recipe(), key))
    if get_origin(info.annotation) is Literal:
        return gr.Dropdown(list(get_args(info.annotation)), value=value, label=label, info=meaning, interactive=True)
    return gr.Textbox(value=value, label=label, info=meaning, max_lines=1, interactive=True)


def _info(key: str) -> FieldInfo:
    table, _, name = key.rpartition(".")
    return (_TABLES[table] if table else Recipe).model_fields[name]
