"""The study of a recipe and a space in its database, and the folder of its runs: made, or found and checked."""

import json
import logging
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock

from lorafit import runs
from lorafit.errors import LorafitError, RecipeError, RunError, StorageError
from lorafit.files import storing, write_text
from lorafit.recipe import Recipe
from lorafit.sweep.space import Space
from lorafit.sweep.studies import Study

_STARTUP_TRIALS = 5  # of which each comes to its end, before others are measured by them
# What differs between two machines or two calls on one search, and changes no result.
_OWN = ("name", "training.threads")
_SIGNED = "sweep.json"  # which study a folder's trials are of
_OURS_BEFORE = ("study.db", "study.db-journal", ".lock")


def refuse_missing() -> None:
    """Refuse to go on without Optuna.

    Raises:
        LorafitError: says how to install it.
    """
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise LorafitError("Optuna is not installed. Install it with: pip install 'lorafit[sweep]'") from None


def opened(recipe: Recipe, space: Space, folder: Path, url: str, worker: str = "") -> Study:
    """Return the study of a recipe and a space, made now or found.

    Args:
        recipe: what every trial is, but for the keys in the space.
        space: what these may be.
        folder: the sweep's.
        url: the database, as Optuna takes it; "": SQLite in the folder.
        worker: names who works on trials here, across its deaths: what it left is at once its own again.

    Raises:
        RunError: the study is one of another recipe or space.
        RecipeError: the database can't be opened.
    """
    import optuna
    from optuna.exceptions import StorageInternalError
    from sqlalchemy import make_url
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(logging.ERROR)
    place = url or f"sqlite:///{folder / 'study.db'}"
    shown = place
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        shown = make_url(place).render_as_string(hide_password=True)
        with FileLock(folder / ".lock"):  # two that make its tables at once are in each other's way
            storage = optuna.storages.RDBStorage(place, engine_kwargs=_patient(place))
            study = optuna.create_study(
                storage=storage,
                study_name=recipe.name,
                direction="maximize",
                pruner=optuna.pruners.MedianPruner(n_startup_trials=_STARTUP_TRIALS),
                load_if_exists=True,
            )
    except (SQLAlchemyError, StorageInternalError, ImportError, RuntimeError) as error:
        raise RecipeError(f"The study's database {shown} can't be opened: {str(error).splitlines()[0]}.") from None
    _refuse_other(study, recipe, space, shown)
    _refuse_other_folder(study, folder)
    return Study(study, recipe, space, folder, worker)


def _refuse_other_folder(study: Any, folder: Path) -> None:
    """Sign a new folder; refuse one that holds another search, or something else.

    Raises:
        RunError: it holds another search.
        StorageError: it holds files that are no search.
    """
    ours, file = study.user_attrs["lorafit"]["id"], folder / _SIGNED
    if not file.is_file():
        foreign = [path.name for path in folder.iterdir() if path.name not in _OURS_BEFORE]
        if foreign:
            raise StorageError(
                f"{folder} holds files that are no search of lorafit's. Choose another folder with --out."
            )
        write_text(file, json.dumps({"study": ours}) + "\n")
    elif json.loads(file.read_text(encoding="utf-8")).get("study") != ours:
        raise RunError(f"{folder} holds the trials of another search. Choose another folder with --out.")


def _patient(place: str) -> dict[str, Any]:
    return {"connect_args": {"timeout": 60}} if place.startswith("sqlite") else {}


def _refuse_other(study: Any, recipe: Recipe, space: Space, place: str) -> None:
    """Sign a new study; refuse one of something else."""
    ours = {"recipe": _plain(recipe), "space": json.loads(json.dumps(space.as_record()))}
    theirs = study.user_attrs.get("lorafit")
    if theirs is None and not study.trials:
        study.set_user_attr("lorafit", ours | {"id": uuid4().hex})
        return
    if theirs is None:
        raise RunError(f"{place} holds a study {recipe.name!r} that is not lorafit's. Choose another --storage.")
    what, keys = _difference(theirs, ours)
    if keys:
        raise RunError(
            f"{place} holds a search over another {what} (it differs in {', '.join(keys)}). "
            "Choose another folder with --out; of a --storage of your own, another name in the recipe too."
        )


def _difference(theirs: dict[str, Any], ours: dict[str, Any]) -> tuple[str, list[str]]:
    for what in ("recipe", "space"):
        old, new = theirs[what], ours[what]
        keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        if keys:
            return what, keys
    return "", []


def _plain(recipe: Recipe) -> dict[str, Any]:
    return {key: value for key, value in runs.flat(recipe.model_dump()) if key not in _OWN}
