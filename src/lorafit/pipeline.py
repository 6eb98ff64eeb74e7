"""The whole flow on one screen: fetch, prepare, train, evaluate. Each step says when its work is already done."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from warnings import warn

from lorafit import (
    assessment,
    checkpoints,
    data,
    encoders,
    evaluation,
    fitting,
    prepared,
    ranks,
    runs,
    runtime,
    splits,
    training,
)
from lorafit.console import complain, say
from lorafit.errors import LorafitWarning, RunError
from lorafit.prepared import Prepared
from lorafit.recipe import Data, Recipe
from lorafit.runs import Run


def fetch(recipe: Recipe) -> None:
    """Cache the recipe's encoder and data, so that the rest runs offline."""
    files = encoders.locate(recipe.encoder.name, refresh=True)
    say(f"Encoder: {recipe.encoder.name} in {files.folder}")
    source = data.open_source(recipe.data.source, refresh=True)
    say(f"Data: {source.place}, {len(source.table):,} rows")
    for name, own in open_own_sources(recipe.data, refresh=True).items():
        say(f"{name.capitalize()} data: {own.place}, {len(own.table):,} rows")


def prepare(recipe: Recipe) -> Prepared:
    """Return the recipe's splits as token ids: data -> splits -> ids, or what an earlier call made of the same."""
    files = encoders.locate(recipe.encoder.name)
    tokenizer = encoders.load_tokenizer(files.folder, files.name)
    encoders.refuse_long_window(files, tokenizer, recipe.data.max_tokens)
    source = data.open_source(recipe.data.source)
    own_sources = open_own_sources(recipe.data)
    key = prepared.key_of(
        {
            "data": recipe.data.model_dump(),
            "seed": recipe.seed,
            "content": {name: found.fingerprint for name, found in ({"train": source} | own_sources).items()},
            "tokenizer": encoders.tokenizer_fingerprint(tokenizer),
        }
    )
    found = prepared.find(key)
    known = found is not None
    if found is None:
        pool = clean(source, recipe.data)
        own = {name: clean(own_source, recipe.data, pool.labels) for name, own_source in own_sources.items()}
        sizes = (recipe.data.train_size, recipe.data.validation_size, recipe.data.test_size)
        parts = splits.split(pool, *sizes, seed=recipe.seed, own=own)
        overlaps = splits.overlaps(pool, own)
        found = prepared.make(key, parts, tokenizer, recipe.data.max_tokens, recipe.data.long_text, overlaps)
    say(f"Data: {found}{'; prepared already, nothing has changed' if known else ''}.")
    if found.overlaps:
        warn(splits.describe(found.overlaps), LorafitWarning, stacklevel=2)
    return found


def plan(recipe: Recipe) -> training.Plan:
    """Say what `train` would do, without doing it: parameters, tokens, steps, an estimate of the time."""
    ranks.begin()
    return fitting.set_up(recipe, prepare(recipe)).plan


def train(recipe: Recipe, out: Path | str | None = None, *, overwrite: bool = False, go_on: bool = False) -> Run:
    """Return a finished run: trained now, or found in its folder.

    Started as several ranks, by torchrun or its like, they train it together; rank 0 alone writes, and returns a
    finished run.

    Args:
        recipe: what the run is.
        out: the run's folder; by default runs/NAME.
        overwrite: start over in a folder that holds another run, or an unfinished one.
        go_on: with an unfinished run of this recipe, as `resume` does.

    Raises:
        RunError: the folder holds an unfinished run, or one of another recipe.

    >>> run = train(recipe.load("recipes/demo.toml"))
    """
    training.refuse_missing_trackers(recipe.training.report_to)
    path = Path(out) if out else runs.DEFAULT_ROOT / recipe.name
    ranks.begin()
    with ranks.first_here_first():
        found = prepare(recipe)
    go_on, overwrite = ranks.of_first((go_on, overwrite))
    if ranks.of_first(go_on and runs.find_unfinished(path, recipe) is not None):
        return resume(path)
    if ranks.of_first((path / "run.json").is_file() and not overwrite):
        return _already_there(runs.open_run(path), recipe, found)
    setup = fitting.set_up(recipe, found)
    facts = fitting.facts(setup)
    with _by_first(path, lambda: runs.create(path, recipe, facts, overwrite=overwrite)) as run:
        _learn_and_hand_over(run, setup, None)
    return run


def try_out(recipe: Recipe, path: Path, on_validation: fitting.OnValidation) -> training.Outcome:
    """Train as `train` does, but no further than the checkpoint: calibration, proof and bundle are left to `resume`.

    What a killed process left of this recipe in the folder is gone on with; anything else gives way.

    Args:
        recipe: what the run is.
        path: the run's folder.
        on_validation: is told each epoch's number and scores; what it raises breaks the training off.

    >>> try_out(recipe, Path("trial"), lambda epoch, scores: print(epoch, scores["accuracy"])).best["accuracy"]
    """
    left = runs.find_unfinished(path, recipe, but_for=["training.threads"])
    if left is not None:
        with left.locked():
            setup, checkpoint = _as_it_was(left)
            return fitting.learn(left, setup, checkpoint, on_validation)
    setup = fitting.set_up(recipe, prepare(recipe))
    with runs.create(path, recipe, fitting.facts(setup), overwrite=True) as run:
        return fitting.learn(run, setup, on_validation=on_validation)


def resume(path: Path | str, recipe: Recipe | None = None) -> Run:
    """Go on with an unfinished run from its last checkpoint; before the first one, start over and say so.

    Args:
        path: the run's folder.
        recipe: what the caller takes the run to be; another one than the run's is refused.

    Raises:
        RunError: no run, one that another process writes, a changed recipe, encoder or data, a damaged checkpoint.
    """
    run = runs.open_run(path)
    runs.refuse_changed(run)
    if recipe is not None:
        runs.refuse_changed(run, recipe)
    if run.finished:
        say(f"{run.path} is finished; there is nothing to go on with.")
        return run
    ranks.begin()
    with _by_first(run.path, lambda: _locked(run)):
        setup, checkpoint = _as_it_was(run)
        _learn_and_hand_over(run, setup, checkpoint)
    return run


def evaluate(run: Run, baselines: Sequence[str] = ()) -> evaluation.Comparison:
    """Return base against adapted on the test texts; writes scores.json, the report and the figures.

    What stands there already is not made again: baselines that are asked for later are added.

    Args:
        run: a finished run.
        baselines: beside the commonest label and TF-IDF: "frozen", the frozen encoder with logistic regression; "full",
            full fine-tuning.

    Raises:
        RecipeError: no such baseline.
        RunError: the run is not finished.

    >>> evaluate(run, baselines=["frozen"]).accuracy_interval
    """
    return evaluation.Comparison.from_record(assessment.assess(run, data_of, baselines))


def _as_it_was(run: Run) -> tuple[fitting.Setup, Path | None]:
    """Return what an unfinished run needs to go on, and the checkpoint from which."""
    with ranks.first_here_first():
        found = data_of(run)
    if encoders.locate(run.recipe.encoder.name).sha256 != run.record["encoder_sha256"]:
        raise RunError(f"The encoder of {run.path} has changed since it was started. Train it anew with --overwrite.")
    checkpoint = ranks.of_first(checkpoints.last(run.checkpoints))
    if checkpoint is None:
        say(f"{run.path} has no checkpoint yet: it starts over.")
        if ranks.is_first():
            run.start_over()
    else:
        say(f"Going on from {checkpoint}.")
    return fitting.set_up(run.recipe, found, runtime.restore(run.record["runtime"])), checkpoint


@contextmanager
def _locked(run: Run) -> Iterator[Run]:
    with run.locked():
        yield run


@contextmanager
def _by_first(path: Path, opened: Callable[[], AbstractContextManager[Run]]) -> Iterator[Run]:
    """Yield the run in a folder that rank 0 has opened and holds; it is there once the others go on."""
    with opened() if ranks.is_first() else nullcontext(Run(path)) as run, _naming_the_way_on(run):
        ranks.of_all(None)
        yield run


def _learn_and_hand_over(run: Run, setup: fitting.Setup, checkpoint: Path | None) -> None:
    outcome = fitting.learn(run, setup, checkpoint)
    if ranks.is_first():
        fitting.hand_over(run, setup, outcome)


@contextmanager
def _naming_the_way_on(run: Run) -> Iterator[None]:
    """Say how to go on with the run when Ctrl-C or SIGTERM leaves it unfinished."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if ranks.is_first():
            complain("Interrupted", f"go on with: lorafit train --resume {run.path}", "yellow")
        raise


def open_own_sources(settings: Data, *, refresh: bool = False) -> dict[str, data.Source]:
    """Return the sources of validation and test that the recipe names: splits of its source, or ones by themselves."""

    def opened(name: str) -> data.Source:
        if name.startswith("split:"):  # of the source, which is refreshed by itself
            return data.open_source(settings.source, split=name.removeprefix("split:"))
        return data.open_source(name, refresh=refresh)

    return {split: opened(name) for split, name in settings.own_sources.items()}


def clean(source: data.Source, settings: Data, known: Sequence[str] = ()) -> data.Texts:
    """Return a source's texts and label ids, checked, by the recipe's [data] table; for `known` see `data.clean`."""
    return data.clean(
        source,
        text=settings.text,
        text_pair=settings.text_pair,
        label=settings.label,
        label_separator=settings.label_separator,
        labels=settings.labels,
        known=known,
        on_empty=settings.on_empty,
        html=settings.html,
    )


def _already_there(run: Run, recipe: Recipe, found: Prepared) -> Run:
    """Return the run that stands in the folder if it is this very one and finished; else say what to do."""
    runs.refuse_taken(run.path, recipe)
    same_encoder = run.record["encoder_sha256"] == encoders.locate(recipe.encoder.name).sha256
    if run.record["prepared"] != found.key or not same_encoder:
        raise RunError(
            f"{run.path} was trained on other {'data' if same_encoder else 'encoder weights'} under the same name"
            f"{', or prepared by an earlier lorafit' if same_encoder else ''}. "
            "Choose another folder with --out, or replace it with --overwrite."
        )
    if not run.finished:
        with (
            run.locked() if ranks.is_first() else nullcontext()
        ):  # by another process, which is the better thing to say
            raise RunError(f"{run.path} is unfinished. Go on with: lorafit train --resume {run.path}")
    say(f"{run.path} is trained already, with this recipe and data.")
    return run


def data_of(run: Run) -> Prepared:
    """Return the data that a run was started with; a changed file, split anew, would put training texts into the test.

    Raises:
        RunError: it is gone, and what stands in its place now is something else.
    """
    return prepared.find(run.record["prepared"]) or unchanged_data_of(run)


def unchanged_data_of(run: Run) -> Prepared:
    """Return the data that a run was started with, as its source has it still.

    Raises:
        RunError: it holds something else now.
    """
    found = prepare(run.recipe)
    if found.key != run.record["prepared"]:
        raise RunError(
            f"The data of {run.path} has changed since it was started, or was prepared by an earlier lorafit. "
            "Train it anew with --overwrite."
        )
    return found
