"""Training by several workers, through Ray Train.

Ray starts the workers, puts them where there are cores, and starts them anew when one dies; what they do is
`pipeline.train`, as ranks.
"""

import shutil
from pathlib import Path
from typing import Any

from lorafit import console, pipeline, ranks, runs
from lorafit import recipe as recipes
from lorafit.cluster.connection import LOCAL, connected, cores_a_worker, cores_of_nodes, described, enter
from lorafit.cluster.sentences import heard, pass_on, sentences_of_workers
from lorafit.errors import LorafitError
from lorafit.recipe import Recipe
from lorafit.runs import Run

_RESTARTS = 3  # of all workers, when one has died


def train(
    recipe: Recipe, out: Path | str | None = None, *, address: str = LOCAL, workers: int = 2, overwrite: bool = False
) -> Run:
    """Return a finished run, trained by several workers on a Ray cluster, or found in its folder.

    A worker that dies costs what came after the last checkpoint: Ray starts all of them anew, up to three times, and
    they go on from there. So does the same call after an interruption.

    Args:
        recipe: what the run is.
        out: the run's folder, which all machines see; by default runs/NAME.
        address: "local", or of the cluster that this machine belongs to "auto", or HOST:PORT of its head.
        workers: how many; each gets an equal share of the cores.
        overwrite: start over in a folder that holds another run, or an unfinished one.

    Raises:
        RecipeError: more workers than cores.
        LorafitError: Ray is not installed, no cluster at the address, or what the workers refused.

    >>> train(recipe.load("recipes/demo.toml"), address="local", workers=2)
    """
    path = (Path(out) if out else runs.DEFAULT_ROOT / recipe.name).absolute()
    runs.refuse_taken(path, recipe, overwrite=overwrite)
    if not overwrite and (path / "run.json").is_file() and runs.open_run(path).finished:
        return pipeline.train(recipe, path)
    with console.without_sentences():
        pipeline.prepare(recipe)  # what is wrong with the data is said here, and once
    with connected(address):
        _fit(recipe, path, workers, overwrite)
    return runs.open_run(path)


def _fit(recipe: Recipe, path: Path, workers: int, overwrite: bool) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    nodes = cores_of_nodes()
    cores = cores_a_worker(nodes, workers)
    console.say(f"Ray: {described(nodes, workers, cores)}.")
    sentences = sentences_of_workers()
    order = {
        "sentences": sentences,
        "recipe": recipe.model_dump(),
        "path": str(path),
        "replaces": _created(path) if overwrite else None,
        "folder": Path.cwd(),
    }
    notes = f".{path.name}.ray"  # Ray's own notes, of no use afterwards
    trainer = TorchTrainer(
        _work,
        train_loop_config=order,
        scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": cores}),
        torch_config=TorchConfig(backend="gloo"),
        run_config=RunConfig(
            name=notes,
            storage_path=str(path.parent),
            failure_config=FailureConfig(max_failures=_RESTARTS),
            callbacks=[_telling_of_deaths(sentences)],
        ),
    )
    with heard(sentences):
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise _said_by_worker(error) from None
    shutil.rmtree(path.parent / notes, ignore_errors=True)


def _work(order: dict[str, Any]) -> None:
    """Be one of the workers: train as a rank."""
    enter(order["folder"])
    console.hand_to(lambda *said: pass_on(order["sentences"], said) if ranks.is_first() else None)
    path = Path(order["path"])
    replaces = order["replaces"] is not None and order["replaces"] == _created(path)  # and not what we have begun
    with console.our_words_only():
        pipeline.train(recipes.from_values(order["recipe"]), path, overwrite=replaces, go_on=not replaces)


def _telling_of_deaths(sentences: Any) -> Any:
    """Return what tells that workers died, and that all of them are started anew."""
    from ray.train import UserCallback

    class Telling(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
            if any(_refusal(error) for error in worker_exceptions.values()):
                return  # which is said at the end
            lost = ", ".join(f"{rank}" for rank in sorted(worker_exceptions))
            pass_on(sentences, ("Lost", f"worker {lost}; Ray starts all anew, up to {_RESTARTS} times.", "yellow"))

    return Telling()


def _created(path: Path) -> str | None:
    """Return when the run in a folder was created, or None where there is none."""
    return str(Run(path).record.get("created")) if (path / "run.json").is_file() else None


def _said_by_worker(error: Exception) -> LorafitError:
    failures = getattr(error, "worker_failures", {})
    for failure in failures.values():
        if said := _refusal(failure):
            return LorafitError(str(said))
    last = next((str(failure).strip().splitlines()[-1] for failure in failures.values()), str(error).splitlines()[0])
    return LorafitError(f"Training on Ray has failed: {last}")


def _refusal(failure: BaseException | None) -> LorafitError | None:
    """Return what a worker refused, if that is why it ended."""
    while failure is not None and not isinstance(failure, LorafitError):
        failure = getattr(failure, "cause", None) or failure.__cause__
    return failure
