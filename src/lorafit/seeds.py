"""The whole training repeated with other seeds: how far a result moves by luck alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from lorafit import assessment, pipeline, runs
from lorafit import recipe as recipes
from lorafit.console import complain, say
from lorafit.errors import RecipeError
from lorafit.recipe import Recipe
from lorafit.runs import Run

_SCORES = ("accuracy", "f1")
_NOTES = {
    "own test": "Each seed has its own split of the data, its own head and its own order of the texts.",
    "same test": "Each seed has the same test, but its own draw of what else is split, head and order of the texts.",
}


def train(recipe: Recipe, count: int, out: Path | str | None = None, *, overwrite: bool = False) -> dict[str, Any]:
    """Return mean, standard deviation and each result of whole runs with `count` seeds, trained and evaluated.

    The first run is the recipe's own, in its ordinary folder; the others lie beside it, as NAME-seed-SEED. Finished
    ones are found, unfinished ones gone on with. The first one's scores and report hold the result, under "seeds".

    Args:
        recipe: what the runs are; its seed is the first.
        count: how many seeds, at least 2.
        out: the first run's folder; by default runs/NAME.
        overwrite: start over in folders that hold other runs.

    Raises:
        RecipeError: fewer than two seeds, or `out` has no name that others could be made of.
        RunError: a folder holds a run of another recipe; nothing is trained then.
        StorageError: a folder holds files that are no run.

    >>> train(recipe.load("recipes/demo.toml"), 3)["accuracy"]["standard_deviation"]
    """
    if count < 2:
        raise RecipeError(f"A standard deviation needs at least two seeds; asked for was {count}.")
    first = Path(out) if out else runs.DEFAULT_ROOT / recipe.name
    if first.name in ("", ".."):
        raise RecipeError(
            f"--out is {first}, which is no name: the other seeds' runs lie beside it, as NAME-seed-SEED. "
            f"Name a folder, such as --out {runs.DEFAULT_ROOT / recipe.name}."
        )
    seeded = [recipes.from_values(recipe.model_dump(), (f"seed={recipe.seed + number}",)) for number in range(count)]
    folders = [first, *(first.with_name(f"{first.name}-seed-{one.seed}") for one in seeded[1:])]
    for one, folder in zip(seeded, folders, strict=True):
        runs.refuse_taken(folder, one, overwrite=overwrite)
    found = []
    with _naming_the_way_on(count, overwrite=overwrite):
        for number, (one, folder) in enumerate(zip(seeded, folders, strict=True), start=1):
            say(f"Seed {one.seed}, {number} of {count}: {folder}")
            found.append(_finished(one, folder, overwrite))
    return _summarized(found)


@contextmanager
def _naming_the_way_on(count: int, *, overwrite: bool) -> Iterator[None]:
    """Say how to go on with all seeds when Ctrl-C or SIGTERM breaks them off; `--resume` knows one run only."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        without = ", without --overwrite" if overwrite else ""
        complain(
            "Interrupted", f"for all {count} seeds repeat the same command, with --seeds {count}{without}", "yellow"
        )
        raise


def _finished(recipe: Recipe, folder: Path, overwrite: bool) -> Run:
    unfinished = None if overwrite else runs.find_unfinished(folder, recipe)
    run = pipeline.resume(folder) if unfinished else pipeline.train(recipe, folder, overwrite=overwrite)
    pipeline.evaluate(run)
    return run


def _summarized(found: list[Run]) -> dict[str, Any]:
    """Write what the runs say together into the first one's scores; returns it."""
    tests = [run.scores["test"] for run in found if run.scores is not None]
    every_seed_has = [name for name in tests[0]["baselines"] if all(name in test["baselines"] for test in tests)]
    adapted = [test["adapted"] for test in tests]
    seeds = {
        "n": len(found),
        "note": _NOTES["same test" if len({test["test_sha256"] for test in tests}) == 1 else "own test"],
        "accuracy": _spread([one["accuracy"] for one in adapted]),
        "f1": _spread([one["f1"] for one in adapted]),
        "improvement_points": _spread([test["improvement_points"] for test in tests]),
        "base": _beside(adapted, [test["base"] for test in tests]),
        "baselines": {name: _beside(adapted, [test["baselines"][name] for test in tests]) for name in every_seed_has},
        "runs": [_result(run, test) for run, test in zip(found, tests, strict=True)],
    }
    scores = found[0].scores
    assert scores is not None
    if scores.get("seeds") != seeds:
        with found[0].locked():
            assessment.write(found[0], scores | {"seeds": seeds})
    return seeds


def _result(run: Run, test: dict[str, Any]) -> dict[str, Any]:
    return {
        "seed": run.recipe.seed,
        "path": str(run.path),
        "accuracy": test["adapted"]["accuracy"],
        "f1": test["adapted"]["f1"],
        "base_accuracy": test["base"]["accuracy"],
        "base_f1": test["base"]["f1"],
        "baselines": {name: {by: found[by] for by in _SCORES} for name, found in test["baselines"].items()},
        "seconds": run.record["seconds"],
    }


def _beside(adapted: list[dict[str, Any]], other: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the other's scores over the seeds, and the points that the adapted model gains over it, paired by seed."""
    pairs = list(zip(adapted, other, strict=True))
    gains = {by: _spread([round(100 * (ours[by] - theirs[by]), 6) for ours, theirs in pairs]) for by in _SCORES}
    return {by: _spread([theirs[by] for theirs in other]) for by in _SCORES} | {"gain_points": gains}


def _spread(values: list[float]) -> dict[str, float]:
    return {"mean": mean(values), "standard_deviation": stdev(values)}
