"""The whole flow on one screen: fetch, prepare, train, evaluate. Each step says when its work is already done."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from warnings import warn

import numpy as np
from peft import PeftModel

from lorafit import (
    adapter,
    assessment,
    bundle,
    calibration,
    checkpoints,
    checks,
    data,
    encoders,
    evaluation,
    guards,
    padfree,
    predict,
    prepared,
    proof,
    runs,
    runtime,
    splits,
    training,
)
from lorafit import recipe as recipes
from lorafit.calibration import Calibration
from lorafit.console import complain, duration, say
from lorafit.errors import LorafitWarning, RecipeError, RunError, printable
from lorafit.manifest import Manifest, Texts, Trained, Validation
from lorafit.prepared import Prepared
from lorafit.recipe import Data, Recipe
from lorafit.runs import Run
from lorafit.runtime import Runtime
from lorafit.trainer import OnBatch


@dataclass(frozen=True)
class _Setup:
    """Everything that training needs, ready."""

    model: Any
    tokenizer: Any
    files: encoders.Files
    prepared: Prepared
    where: Runtime
    plan: training.Plan


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
    return _set_up(recipe, prepare(recipe)).plan


def train(recipe: Recipe, out: Path | str | None = None, *, overwrite: bool = False) -> Run:
    """Return a finished run: trained now, or found in its folder.

    Args:
        recipe: what the run is.
        out: the run's folder; by default runs/NAME.
        overwrite: start over in a folder that holds another run, or an unfinished one.

    Raises:
        RunError: the folder holds an unfinished run, or one of another recipe.

    >>> run = train(recipe.load("recipes/demo.toml"))
    """
    training.refuse_missing_trackers(recipe.training.report_to)
    path = Path(out) if out else runs.DEFAULT_ROOT / recipe.name
    found = prepare(recipe)
    if (path / "run.json").is_file() and not overwrite:
        return _already_there(runs.open_run(path), recipe, found)
    setup = _set_up(recipe, found)
    count = adapter.count(setup.model)
    facts = {
        "prepared": found.key,
        "texts": {name: len(split) for name, split in found.splits.items()},
        "overlaps": found.overlaps,
        "parameters": {"trainable": count.trainable, "total": count.total},
        "encoder_sha256": setup.files.sha256,
        "runtime": runtime.as_record(setup.where),
        "kernels": padfree.status(),
        "machine": runtime.describe_machine(),
    }
    with runs.create(path, recipe, facts, overwrite=overwrite) as run, _naming_the_way_on(run):
        return _fit(run, recipe, setup, resume=None)


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
    with run.locked(), _naming_the_way_on(run):
        return _go_on(run)


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


def _go_on(run: Run) -> Run:
    found = data_of(run)
    if encoders.locate(run.recipe.encoder.name).sha256 != run.record["encoder_sha256"]:
        raise RunError(f"The encoder of {run.path} has changed since it was started. Train it anew with --overwrite.")
    checkpoint = checkpoints.last(run.checkpoints)
    if checkpoint is None:
        say(f"{run.path} has no checkpoint yet: it starts over.")
        run.start_over()
    else:
        say(f"Going on from {checkpoint}.")
    where = runtime.restore(run.record["runtime"])
    return _fit(run, run.recipe, _set_up(run.recipe, found, where), resume=checkpoint)


@contextmanager
def _naming_the_way_on(run: Run) -> Iterator[None]:
    """Say how to go on with the run when Ctrl-C or SIGTERM leaves it unfinished."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
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
        with run.locked():  # by another process, which is the better thing to say
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


def _set_up(recipe: Recipe, found: Prepared, where: Runtime | None = None) -> _Setup:
    """Load the encoder, attach the adapter, and say what is going to happen."""
    training.refuse_missing_trackers(recipe.training.report_to)
    _refuse_thresholds(recipe, found)
    guards.look_at_rate(recipe.training.learning_rate, recipe.training.lora_plus_ratio)
    where = where or runtime.choose(recipe.encoder.precision, recipe.training.threads)
    files = encoders.locate(recipe.encoder.name)
    tokenizer = encoders.load_tokenizer(files.folder, files.name)
    encoder = encoders.of_recipe(recipe, files, found.labels, found.task)
    model = _attach(recipe, files, encoder)
    adapter.speed_up(model, encoder.fresh, where)
    planned = training.plan(
        model, found.train.tokens, found.train.label_ids, recipe.training, tokenizer.pad_token_id, where
    )
    say(f"Encoder: {files.name}; {adapter.count(model)} train.")
    if recipe.encoder.pooling == "mean":
        say(
            "The head reads the mean of the tokens. Only lorafit reads such an adapter: plain PEFT has the first token."
        )
    say(f"Labels: {', '.join(found.labels)}{'; a text may have several' if found.task == 'multi_label' else ''}")
    say(
        f"Training: {planned.tokens:,} tokens in {planned.steps:,} steps, {recipe.training.epochs} epochs; "
        f"about {duration(planned.estimated_seconds)} on {where}; {padfree.status()}."
    )
    return _Setup(model, tokenizer, files, found, where, planned)


def _refuse_thresholds(recipe: Recipe, found: Prepared) -> None:
    if recipe.training.thresholds != "none" and found.task == "single_label" and len(found.labels) > 2:
        raise RecipeError(
            f'training.thresholds = "{recipe.training.thresholds}" is for two labels, or for several labels a text; '
            f"here a text has one of {len(found.labels)}, and gets the most probable one. "
            'Set training.thresholds = "none".'
        )


def _attach(recipe: Recipe, files: encoders.Files, encoder: encoders.Encoder) -> PeftModel:
    return adapter.attach(
        encoder.model,
        rank=recipe.adapter.rank,
        alpha=recipe.adapter.alpha,
        dropout=recipe.adapter.dropout,
        targets=recipe.adapter.targets,
        fresh=encoder.fresh,
        name=files.name,
        layers=recipe.adapter.layers,
        variant=recipe.adapter.variant,
        init=recipe.adapter.init,
        also_train=recipe.adapter.also_train,
    )


def _on_stored_base(recipe: Recipe, setup: _Setup) -> Any:
    """Return the trained model with its base as it is stored, where the adapter's start has changed it."""
    if recipe.adapter.init not in adapter.CHANGES_BASE:
        return setup.model
    labels, task = setup.prepared.labels, setup.prepared.task
    started, base = (encoders.of_recipe(recipe, setup.files, labels, task) for _ in range(2))
    model = adapter.as_plain_lora(setup.model, _attach(recipe, setup.files, started), base.model)
    adapter.speed_up(model, base.fresh, setup.where)
    model.to(setup.where.device)
    held_out = setup.prepared.validation.texts
    proof.refuse_other_answers(setup.model, model, held_out, setup.tokenizer, recipe.data, setup.where)
    return model


def _fit(run: Run, recipe: Recipe, setup: _Setup, resume: Path | None) -> Run:
    """Train, save the bundle, and close the run's record."""
    found = setup.prepared

    def validate(model: Any, on_batch: OnBatch) -> dict[str, float]:
        logits = _validation_logits(setup, model, "Validating", on_batch)
        if not np.isfinite(logits).all():
            raise guards.diverged("its answers are not numbers", recipe.training.learning_rate, run.checkpoints)
        return asdict(evaluation.score(logits, found.validation.label_ids))

    outcome = training.fit(
        setup.model,
        found.train.tokens,
        found.train.label_ids,
        recipe.training,
        validate=validate,
        validation_label_ids=found.validation.label_ids,
        log=run.log,
        folder=run.checkpoints,
        pad_id=setup.tokenizer.pad_token_id,
        where=setup.where,
        seed=recipe.seed,
        resume=resume,
    )
    fitted = _calibrate(recipe, setup)
    say("Proving the adapter: a fresh process reads it back ...")
    proved = proof.save(
        run.adapter,
        _on_stored_base(recipe, setup),
        setup.tokenizer,
        _manifest(recipe, setup, outcome, fitted),
        found.validation.texts,
        setup.where,
    )
    run.update(
        state=runs.FINISHED,
        best_epoch=outcome.best_epoch,
        best_validation_accuracy=outcome.best["accuracy"],
        temperature=fitted.temperature,
        calibrated_validation_loss=fitted.loss,
        steps=outcome.steps,
        epochs=outcome.epochs,
        seconds=round(run.seconds, 1),
        tokens=run.tokens,
        peak_memory_bytes=runtime.peak_memory_bytes(),
        adapter_bytes=(run.adapter / checks.WEIGHTS).stat().st_size,
    )
    say(
        f"Trained in {duration(run.seconds)}: validation accuracy {outcome.best['accuracy']:.4f} in the best epoch, "
        f"number {outcome.best_epoch}. The adapter lies in {run.adapter}; read back, its logits are within "
        f"{proved.gap:.1g}."
    )
    return run


def _validation_logits(setup: _Setup, model: Any, doing: str, on_batch: OnBatch = lambda: None) -> np.ndarray:
    held_out, pad_id = setup.prepared.validation.tokens, setup.tokenizer.pad_token_id
    return predict.logits(model, held_out, pad_id, setup.where, doing, on_batch)


def _calibrate(recipe: Recipe, setup: _Setup) -> Calibration:
    """Fit on the validation texts, and fold the temperature into the head; no checkpoint ever holds that one."""
    logits = _validation_logits(setup, setup.model, "Calibrating")
    fitted = calibration.fit(logits, setup.prepared.validation.label_ids, thresholds=recipe.training.thresholds == "f1")
    adapter.fold_temperature(setup.model, fitted.temperature)
    say(f"Calibrated: {fitted}.")
    return fitted


def _manifest(recipe: Recipe, setup: _Setup, outcome: training.Outcome, fitted: Calibration) -> Manifest:
    described = recipes.without_folders(recipe)
    return Manifest(
        base=bundle.identity(setup.files),
        labels=setup.prepared.labels,
        task=setup.prepared.task,
        text_pair=setup.prepared.text_pair,
        max_tokens=recipe.data.max_tokens,
        long_text=recipe.data.long_text,
        pooling=recipe.encoder.pooling,
        html=recipe.data.html,
        temperature=fitted.temperature,
        thresholds=fitted.thresholds,
        seed=recipe.seed,
        training=Trained(
            data=printable(described["data"]["source"]),
            recipe=described,
            texts=Texts(**{name: len(split) for name, split in setup.prepared.splits.items()}),
            best_epoch=outcome.best_epoch,
            validation=Validation(**{name: outcome.best[name] for name in ("accuracy", "f1", "loss")}),
            precision=setup.where.precision,
            packages=runtime.describe_machine()["packages"],
        ),
    )
