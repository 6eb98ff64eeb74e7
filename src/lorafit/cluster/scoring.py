"""Folders of texts answered by many processes, through Ray Data.

Ray Data hands the shards to a pool of actors, each with a classifier of its own, hands those of a dead one to others,
and starts a new one where there is room. What an actor does with a shard is `bulk.shards`.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa

from lorafit import bundle as bundles
from lorafit import console, exported, runtime
from lorafit.bulk import PRODUCTS_KEPT, Scored, shards
from lorafit.bulk.answers import added_schema
from lorafit.bulk.look import refuse_clash, refuse_misfit
from lorafit.bulk.shards import Counts, Job, Scorer
from lorafit.cluster.connection import LOCAL, Place, connected, cores_a_worker, cores_of_nodes, described, refusal
from lorafit.errors import DataError
from lorafit.predict import Classifier

BLOCKS_A_WORKER = 16  # that Ray Data is handed; each is of one shard, or of a few where there are more


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
    shards.refuse_places(source, target)
    look = shards.look_at(source, [name for name in (text_column, pair_column) if name])
    begun = None if overwrite else shards.begun(target)
    with connected(address):
        nodes = cores_of_nodes()
        cores = cores_a_worker(nodes, sum(nodes) if workers is None else workers)
        count = workers or sum(nodes)
        classifier = asked.load(begun.precision if begun else "auto", cores)
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
            precision=classifier.backend if classifier.backend in ("bf16", "fp32") else "auto",
            facts={
                "the classifier": asked.fingerprint(),
                "the base": str(classifier.different_base),
                "lorafit's versions": version("lorafit"),
            },
        )
        del classifier
        with shards.held(target, job, overwrite=overwrite) as job:
            plan = f"{job.rows:,} rows in {job.shards:,} shards"
            console.say(f"Ray: {described(nodes, count, cores)}; {plan}.")
            found = _carry_out(_Order(asked, job, source.absolute(), target.absolute(), cores), count)
        if shards.look_at(source, []).files != job.files:
            raise DataError(f"{source} has changed while it was read. Start anew with --overwrite.")
    return replace(found, seconds=time.monotonic() - start)


@dataclass(frozen=True)
class _Order:
    """What a worker is told."""

    asked: Asked
    job: Job
    source: Path
    target: Path
    cores: int
    started: Place = field(default_factory=Place.here)


class _Worker:
    """One of the processes: answers the shards that it is handed."""

    def __init__(self, order: _Order) -> None:
        order.started.enter()
        console.silence()
        runtime.keep_few_shapes(PRODUCTS_KEPT)
        pa.set_memory_pool(pa.system_memory_pool())  # see streams.in_flat_memory
        self._job, self._target = order.job, order.target
        with console.our_words_only(of_warnings=False):  # which the driver has said
            classifier = order.asked.load(order.job.precision, order.cores)
        self._scorer = Scorer(classifier, order.job, order.source, order.target)

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the counts of the shards whose numbers stand in a block; one that another has done is counted only."""
        counts = [self._counts(int(number)) for number in block["item"]]
        return {name: np.array(column) for name, column in zip(Counts._fields, zip(*counts, strict=True), strict=True)}

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
            for some in _counts(order, numbers, workers):
                done = Counts(*map(sum, zip(done, some, strict=True)))
                advance(some.answered + some.rejected)
    return Scored(done.answered, done.rejected, done.repeated, 0.0, before)


def _counts(order: _Order, numbers: list[int], workers: int) -> Iterator[Counts]:
    """Yield what becomes of the shards, in the order in which they are done."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    blocks = ray.data.from_items(numbers, override_num_blocks=min(len(numbers), BLOCKS_A_WORKER * workers))
    given = blocks.map_batches(
        _Worker,
        fn_constructor_args=(order,),
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(numbers))),
        num_cpus=order.cores,
    )
    try:
        for block in given.iter_batches(batch_size=None, prefetch_batches=0):
            yield Counts(*(int(block[name].sum()) for name in Counts._fields))
    except Exception as error:
        if said := refusal(error):
            raise type(said)(str(said)) from None
        raise
