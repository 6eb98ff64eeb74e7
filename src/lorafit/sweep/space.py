"""The search space: for each key of a recipe that a search may choose, what it may be.

A TOML file with the tables of a recipe. A list: one of these. A table with `from` and `to`: a number between them, by
its magnitude with `log = true`, in steps with `step`; an integer where both ends are.
"""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lorafit import recipe as recipes
from lorafit.errors import RecipeError
from lorafit.recipe import Recipe

# What they decide is the same for all trials: where a run lies, and by what they are compared.
_FIXED = {
    "name": "each trial has a name of its own",
    "training.select_by": "it is what trials are compared by, so it stands in the recipe",
}


class Range(BaseModel):
    """Numbers from `low` to `high`, both included."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    low: int | float = Field(alias="from")
    high: int | float = Field(alias="to")
    log: bool = False
    step: int | float | None = None

    @model_validator(mode="after")
    def _there_is_something_between(self) -> "Range":
        if self.low >= self.high:
            raise ValueError(f"from {self.low:g} to {self.high:g} is an empty range: `to` has to be larger")
        if self.log and self.low <= 0:
            raise ValueError(f"log = true needs a range above 0; it begins at {self.low:g}")
        if self.step is not None and (self.log or not 0 < self.step <= self.high - self.low):
            raise ValueError(f"step = {self.step:g} needs to fit into the range, and goes without log = true")
        return self

    @property
    def is_whole(self) -> bool:
        """Whether it holds integers only."""
        return all(isinstance(n, int) for n in (self.low, self.high, self.step if self.step is not None else 0))


@dataclass(frozen=True)
class Space:
    """What some keys of a recipe may be: a range, or choices by what each is called."""

    keys: dict[str, Range | dict[str, Any]]

    def changes(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return the values that a trial's parameters mean."""
        found = {}
        for key, allowed in self.keys.items():
            found[key] = params[key] if isinstance(allowed, Range) else allowed[params[key]]
        return found

    def as_record(self) -> dict[str, Any]:
        """Return the space as plain values."""
        return {
            key: allowed.model_dump() if isinstance(allowed, Range) else list(allowed)
            for key, allowed in self.keys.items()
        }


def load(path: Path | str, recipe: Recipe) -> Space:
    """Return the space in a TOML file, each end and choice of which fits the recipe.

    Raises:
        RecipeError: no such file, no valid TOML, a key that recipes don't have or a search can't choose, an empty
            range, a value that the recipe can't have.

    >>> load("recipes/spaces/demo.toml", recipe.load("recipes/demo.toml")).keys["adapter.rank"]
    {'4': 4, '8': 8, '16': 16}
    """
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"There is no space {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} can't be read as a space: {error}.") from None
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path} is not valid TOML: {error}.") from None
    keys = {}
    for key, allowed in _flat(values):
        keys[key] = _allowed(key, allowed, recipe, str(path))
    if not keys:
        raise RecipeError(f"{path} names no key of a recipe, such as adapter.rank = [4, 8, 16].")
    return Space(keys)


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and not {"from", "to"} & value.keys():
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _allowed(key: str, allowed: Any, recipe: Recipe, place: str) -> Range | dict[str, Any]:
    if key in _FIXED:
        raise RecipeError(f"{place}: {key} can't be searched: {_FIXED[key]}.")
    recipes.refuse_unknown(key, place)
    if isinstance(allowed, dict):
        try:
            found = Range.model_validate(allowed)
        except ValidationError as error:
            raise RecipeError(f"{place}: {key}: {_fault(error)}.") from None
        ends: list[Any] = [found.low, found.high, found.low + (found.step or 0)]
    elif isinstance(allowed, list) and allowed:
        ends = allowed
    else:
        raise RecipeError(
            f"{place}: {key} is neither choices, such as [4, 8], nor a range, such as {{ from = 1, to = 9 }}."
        )
    for value in ends:
        recipes.changed(recipe, {key: value}, place)
    return found if isinstance(allowed, dict) else {_called(value): value for value in ends}


def _fault(error: ValidationError) -> str:
    fault = error.errors()[0]
    if fault["type"] == "value_error":
        return str(fault["ctx"]["error"])
    if fault["type"] == "missing":
        return "a range has a number at `from` and one at `to`"
    return f"`{fault['loc'][0]}` of a range: {fault['msg'][0].lower()}{fault['msg'][1:]}"


def as_toml(value: Any) -> str:
    """Return a value as TOML has it, on one line.

    >>> as_toml(["query", "value"])
    '["query", "value"]'
    """
    if isinstance(value, list):
        return f"[{', '.join(map(as_toml, value))}]"
    return tomli_w.dumps({"v": value}).removeprefix("v = ").strip()


def shown(value: Any) -> str:
    """Return a value as tables have it: a word bare, three digits of a fraction, else as in TOML."""
    return value if isinstance(value, str) else f"{value:.3g}" if isinstance(value, float) else as_toml(value)


def _called(value: Any) -> str:
    """Return what tells a choice from others: a word bare, else as in TOML."""
    return value if isinstance(value, str) else as_toml(value)
