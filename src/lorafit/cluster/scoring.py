"""Folders of texts answered by many processes, through Ray Data.

Ray Data hands the shards to a pool of actors, each with a classifier of its own, hands those of a dead one to others,
and starts a new one where there is room. What an actor does with a shard is `bulk.shards`.
"""

import logging
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa

from lorafit import bundle as bundles
from lorafit import console, errors, exported, runtime
from lorafit.bulk import PRODUCTS_KEPT, Scored, shards
from lorafit.bulk.answers import added_schema
from lorafit.bulk.look import refuse_clash, refuse_misfit
from lorafit.bulk.shards import Counts, Job, Scorer
from lorafit.cluster.connection import LOCAL, connected, cores_a_worker, cores_of_nodes, described, enter
from lorafit.errors import DataError, LorafitError, StorageError
from lorafit.predict import Classifier

_BLOCKS = 10_000  # one a shard up to here; a single process hands them out, some hundred a second
_BLOCKS_A_WORKER = 2
_SHARDS_A_BLOCK = 64
_CLASSIFIER = "the classifier"
_SECONDS_TO_APPEAR = 60  # of a part that another machine has written, in a listing of a network's folder
_DEATHS = 10  # a worker, before it has begun


@dataclass(frozen=True)
class Asked:
    """Who is asked, as `Classifier.load` takes it."""

    bundle: Path
    encoder: str | None = None
    allow_different_base: bool = False
    backend: Path | None = None

    def load(self, precision: str, threads: int) -> Classifier:
        """Return the classifier."""
        return Classifier.load(
            self.bundle,
            precision=precision,
            threads=threads,
            encoder=self.encoder,
            allow_different_base=self.allow_different_base,
            backend=self.backend,
        )

    def fingerprint(self) -> str:
        """Return what tells who is asked from others."""
        return exported.fingerprint(self.backend or bundles.folder_of(self.bundle))


def score(
    asked: Asked,
    source: Path,
    target: Path,
    *,
    address: str = LOCAL,
    workers: int | None = None,
    text_column: str = "text",
    pair_column: str = "",
    base: bool = False,
    prefix: str = "",
    strict: bool = False,
    overwrite: bool = False,
) -> Scored:
    """Answer all texts in a folder of Parquet files into another one; what was done before in it is not done again.

    Rows, columns and answers are those of `bulk.score`. The rows of `target`'s parts, in the order of their names, are
    those of `source`'s files in the order of theirs; rows without a usable text stand in `target/_rejected`.

    Args:
        asked: the classifier.
        source: the folder that is read; see `bulk.shards.look_at`.
        target: the folder that is written.
        address: "local", or of the cluster that this machine belongs to "auto", or HOST:PORT of its head.
        workers: how many processes, each with an equal share of the cores; None: one a core.
        text_column: the column with the texts.
        pair_column: the column with each text's second one, for an adapter that reads pairs.
        base: ask the encoder with its untrained head.
        prefix: stands before the name of each added column.
        strict: stop at the first row without a usable text.
        overwrite: forget what another command has written there.

    Raises:
        DataError: the input can't be read, or has no such column.
        StorageError: the output holds something else, or can't be written.
        RecipeError: more workers than cores.
        LorafitError: Ray is not installed, or no cluster answers at the address.

    >>> score(Asked(Path("runs/demo")), Path("reviews"), Path("scored"), workers=2).rows
    25000
    """
    start = time.monotonic()
    source, target = source.resolve(), target.resolve()
    shards.refuse_places(source, target)
    look = shards.look_at(source, [name for name in (text_column, pair_column) if name])
    with shards.held(target), _naming_the_way_on(), connected(address):
        nodes = cores_of_nodes()
        cores = cores_a_worker(nodes, sum(nodes) if workers is None else workers)
        count = workers or sum(nodes)
        precision = _precision(None if overwrite else shards.begun(target), asked)
        classifier = asked.load(precision, cores)
        refuse_misfit(classifier, source, pair_column)
        refuse_clash(added_schema(classifier, prefix).names, look.schema.names, source, prefix)
        job = Job(
            files=look.files,
            rows_a_shard=shards.rows_a_shard(sum(file.rows for file in look.files), count),
            text_column=text_column,
            pair_column=pair_column,
            prefix=prefix,
            base=base,
            strict=strict,
            precision=_precision_of(classifier, cores),
            facts={
                _CLASSIFIER: asked.fingerprint(),
                "the base": str(classifier.different_base),
                "lorafit's versions": version("lorafit"),
            },
        )
        del classifier
        job = shards.begin(target, job, overwrite=overwrite)
        plan = f"{job.rows:,} rows in {job.shards:,} shards"
        console.say(f"Ray: {described(nodes, count, cores)}; {plan}.")
        found = _carry_out(_Order(asked, job, source, target, cores), count)
    _refuse_incomplete(job, source, target, found)
    return replace(found, seconds=time.monotonic() - start)


def blocks_of(shards: int, workers: int) -> int:
    """Return in how many blocks Ray Data is handed so many shards: one each, unless there are very many.

    >>> blocks_of(240_000, workers=15_000)
    30000
    """
    return min(shards, max(_BLOCKS, _BLOCKS_A_WORKER * workers, shards // _SHARDS_A_BLOCK))


def _precision(begun: Job | None, asked: Asked) -> str:
    """Return the precision in which these answers were begun, "auto" if they were not."""
    same = begun is not None and begun.facts.get(_CLASSIFIER) == asked.fingerprint()
    return begun.precision if begun and same else "auto"


def _precision_of(classifier: Classifier, cores: int) -> str:
    """Return what all workers take, whatever their machines would choose: "auto" where there is nothing to choose."""
    if classifier.backend in ("bf16", "fp32"):
        return classifier.backend
    return runtime.choose("auto", cores).precision if classifier.backend == "merged" else "auto"


@contextmanager
def _naming_the_way_on() -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        console.complain("Interrupted", "what is written stays; the same command goes on from there.", "yellow")
        raise


def _refuse_incomplete(job: Job, source: Path, target: Path, found: Scored) -> None:
    """Refuse to call it done where it is not what it should be.

    Raises:
        DataError: the input has changed meanwhile, or none of its rows could be answered, or not all where all should.
        StorageError: parts are not there.
    """
    if shards.look_at(source, []).files != job.files:
        raise DataError(f"{source} has changed while it was read. Start anew with --overwrite.")
    deadline = time.monotonic() + _SECONDS_TO_APPEAR
    while (missing := len(shards.undone(target, job))) and time.monotonic() < deadline:
        time.sleep(2)
    if missing:
        raise StorageError(f"{missing} of {job.shards} parts are not in {target}. Do all machines see the same folder?")
    if job.strict and found.rejected:  # by a call that was not
        raise DataError(f"{source} has {found.rejected} rows without a usable text; see {target / shards.REJECTED}.")
    if not found.rows:
        raise DataError(f"{source} has no row that can be answered; {target / shards.REJECTED} says why of each.")


@dataclass(frozen=True)
class _Order:
    """What a worker is told."""

    asked: Asked
    job: Job
    source: Path
    target: Path
    cores: int
    started_in: Path = field(default_factory=Path.cwd)


class _Worker:
    """One of the processes: answers the shards that it is handed.

    Refusals go back as a column: Ray Data would hand on no more of an exception than its trace.
    """

    def __init__(self, order: _Order) -> None:
        self._job, self._target = order.job, order.target
        self._refused: LorafitError | None = None
        console.silence()
        try:
            self._scorer = self._prepared(order)
        except LorafitError as error:
            self._refused = error

    def _prepared(self, order: _Order) -> Scorer:
        enter(order.started_in)
        begun = shards.begun(order.target)
        if begun is None or begun.differs_in(order.job):
            raise StorageError(f"{order.target} is not the same folder on {platform.node()}. All machines need it.")
        if order.asked.fingerprint() != order.job.facts[_CLASSIFIER]:
            raise StorageError(
                f"{order.asked.bundle} is another adapter on {platform.node()}. All machines need the same."
            )
        runtime.keep_few_shapes(PRODUCTS_KEPT)
        pa.set_memory_pool(pa.system_memory_pool())  # see streams.in_flat_memory
        with console.our_words_only(of_warnings=False):  # which the driver has said
            classifier = order.asked.load(order.job.precision, order.cores)
        return Scorer(classifier, order.job, order.source, order.target)

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the counts of the shards whose numbers stand in a block; one that another has done is counted only."""
        done = Counts(0, 0, 0)
        try:
            for number in map(int, block["item"]):
                if self._refused is not None:
                    raise self._refused
                done = done.and_also(self._counts(number))
        except LorafitError as error:
            refusal = [type(error).__name__, str(error)]
        else:
            refusal = ["", ""]
        found = {name: np.array([count]) for name, count in done._asdict().items()}
        return found | {"refusal": np.array([refusal[0]]), "sentence": np.array([refusal[1]])}

    def _counts(self, number: int) -> Counts:
        if shards.is_done(self._target, self._job, number):
            return shards.counted(self._target, self._job, [number])
        return self._scorer.score(self._job.shard(number))


def _carry_out(order: _Order, workers: int) -> Scored:
    """Have all shards answered that are not, and return what became of all rows, `seconds` left out."""
    job = order.job
    numbers = shards.undone(order.target, job)
    done = shards.counted(order.target, job, sorted({*range(job.shards)} - {*numbers}))
    before = done.answered + done.rejected
    if before:
        console.say(f"Going on after {before:,} of {job.rows:,} rows.")
    if numbers:
        with console.row_bar(job.rows, before) as advance:
            for some in _given(order, numbers, workers):
                done = done.and_also(some)
                advance(some.answered + some.rejected)
    return Scored(done.answered, done.rejected, done.repeated, 0.0, before)


def _given(order: _Order, numbers: list[int], workers: int) -> Iterator[Counts]:
    """Yield what becomes of the shards, in the order in which they are done.

    Raises:
        LorafitError: what a worker refused, or that Ray gave up.
    """
    import ray.data
    from ray.exceptions import RayError

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # a shard of long texts, or the wait for a core, may take an hour
    context.max_consecutive_actor_init_deaths = _DEATHS * workers
    handed = ray.data.from_items(numbers, override_num_blocks=blocks_of(len(numbers), workers)).map_batches(
        _Worker,
        fn_constructor_args=(order,),
        batch_size=None,
        # One at a time: at the end nobody waits behind another while others have nothing to do.
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(numbers)), max_tasks_in_flight_per_actor=1),
        num_cpus=order.cores,
    )
    try:
        for block in handed.iter_batches(batch_size=None, prefetch_batches=0):
            for kind, sentence in zip(block["refusal"], block["sentence"], strict=True):
                if kind:
                    raise getattr(errors, str(kind))(str(sentence))
            yield Counts(*(int(block[name].sum()) for name in Counts._fields))
    except RayError as error:
        last = str(error).strip().splitlines()[-1]
        raise LorafitError(
            f"Ray has given up: {last}. What is written stays; the same command goes on from there."
        ) from None
