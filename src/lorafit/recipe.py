"""What a run is: the validated recipe. One setting, one home; its meaning stands beneath it.

A recipe is a TOML file. Keys that this version does not serve are refused, never ignored.
"""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from lorafit.errors import RecipeError, nearest
from lorafit.manifest import LongText, Pooling

PositiveInt = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Size = PositiveInt | Share
Rate = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, StringConstraints(min_length=1)]
OFF = 0
OWN = ("validation", "test")  # the splits that may have a source of their own


class _Table(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Data(_Table):
    """Which texts and labels, and how they are split."""

    source: Name = "bundled:imdb"
    """bundled:imdb, bundled:rotten-tomatoes, hub:NAME[@REVISION], or the path of a CSV, TSV, JSONL or Parquet file."""
    text: Name = "text"
    """The column with the texts."""
    text_pair: str = ""
    """The column with each text's second one, where pairs are classified."""
    label: Name | Annotated[list[Name], Field(min_length=2)] = "label"
    """The column with the labels, strings or integers; or several columns of 0 and 1, one a label."""
    label_separator: str = ""
    """What stands between the labels of one text, such as "|"; "json": they are a JSON list; empty: a text has one."""
    labels: list[Name] = []
    """Label names in the order of their ids; empty: the source's own names, or those found, sorted."""
    train_size: Size = 0.7
    """The texts to learn from: how many (an integer), or a share of what there is (a float)."""
    validation_size: Size = 0.15
    """The texts on which the best epoch is chosen; of a `validation_source` how many, all where this is not set."""
    validation_source: str = ""
    """"split:NAME" of a Hub data set, or a source of its own; empty: validation is split from `source`."""
    test_size: Size = 0.15
    """The texts that are looked at once, at the end; of a `test_source` how many, all (1.0) where this is not set."""
    test_source: str = ""
    """As `validation_source`, for the test. With both, `train_size` too is all where it is not set."""
    max_tokens: Annotated[int, Field(ge=8)] = 512
    """Longer texts are cut to this many tokens, special tokens included, or read in windows of as many."""
    long_text: LongText = "head"
    """What is read of longer texts: their head, a quarter head and the rest tail, or all in windows, logits pooled."""
    on_empty: Literal["refuse", "drop"] = "refuse"
    """What happens to rows with an empty text."""
    html: Literal["keep", "strip"] = "keep"
    """"strip" takes tags such as <br /> out of the texts."""

    @property
    def own_sources(self) -> dict[str, str]:
        """The splits that have a source of their own, and its name."""
        named = {"validation": self.validation_source, "test": self.test_source}
        return {split: source for split, source in named.items() if source}

    @model_validator(mode="before")
    @classmethod
    def _a_source_of_one_split_is_taken_whole(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        whole = [split for split in OWN if values.get(f"{split}_source")]
        whole += ["train"] if len(whole) == len(OWN) else []
        return {f"{split}_size": 1.0 for split in whole} | values

    @model_validator(mode="after")
    def _labels_are_distinct(self) -> "Data":
        repeated = {name for name in self.labels if self.labels.count(name) > 1}
        if repeated or len(self.labels) == 1:
            raise ValueError(f"data.labels needs at least two names, each once; it is {self.labels}")
        return self

    @field_validator("label_separator")
    @classmethod
    def _json_is_written_small(cls, separator: str) -> str:
        if separator != "json" and separator.lower() == "json":
            raise ValueError(f'data.label_separator = "{separator}": cells that are JSON lists have "json"')
        return separator

    @model_validator(mode="after")
    def _split_is_of_the_hub(self) -> "Data":
        for split, source in self.own_sources.items():
            if source.startswith("split:") and not self.source.startswith("hub:"):
                raise ValueError(
                    f'data.{split}_source = "{source}" is a split of a Hub data set, and data.source, {self.source}, '
                    "is none. Name a file or another source, or leave it out"
                )
        return self

    @model_validator(mode="after")
    def _columns_are_labels_or_hold_them(self) -> "Data":
        if isinstance(self.label, str):
            return self
        if len(set(self.label)) < len(self.label):
            raise ValueError(f"data.label names a column twice; it is {self.label}")
        if self.label_separator or self.labels:
            raise ValueError(
                "data.label names several columns, each a label of its own: leave out data.label_separator, and "
                "data.labels, for the names are the columns'"
            )
        return self

    @model_validator(mode="after")
    def _pairs_are_cut(self) -> "Data":
        if self.text_pair and self.text_pair == self.text:
            raise ValueError(f"data.text and data.text_pair name the same column, {self.text!r}")
        if self.text_pair and self.long_text != "head":
            raise ValueError(
                f'data.long_text = "{self.long_text}" is for single texts; of pairs, the longer text is cut. '
                'Set data.long_text = "head", or leave out data.text_pair'
            )
        return self


class Encoder(_Table):
    """The pretrained encoder under the adapter."""

    name: Name = "bundled:minilm"
    """bundled:minilm, hub:NAME[@REVISION], or the path of a folder."""
    pooling: Pooling = "first"
    """What the head reads: the first token, as its own code has it; or the mean of all, which plain PEFT can't say."""
    dropout: Rate | Literal["keep"] = 0.0
    """The encoder's own dropout while the adapter trains; "keep" leaves its configuration alone."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """"auto" takes bf16 where this machine measures it faster."""


class Adapter(_Table):
    """The LoRA adapter (Hu et al. 2021, arXiv:2106.09685)."""

    rank: PositiveInt = 8
    """The inner width r of the two factors: a larger one learns more, and makes a larger file."""
    alpha: Annotated[float, Field(gt=0)] = 16
    """The update is scaled by alpha / rank; with variant "rslora" by alpha / sqrt(rank)."""
    dropout: Rate = 0.0
    """Dropout on the adapter's input."""
    targets: Literal["attention", "all-linear"] | Annotated[list[Name], Field(min_length=1)] = "all-linear"
    """The layers that get an adapter: "attention", "all-linear" (never the head), or names of linear layers."""
    layers: str = "all"
    """"all", or "top:K": of the encoder's K last layers only, without what has no number, such as a pooler."""
    variant: Literal["lora", "rslora", "dora"] = "lora"
    """"rslora" (arXiv:2312.03732) scales for large ranks; "dora" (arXiv:2402.09353) learns each row's length apart."""
    init: Literal["default", "gaussian", "orthogonal", "pissa", "olora"] = "default"
    """How the factors start. "pissa" and "olora" make them of the base's weights, and are saved with twice the rank."""
    also_train: list[Name] = []
    """Modules of the encoder that train whole, such as "pooler" or "LayerNorm"; no layer in them gets an adapter."""

    def __str__(self) -> str:
        name = {"lora": "LoRA", "rslora": "rsLoRA", "dora": "DoRA"}[self.variant]
        targets = self.targets if isinstance(self.targets, str) else ", ".join(self.targets)
        more = [f"of layers {self.layers}"] if self.layers != "all" else []
        more += [f"started by {self.init}"] if self.init != "default" else []
        more += [f"with {', '.join(self.also_train)} trained whole"] if self.also_train else []
        return ", ".join([f"{name} (r={self.rank}, alpha={self.alpha:g}, on {targets})", *more])

    @field_validator("layers")
    @classmethod
    def _layers_are_counted(cls, layers: str) -> str:
        if layers != "all" and not re.fullmatch(r"top:[1-9]\d*", layers):
            raise ValueError(f'adapter.layers is "all" or "top:K", such as "top:3"; it is "{layers}"')
        return layers

    @model_validator(mode="after")
    def _orthogonal_halves_are_equal(self) -> "Adapter":
        if self.init == "orthogonal" and self.rank % 2:
            raise ValueError(f'adapter.init = "orthogonal" needs an even adapter.rank; it is {self.rank}')
        return self


class Training(_Table):
    """How the adapter is trained."""

    epochs: PositiveInt = 4
    """Passes over the training texts; the best on validation is kept."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """How far a step goes, at most. LoRA needs about ten times the rate of full fine-tuning."""
    batch_size: PositiveInt = 16
    """Texts a step."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the rate falls after the warm-up."""
    warmup: Rate = 0.06
    """Share of the steps in which the rate rises to its peak."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decay of the trained weights."""
    class_weights: Literal["none", "balanced"] = "none"
    """"balanced": rare labels count as much as common ones."""
    thresholds: Literal["none", "f1"] = "none"
    """"f1": a label is given from a probability of its own, which gives the best macro F1 on validation."""
    lora_plus_ratio: Annotated[float, Field(ge=1)] = 1.0
    """LoRA+ (Hayou et al. 2024, arXiv:2402.12354): the rate of factor B over that of A; 1 = off, 16 is usual."""
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the steps, the last ones, whose weights are averaged; 0 = off. Each epoch's end is validated with the
    mean so far, the run's own weights where the share has not begun, and the best epoch is kept."""
    select_by: Literal["accuracy", "f1"] = "accuracy"
    """The validation score that chooses the best epoch, "f1" the macro F1; ties go to the lower loss."""
    early_stopping: Annotated[int, Field(ge=0)] = OFF
    """Stop after this many epochs without gain; 0 = off."""
    checkpoint_every: PositiveInt | Literal["epoch"] = "epoch"
    """"epoch", or a number of steps."""
    cache_prefix: bool = False
    """Keep on disk what the frozen layers below `adapter.layers = "top:K"` give, which is the same in every epoch."""
    report_to: list[Name] = []
    """transformers' trackers: tensorboard, mlflow, wandb, ..."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads; 0 = all cores."""

    @model_validator(mode="after")
    def _the_last_steps_are_reached(self) -> "Training":
        if self.average and self.early_stopping:
            raise ValueError(
                f"training.average = {self.average:g} takes the last of all steps, which training.early_stopping = "
                f"{self.early_stopping} may leave out. Set one of them to 0"
            )
        return self


class Recipe(_Table):
    """A run: seed, data, encoder, adapter, training.

    >>> Recipe().adapter.rank
    8
    """

    name: Annotated[str, StringConstraints(pattern=r"^[\w][\w.-]*$")] = "run"
    """The run folder's name."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Decides splits, fresh head, adapter and the order of the texts."""
    data: Data = Data()
    encoder: Encoder = Encoder()
    adapter: Adapter = Adapter()
    training: Training = Training()

    @model_validator(mode="after")
    def _a_prefix_is_frozen(self) -> "Recipe":
        if self.training.cache_prefix and self.adapter.layers == "all":
            raise ValueError(
                "training.cache_prefix = true keeps what the layers below the lowest adapter give, and "
                'adapter.layers = "all" leaves none. Set adapter.layers to "top:K", such as "top:3", or '
                "training.cache_prefix = false"
            )
        if self.training.cache_prefix and self.encoder.dropout != 0:
            raise ValueError(
                f"training.cache_prefix = true needs layers that give the same in every epoch, and encoder.dropout = "
                f"{_as_toml(self.encoder.dropout)} changes that. Set encoder.dropout = 0.0, or training.cache_prefix = "
                "false"
            )
        return self


def load(path: Path | str, overrides: tuple[str, ...] = (), *, small: bool = False) -> Recipe:
    """Return the recipe in a TOML file, with overrides such as ``"adapter.rank=4"`` applied.

    Args:
        path: the TOML file.
        overrides: `table.key=value`, the value written as in TOML; a bare word is a string.
        small: apply the recipe's own ``[small]`` table; the run's name gets the ending "-small".

    Raises:
        RecipeError: no such file, a TOML fault, an unknown key, a wrong type or an impossible value.

    >>> load("recipes/demo.toml", ("adapter.rank=4",)).adapter.rank
    4
    """
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"There is no recipe {path}.") from None
    except OSError as error:
        raise RecipeError(f"{path} can't be read as a recipe: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 text (byte {error.start}), so it is no TOML file.") from None
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path} is not valid TOML: {error}.") from None
    changes = values.pop("small", None)
    values.setdefault("name", _as_name(path.stem))
    made = from_values(values, overrides, place=str(path))
    if changes is not None:
        if not isinstance(changes, dict):
            raise RecipeError(f"{path}: small is a table of changes, such as data.train_size = 400 under [small].")
        reduced = _merged(values, changes) | {"name": f"{values['name']}-small"}
        checked = from_values(reduced, overrides, place=f"{path}, [small]")  # a fault in it is one without --small too
        if small:
            return checked
    elif small:
        raise RecipeError(f"{path} has no [small] table, so --small has no meaning for it.")
    return made


def from_values(values: dict[str, Any], overrides: tuple[str, ...] = (), *, place: str = "recipe") -> Recipe:
    """Return the recipe made of plain nested values; `place` names it in errors.

    >>> from_values({"adapter": {"rank": 4}}).adapter.rank
    4
    """
    for override in overrides:
        values = _merged(values, _parsed(override))
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(f"{place}: {_explained(error)}") from None


def changed(recipe: Recipe, changes: Mapping[str, Any], place: str = "recipe") -> Recipe:
    """Return the recipe with other values at some keys; `place` names where they come from in errors.

    >>> changed(Recipe(), {"adapter.rank": 4}).adapter.rank
    4
    """
    values = recipe.model_dump()
    for key, value in changes.items():
        values = _merged(values, _nested(key, value))
    return from_values(values, place=place)


def refuse_unknown(key: str, place: str) -> None:
    """Refuse the name of a key that recipes don't have, such as "adapter.rnk"; `place` says where it stands.

    Raises:
        RecipeError: names the nearest right one.
    """
    tables = [name for name in _PATHS if any(other.startswith(f"{name}.") for other in _PATHS)]
    if key in tables:
        raise RecipeError(f"{place}: {key} is a table of a recipe, not a key, such as {key}.{_first_key(key)}.")
    if key not in _PATHS:
        raise RecipeError(f"{place}: {key} is no key of a recipe.{_suggestion(key.split('.'))}")


def for_file(file: Path, text: str, label: str, overrides: tuple[str, ...] = (), *, text_pair: str = "") -> Recipe:
    """Return a recipe with the defaults for a data file; its name is the file's.

    >>> for_file(Path("reviews.csv"), "review", "sentiment").name
    'reviews'
    """
    data = {"source": str(file), "text": text, "text_pair": text_pair, "label": label}
    return from_values({"name": _as_name(file.stem), "data": data}, overrides, place=str(file))


def _as_name(stem: str) -> str:
    """Return the name of a run for the name of a file: "IMDB Dataset" -> "IMDB-Dataset"."""
    return re.sub(r"[^\w.-]+", "-", stem).strip("-.") or "run"


def shipped(name: str) -> Path:
    """Return the path of a recipe that comes with lorafit, installed or in a checkout."""
    installed = Path(__file__).parent / "recipes"
    folder = installed if installed.is_dir() else Path(__file__).parents[2] / "recipes"
    return folder / f"{name}.toml"


def to_toml(recipe: Recipe) -> str:
    """Return the recipe with every key written out, as TOML."""
    return tomli_w.dumps(recipe.model_dump())


def without_folders(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as plain values in which a file or folder has its last name only: for other people's eyes."""
    values = recipe.model_dump()
    sources = [("data", key) for key in ("source", *(f"{split}_source" for split in OWN))]
    for table, key in (*sources, ("encoder", "name")):
        source = values[table][key]
        if not source.startswith(("bundled:", "hub:", "split:")):
            values[table][key] = Path(source).name
    return values


def to_commented_toml(recipe: Recipe, title: str) -> str:
    """Return the recipe as TOML to edit: under `title`, every key with its meaning behind it."""
    lines = [f"# {title}", ""]
    tables = []
    for name, field in Recipe.model_fields.items():
        value = getattr(recipe, name)
        if isinstance(value, _Table):
            tables += [
                "",
                f"[{name}]",
                *(_commented(key, getattr(value, key), info) for key, info in _fields(value)),
            ]
        else:
            lines.append(_commented(name, value, field))
    return "\n".join(lines + tables) + "\n"


def _fields(table: _Table) -> list[tuple[str, FieldInfo]]:
    return list(type(table).model_fields.items())


def _commented(key: str, value: Any, field: FieldInfo) -> str:
    written = tomli_w.dumps({key: value}, multiline_strings=False).strip().replace("\n", "")
    return f"{written:<36}  # {' '.join((field.description or '').split())}"


def _parsed(override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"An override has the form table.key=value; this one is {override!r}.")
    try:
        value: Any = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word such as hub:bert-base-cased
    return _nested(key.strip(), value)


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def _merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for key, change in changes.items():
        old = merged.get(key)
        merged[key] = _merged(old, change) if isinstance(old, dict) and isinstance(change, dict) else change
    return merged


def _explained(error: ValidationError) -> str:
    """Say the first fault in one line: the place, the fault, and the nearest right name."""
    fault = error.errors()[0]
    place = [str(part) for part in fault["loc"] if str(part) in _KEYS or fault["type"] == "extra_forbidden"]
    key = ".".join(place)
    if fault["type"] == "extra_forbidden":
        return f"{key} is no key of a recipe.{_suggestion(place)}"
    if fault["type"] == "value_error":
        return str(fault["ctx"]["error"])
    return f"{key} = {_as_toml(fault['input'])}: {_needed(key, error)}."


def _first_key(table: str) -> str:
    return next(key for key in _PATHS if key.startswith(f"{table}.")).removeprefix(f"{table}.")


def _suggestion(place: list[str]) -> str:
    table, leaf = ".".join(place[:-1]), place[-1]
    here = {key.removeprefix(f"{table}.") for key in _PATHS if key.startswith(f"{table}.")} if table else set(_PATHS)
    elsewhere = [key for key in _PATHS if key.endswith(f".{leaf}")]
    if elsewhere:
        return f" Did you mean '{elsewhere[0]}'?"
    close = nearest(leaf, sorted(here))
    return close.replace("'", f"'{table}.", 1) if table else close


def _needed(key: str, error: ValidationError) -> str:
    """Join what each branch of a type asks for, such as "at least 1" or "one of 'auto', 'bf16', 'fp32'"."""
    wants: list[str] = []
    for fault in error.errors():
        same_key = ".".join(str(part) for part in fault["loc"] if str(part) in _KEYS) == key
        if not same_key:
            continue
        if fault["type"] == "literal_error":
            want = f"it can be {fault['ctx']['expected']}"
        else:
            want = fault["msg"][0].lower() + fault["msg"][1:].replace("Input should", "it should")
            want = want.replace("input should", "it should")
        if want not in wants:
            wants.append(want)
    return ", or ".join(wants)


def _as_toml(value: Any) -> str:
    try:
        return tomli_w.dumps({"v": value}).removeprefix("v = ").strip() if not isinstance(value, dict) else "{...}"
    except TypeError:
        return repr(value)


def _paths(model: type[BaseModel], prefix: str = "") -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        found.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += _paths(field.annotation, f"{prefix}{name}.")
    return found


_PATHS = _paths(Recipe)
_KEYS = {part for path in _PATHS for part in path.split(".")}
