"""The same functions on Ray, for what outgrows one machine: training by several workers.

Ray starts the workers, puts them where there are cores, and starts them anew when one dies; what they do is
`pipeline.train`, as ranks. Run folders and the cache of each machine are files: a cluster of several machines needs a
folder that all of them see, in which the command is started.
"""

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorafit import console, pipeline, ranks, runs
from lorafit import recipe as recipes
from lorafit.errors import LorafitError, RecipeError
from lorafit.recipe import Recipe
from lorafit.runs import Run

LOCAL = "local"  # a cluster of this machine alone, for as long as it is needed
SECONDS_TO_CONNECT = 15
_RESTARTS = 3  # of all workers, when one has died
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# What a worker needs of the environment in which the command was started; a token would stand in Ray's own records.
_HANDED_ON = ("LORAFIT_CACHE", "HF_HOME", "HF_ENDPOINT", "HF_HUB_OFFLINE")


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


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Be a driver of the Ray cluster at an address.

    Raises:
        LorafitError: Ray is not installed, or does not answer there within 20 seconds.
    """
    os.environ |= {name: value for name, value in _QUIET.items() if name not in os.environ}
    try:
        import ray
    except ImportError:
        raise LorafitError("Ray is not installed. Install it with: pip install 'lorafit[cluster]'") from None
    if address != LOCAL:
        _refuse_unreachable(address)
    options: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(address=address, logging_level="ERROR", log_to_driver=False, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _unreachable(address, str(error).splitlines()[0]) from None
    try:
        yield
    finally:
        ray.shutdown()


def cores_a_worker(cores_of_nodes: Sequence[int], workers: int) -> int:
    """Return how many cores each worker gets, so that all of them have room on the nodes.

    Raises:
        RecipeError: there are more workers than cores.

    >>> cores_a_worker([8, 4], workers=3)
    4
    """
    if workers < 1:
        raise RecipeError(f"--workers is {workers}; training needs at least one.")
    there = sum(cores_of_nodes)
    if workers > there:
        raise RecipeError(f"--workers is {workers}, and the cluster has {there} cores, one a worker at the least.")
    return next(each for each in range(there, 0, -1) if sum(cores // each for cores in cores_of_nodes) >= workers)


def _fit(recipe: Recipe, path: Path, workers: int, overwrite: bool) -> None:
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.util.queue import Queue

    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    cores = cores_a_worker(nodes, workers)
    console.say(f"Ray: {workers} workers of {cores} cores each, on {len(nodes)} nodes with {sum(nodes)} cores.")
    sentences = Queue(actor_options={"num_cpus": 0})
    order = {
        "sentences": sentences,
        "recipe": recipe.model_dump(),
        "path": str(path),
        "replaces": _created(path) if overwrite else None,
        "folder": str(Path.cwd()),
        "environment": {name: os.environ[name] for name in _HANDED_ON if name in os.environ},
    }
    place = f".{path.name}.ray"  # Ray's own notes, of no use afterwards
    trainer = TorchTrainer(
        _work,
        train_loop_config=order,
        scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": cores}),
        torch_config=TorchConfig(backend="gloo"),
        run_config=RunConfig(
            name=place,
            storage_path=str(path.parent),
            failure_config=FailureConfig(max_failures=_RESTARTS),
            callbacks=[_telling_of_deaths(sentences)],
        ),
    )
    with _heard(sentences):
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise _said_by_worker(error) from None
    shutil.rmtree(path.parent / place, ignore_errors=True)


def _work(order: dict[str, Any]) -> None:
    """Be one of the workers: train as a rank."""
    os.environ |= order["environment"]
    os.chdir(order["folder"])
    console.hand_to(lambda *said: order["sentences"].put(said) if ranks.is_first() else None)
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
            sentences.put(("Lost", f"worker {lost}; Ray starts all anew, up to {_RESTARTS} times.", "yellow"))

    return Telling()


@contextmanager
def _heard(sentences: Any) -> Iterator[None]:
    """Say here what the workers say."""
    from ray.util.queue import Empty

    is_over = threading.Event()

    def listen() -> None:
        while True:
            try:
                kind, sentence, style = sentences.get(timeout=0.5)
            except Empty:
                if is_over.is_set():
                    return
                continue
            if kind:
                console.complain(kind, sentence, style)
            else:
                console.say(sentence)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield
    finally:
        is_over.set()
        listener.join(timeout=5)


def _created(path: Path) -> str | None:
    """Return when the run in a folder was created, or None where there is none."""
    return str(Run(path).record.get("created")) if (path / "run.json").is_file() else None


def _said_by_worker(error: Exception) -> LorafitError:
    failures = getattr(error, "worker_failures", {})
    for failure in failures.values():
        if refusal := _refusal(failure):
            return LorafitError(str(refusal))
    said = next((str(failure).strip().splitlines()[-1] for failure in failures.values()), str(error).splitlines()[0])
    return LorafitError(f"Training on Ray has failed: {said}")


def _refusal(failure: BaseException | None) -> LorafitError | None:
    """Return what a worker refused, if that is why it ended."""
    while failure is not None and not isinstance(failure, LorafitError):
        failure = getattr(failure, "cause", None) or failure.__cause__
    return failure


def _refuse_unreachable(address: str) -> None:
    """Refuse an address at which no Ray cluster answers, in a process of its own that can be ended.

    Raises:
        LorafitError: says what to check.
    """
    if address.startswith("ray://"):
        raise LorafitError(
            f"{address} is one of Ray's client, which sees none of the cluster's folders. Start the command on a "
            "machine of the cluster, with --ray auto, such as by: ray job submit"
        )
    host, _, port = address.rpartition(":")
    if address != "auto":
        try:
            socket.create_connection((host, int(port)), timeout=SECONDS_TO_CONNECT / 3).close()
        except (OSError, ValueError) as error:
            raise _unreachable(address, str(error)) from None
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check"]
    command += [] if address == "auto" else ["--address", address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_CONNECT)
    except subprocess.TimeoutExpired:
        raise _unreachable(address, f"no answer within {SECONDS_TO_CONNECT} s") from None
    if done.returncode:
        raise _unreachable(address, "no Ray answers there")


def _unreachable(address: str, reason: str) -> LorafitError:
    return LorafitError(
        f"No Ray cluster at {address} ({reason}). Check the address and that its head runs: "
        "`ray start --head`, then --ray HOST:6379 on a machine of the cluster; without an address Ray starts here."
    )
