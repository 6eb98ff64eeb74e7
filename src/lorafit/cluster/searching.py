"""A search whose trials are carried out by many processes, through Ray Tune.

Tune starts a process a trial where there are cores, and starts it anew when it dies. Which values a trial has, which
one is stopped early, and what came of it is the study's, Optuna's, as in every other search: `lorafit.sweep`.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from lorafit import console
from lorafit import recipe as recipes
from lorafit import sweep as search
from lorafit.cluster.connection import LOCAL, connected, cores_a_worker, cores_of_nodes, described, enter
from lorafit.cluster.sentences import heard, pass_on, sentences_of_workers
from lorafit.errors import LorafitError, RecipeError
from lorafit.recipe import Recipe
from lorafit.sweep import DEFAULT_ROOT, Swept, database
from lorafit.sweep.space import Space

_RESTARTS = 5  # of a trial whose process has died; then the study gives it up too
_REFUSED = "refused"


def sweep(
    recipe: Recipe,
    space: Space,
    trials: int,
    out: Path | str | None = None,
    storage: str = "",
    *,
    address: str = LOCAL,
    workers: int = 2,
) -> Swept:
    """Return the search, carried on as `lorafit.sweep.run` does, with so many trials at a time.

    Args:
        recipe: what every trial is, but for the keys in the space.
        space: what these keys may be.
        trials: how many in all.
        out: the sweep's folder, which all machines see; by default sweeps/NAME.
        storage: the study's database, as Optuna takes it; by default SQLite in the folder, on one machine.
        address: "local", or of the cluster that this machine belongs to "auto", or HOST:PORT of its head.
        workers: how many trials at a time; each gets an equal share of the cores.

    Raises:
        RecipeError: more workers than cores, several machines without a database that all of them reach, or what `run`
            refuses.
        LorafitError: Ray or Optuna is not installed, or no cluster answers at the address.

    >>> sweep(recipe.load("recipes/demo.toml"), space.load("recipes/spaces/demo.toml", recipe), 20, workers=4)
    """
    folder = (Path(out) if out else DEFAULT_ROOT / recipe.name).absolute()
    with connected(address):
        nodes = cores_of_nodes()
        if len(nodes) > 1 and not storage:
            raise RecipeError(
                f"The cluster has {len(nodes)} machines, and SQLite is for one: name a database that all of them "
                "reach, such as --storage postgresql://user@host/db"
            )
        cores = cores_a_worker(nodes, workers)
        study, chosen = search.begin(recipe, space, trials, folder, storage)
        console.say(f"Ray: {described(nodes, workers, cores)}, a trial each at a time.")
        left = trials - sum(trial.state != "running" for trial in study.trials())
        order = _Order(recipe, chosen, space, trials, folder, storage, cores, sentences_of_workers())
        if left > 0:
            _carry_out(order, left, workers)
    while search.carry_out_one(study, chosen, trials):  # one whose process died when no other was started any more
        pass
    return search.finish(study, chosen)


@dataclass(frozen=True)
class _Order:
    """What the process of a trial is told."""

    recipe: Recipe
    chosen: Recipe
    space: Space
    trials: int
    folder: Path
    storage: str
    cores: int
    sentences: Any
    started_in: Path = field(default_factory=Path.cwd)


def _carry_out(order: _Order, left: int, workers: int) -> None:
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # it would end the search as if it had come to its end
    from ray import tune

    notes = order.folder / ".ray" / uuid4().hex  # Ray's own, of no use afterwards
    tuner = tune.Tuner(
        tune.with_resources(_carrying_out_one(order), {"cpu": order.cores}),
        tune_config=tune.TuneConfig(num_samples=left, max_concurrent_trials=workers),
        run_config=tune.RunConfig(
            name=notes.name,
            storage_path=str(notes.parent),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=_RESTARTS),
            stop=_stopping_at_a_refusal(),
        ),
    )
    try:
        with heard(order.sentences):
            found = tuner.fit()
    except (KeyboardInterrupt, SystemExit):
        console.complain(
            "Interrupted", "the same command goes on with the search, in the middle of its trials.", "yellow"
        )
        raise
    finally:
        shutil.rmtree(notes, ignore_errors=True)
    refused = next((one.metrics[_REFUSED] for one in found if one.metrics and one.metrics.get(_REFUSED)), "")
    if refused:
        raise LorafitError(refused)
    if found.errors:
        last = str(found.errors[0]).strip().splitlines()[-1]
        raise LorafitError(f"{len(found.errors)} trials have failed on Ray, and may be gone on with; the first: {last}")


def _carrying_out_one(order: _Order) -> Callable[[dict[str, Any]], None]:
    """Return what the process of a trial does."""

    def carry_out(_: dict[str, Any]) -> None:
        from ray import tune

        console.hand_to(lambda *said: pass_on(order.sentences, said))
        share = {"training.threads": order.cores}
        try:
            enter(order.started_in)
            one = recipes.changed(order.recipe, share)
            study = database.opened(one, order.space, order.folder, order.storage, tune.get_context().get_trial_id())
            with console.our_words_only():
                search.carry_out_one(study, recipes.changed(order.chosen, share), order.trials)
        except LorafitError as error:
            tune.report({_REFUSED: str(error)})
        else:
            tune.report({_REFUSED: ""})

    return carry_out


def _stopping_at_a_refusal() -> Any:
    """Return what ends the search at the first refusal, which every trial would meet."""
    from ray.tune import Stopper

    class AtRefusal(Stopper):
        refused = False

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002
            self.refused = self.refused or bool(result.get(_REFUSED))
            return False

        def stop_all(self) -> bool:
            return self.refused

    return AtRefusal()
