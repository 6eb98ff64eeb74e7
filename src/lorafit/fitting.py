"""One run's training, from recipe and data to the bundle: set up, learn, hand over."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from peft import PeftModel

from lorafit import (
    adapter,
    bundle,
    calibration,
    checks,
    data,
    encoders,
    evaluation,
    guards,
    padfree,
    predict,
    prefix,
    proof,
    ranks,
    runs,
    runtime,
    training,
)
from lorafit import recipe as recipes
from lorafit.calibration import Calibration
from lorafit.console import duration, say
from lorafit.errors import RecipeError, printable
from lorafit.manifest import Manifest, Texts, Trained, Validation
from lorafit.prefix import Prefix
from lorafit.prepared import Prepared
from lorafit.recipe import Recipe
from lorafit.runs import Run
from lorafit.runtime import Runtime
from lorafit.tokens import Tokens
from lorafit.trainer import OnBatch

OnValidation = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class Setup:
    """Everything that training needs, ready."""

    recipe: Recipe
    model: Any
    tokenizer: Any
    files: encoders.Files
    prepared: Prepared
    where: Runtime
    prefix: Prefix | None  # where the recipe keeps what the frozen layers give
    plan: training.Plan


def set_up(recipe: Recipe, found: Prepared, where: Runtime | None = None) -> Setup:
    """Load the encoder, attach the adapter, and say what is going to happen.

    Args:
        recipe: what the run is.
        found: its data.
        where: device and precision, where they are settled already.
    """
    training.refuse_missing_trackers(recipe.training.report_to)
    _refuse_thresholds(recipe, found)
    guards.look_at_rate(recipe.training.learning_rate, recipe.training.lora_plus_ratio)
    where = ranks.of_first(where or runtime.choose(recipe.encoder.precision, recipe.training.threads))
    files = encoders.locate(recipe.encoder.name)
    tokenizer = encoders.load_tokenizer(files.folder, files.name)
    encoder = encoders.of_recipe(recipe, files, found.labels, found.task)
    model = _attach(recipe, files, encoder)
    below = prefix.of(model, recipe.adapter.layers, files.name) if recipe.training.cache_prefix else None
    adapter.speed_up(model, encoder.fresh, where)
    planned = _plan(recipe, model, found, tokenizer.pad_token_id, where, below)
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
    return Setup(recipe, model, tokenizer, files, found, where, below, planned)


def learn(
    run: Run, setup: Setup, resume: Path | None = None, on_validation: OnValidation = lambda _epoch, _scores: None
) -> training.Outcome:
    """Train; the model ends with the best epoch's weights, and so does the last checkpoint.

    Args:
        run: gets the history and the checkpoints.
        setup: from `set_up`.
        resume: a checkpoint to go on from.
        on_validation: is told each epoch's number and scores; what it raises breaks the training off.
    """
    recipe, label_ids = setup.recipe, setup.prepared.validation.label_ids

    def log(line: dict[str, Any]) -> None:
        if ranks.is_first():
            run.log(line)
        if "validation" in line:
            on_validation(line["epoch"], line["validation"])

    with _tokens(run, setup) as (train, validation):

        def validate(model: Any, on_batch: OnBatch) -> dict[str, float]:
            logits = predict.logits_of_ranks(
                model, validation, setup.tokenizer.pad_token_id, setup.where, "Validating", on_batch
            )
            if not np.isfinite(logits).all():
                raise guards.diverged("its answers are not numbers", recipe.training.learning_rate, run.checkpoints)
            return asdict(evaluation.score(logits, label_ids))

        return training.fit(
            setup.model,
            train,
            setup.prepared.train.label_ids,
            recipe.training,
            validate=validate,
            validation_label_ids=label_ids,
            log=log,
            folder=run.checkpoints,
            pad_id=setup.tokenizer.pad_token_id,
            where=setup.where,
            seed=recipe.seed,
            resume=resume,
        )


def hand_over(run: Run, setup: Setup, outcome: training.Outcome) -> None:
    """Calibrate what was learned, save and prove the bundle, and close the run's record."""
    fitted = _calibrate(run, setup)
    say("Proving the adapter: a fresh process reads it back ...")
    proved = proof.save(
        run.adapter,
        _on_stored_base(setup),
        setup.tokenizer,
        _manifest(setup, outcome, fitted),
        setup.prepared.validation.texts,
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


def facts(setup: Setup) -> dict[str, Any]:
    """Return what a run's record holds of its start."""
    count, validation = adapter.count(setup.model), setup.prepared.validation
    return {
        "prepared": setup.prepared.key,
        "texts": {name: len(split) for name, split in setup.prepared.splits.items()},
        "validation_sha256": data.fingerprint_of(validation.texts, setup.prepared.labels, validation.label_ids),
        "overlaps": setup.prepared.overlaps,
        "parameters": {"trainable": count.trainable, "total": count.total},
        "encoder_sha256": setup.files.sha256,
        "runtime": runtime.as_record(setup.where),
        "kernels": padfree.status(),
        "machine": runtime.describe_machine(),
        "launch": ranks.launch(),
    }


@contextmanager
def _tokens(run: Run, setup: Setup) -> Iterator[tuple[Tokens, Tokens]]:
    """Yield the tokens of train and validation; where a prefix is kept, as the rows of what it gives for them."""
    own = [setup.prepared.train.tokens, setup.prepared.validation.tokens]
    if setup.prefix is None:
        yield own[0], own[1]
        return
    key = prefix.key_of(setup.prefix, setup.files, setup.prepared.key, "train and validation", setup.where)
    setup.model.to(setup.where.device).eval()
    found = prefix.states(setup.prefix, key, own, setup.tokenizer.pad_token_id, setup.where)
    if found.seconds and ranks.is_first():
        run.log({"prefix": {"layers": setup.prefix.count, "bytes": found.bytes}, "seconds": found.seconds})
    with prefix.standing_in(setup.prefix, found.table):
        yield found.tokens[0], found.tokens[1]


def _plan(
    recipe: Recipe, model: PeftModel, found: Prepared, pad_id: int, where: Runtime, below: Prefix | None
) -> training.Plan:
    def planned(tokens: Tokens) -> training.Plan:
        return training.plan(model, tokens, found.train.label_ids, recipe.training, pad_id, where)

    if below is None:
        return planned(found.train.tokens)
    (rows,) = prefix.rows_of([found.train.tokens])
    with prefix.standing_in(below, prefix.blank(below, len(rows.ids), where)):
        return planned(rows)


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


def _on_stored_base(setup: Setup) -> Any:
    """Return the trained model with its base as it is stored, where the adapter's start has changed it."""
    recipe = setup.recipe
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


def _calibrate(run: Run, setup: Setup) -> Calibration:
    """Fit on the validation texts, and fold the temperature into the head; no checkpoint ever holds that one."""
    with _tokens(run, setup) as (_, validation):
        logits = predict.logits(setup.model, validation, setup.tokenizer.pad_token_id, setup.where, "Calibrating")
    fits_thresholds = setup.recipe.training.thresholds == "f1"
    fitted = calibration.fit(logits, setup.prepared.validation.label_ids, thresholds=fits_thresholds)
    adapter.fold_temperature(setup.model, fitted.temperature)
    say(f"Calibrated: {fitted}.")
    return fitted


def _manifest(setup: Setup, outcome: training.Outcome, fitted: Calibration) -> Manifest:
    recipe = setup.recipe
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
