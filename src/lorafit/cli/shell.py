"""What the commands share: the application, their arguments and options, a recipe from what was named."""

import re
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from lorafit import console
from lorafit.errors import RecipeError

if TYPE_CHECKING:
    from lorafit.recipe import Recipe

app = typer.Typer(
    name="lorafit",
    help="Turn a pretrained BERT-family encoder into a text classifier with LoRA, and prove what the adapter gained.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _silence(asked: bool) -> None:
    if asked:
        console.silence()


RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, as TOML.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/demo.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("-s", "--set", metavar="TABLE.KEY=VALUE", help="Change one key of the recipe."),
]
Small = Annotated[bool, typer.Option("--small", help="Apply the recipe's own [small] table.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what stands there.")]
TextColumn = Annotated[str | None, typer.Option("--text-column", metavar="NAME", help="The column with the texts.")]
PairColumn = Annotated[
    str | None, typer.Option("--pair-column", metavar="NAME", help="The column with each text's second one, for pairs.")
]
LabelColumn = Annotated[str | None, typer.Option("--label-column", metavar="NAME", help="The column with the labels.")]
Quiet = Annotated[bool, typer.Option("--quiet", callback=_silence, help="Results, warnings and errors only.")]
BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A run folder or an adapter folder.")]
Encoder = Annotated[
    str | None,
    typer.Option("--encoder", metavar="NAME", help="The base: bundled:NAME, hub:NAME or a folder. [default: found]"),
]
DifferentBase = Annotated[
    bool, typer.Option("--allow-different-base", help="Take a base with other weights; what is written says so.")
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="[ADDRESS]",
        help="On Ray (pip install 'lorafit[cluster]'), from a machine of the cluster: HOST:PORT of its head, or auto; "
        "without an address on this machine alone.",
    ),
]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The run's folder. [default: runs/NAME]")]


def with_ray_address(words: list[str]) -> list[str]:
    """Return a command's words with "local" behind a --ray that has no address, for an option takes one always.

    >>> with_ray_address(["train", "demo.toml", "--ray", "--workers", "2"])
    ['train', 'demo.toml', '--ray', 'local', '--workers', '2']
    """
    found: list[str] = []
    for word, behind in zip_longest(words, words[1:], fillvalue=""):
        found.append(word)
        if word == "--ray" and not re.fullmatch(r"auto|local|(ray://)?[^\s/:]+:\d+", behind):
            found.append("local")
    return found


class Columns(NamedTuple):
    """The columns of a data file that were named."""

    text: str | None
    pair: str | None
    label: str | None


def chosen_recipe(source: Path, columns: Columns, settings: tuple[str, ...], small: bool) -> "Recipe":
    """Return the recipe in a file, or the one for a data file."""
    from lorafit import recipe, tables

    if not tables.is_table(source):
        if any(columns):
            raise RecipeError(
                "--text-column, --pair-column and --label-column go with a data file; a recipe names its own columns."
            )
        return recipe.load(source, settings, small=small)
    if small:
        raise RecipeError("--small goes with a recipe that has a [small] table.")
    return recipe_for_file(source, columns, settings)


def recipe_for_file(file: Path, columns: Columns, settings: tuple[str, ...]) -> "Recipe":
    """Return a recipe for a data file; columns that were not named are found, and said."""
    from lorafit import recipe, tables

    text, pair, label = columns
    table = tables.read(file)
    for name in filter(None, columns):
        tables.column(table, name, str(file))
    if not (text and label):
        others = table.drop(columns=[pair] if pair else [])
        found = tables.guess_columns(others, str(file))
        text, label = text or found.text, label or found.label
        console.say(f"Columns found: texts in {text!r}, labels in {label!r}.")
    return recipe.for_file(file, text, label, settings, text_pair=pair or "")
