"""What a visitor chose: data with its columns, and the command that this and changed settings equal."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafit import recipe as recipes
from lorafit import tables
from lorafit.recipe import Recipe

# The recipes with bundled reviews: what a page without a file begins with.
BUNDLED = {
    "demo": "IMDB film reviews",
    "rotten-tomatoes": "Rotten Tomatoes, single sentences",
    "imdb-one-pass": "IMDB film reviews, more of them",
}


@dataclass(frozen=True)
class Choice:
    """A data file with its columns, or a recipe with bundled reviews."""

    source: Path
    text: str = ""
    labels: tuple[str, ...] = ()
    """One column with labels, or several of 0 and 1."""
    pair: str = ""

    def __str__(self) -> str:
        return str(self.source) if self.is_file else BUNDLED[self.source.stem]

    @property
    def is_file(self) -> bool:
        """Whether it is a data file of the visitor's own."""
        return tables.is_table(self.source)

    @property
    def is_ready(self) -> bool:
        """Whether nothing is missing that training needs."""
        return not self.is_file or bool(self.text and self.labels)

    def recipe(self, settings: Sequence[str] = ()) -> Recipe:
        """Return the recipe that the command makes of it.

        Raises:
            RecipeError: a setting that can't be.
        """
        if not self.is_file:
            return recipes.load(self.source, tuple(settings))
        overrides = (*self._several_labels(), *settings)
        return recipes.for_file(self.source, self.text, self.labels[0], overrides, text_pair=self.pair)

    def arguments(self, settings: Sequence[str] = ()) -> list[str]:
        """Return what stands behind `lorafit train`."""
        found = [str(self.source)]
        if self.is_file:
            found += ["--text-column", self.text, "--label-column", self.labels[0]]
            found += ["--pair-column", self.pair] if self.pair else []
            settings = (*self._several_labels(), *settings)
        return ["train", *found, *(part for setting in settings for part in ("-s", setting))]

    def _several_labels(self) -> tuple[str, ...]:
        return (f"data.label={json.dumps(list(self.labels), ensure_ascii=False)}",) if len(self.labels) > 1 else ()


def bundled(name: str) -> Choice:
    """Return the choice of bundled reviews, by the name of their recipe."""
    file = recipes.shipped(name)
    here = Path.cwd()
    return Choice(file.relative_to(here) if file.is_relative_to(here) else file)


def as_command(arguments: Sequence[str]) -> str:
    """Return a command to copy."""
    return shlex.join(["lorafit", *arguments])


def written(value: Any) -> str:
    """Return a setting's value as it is shown and edited: what may stand behind ``-s key=``."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def value_of(recipe: Recipe, key: str) -> Any:
    """Return the value of a key such as ``adapter.rank``."""
    found: Any = recipe
    for part in key.split("."):
        found = getattr(found, part)
    return found
