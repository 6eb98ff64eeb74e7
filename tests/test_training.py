"""Only adapter and head learn, the same way every time, and the best epoch is what stays."""

import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lorafit import adapter, batches, encoders, pipeline, predict, runs, runtime, tasks, tokens, training
from lorafit.averaging import Average
from lorafit.errors import EncoderError, LorafitWarning, RecipeError, RunError
from lorafit.recipe import Training
from tests.conftest import texts_and_labels

pytestmark = pytest.mark.usefixtures("proved_in_this_process")
FP32 = runtime.Runtime("cpu", "fp32", 2, "for the test")


def attached(tiny: Path, seed: int = 0, **lora: Any) -> tuple[Any, Any]:
    files = encoders.locate(str(tiny))
    encoder = encoders.load(files, ["neg", "pos"], seed=seed)
    return adapter.attach(encoder.model, fresh=encoder.fresh, **lora), encoders.load_tokenizer(files.folder, files.name)


def fit(model: Any, tokenizer: Any, folder: Path, settings: Training, **more: Any) -> training.Outcome:
    texts, labels = texts_and_labels(64)
    encoded = tokens.encode(texts, tokenizer, 64)
    label_ids = more.pop("label_ids", np.array(labels))
    accuracies = iter(more.pop("accuracies", []))

    def validate(model: Any, on_batch: Any) -> dict[str, float]:
        accuracy = next(accuracies, 1.0)
        accuracy, loss = accuracy if isinstance(accuracy, tuple) else (accuracy, 1.0)
        return {"accuracy": accuracy, "f1": 1 - accuracy, "recall": accuracy, "loss": loss}

    return training.fit(
        model,
        encoded,
        label_ids,
        settings,
        validate=more.pop("validate", validate),
        log=more.pop("log", lambda line: None),
        folder=folder,
        pad_id=tokenizer.pad_token_id,
        where=FP32,
        validation_label_ids=label_ids,
        **more,
    )


FEW = Training(epochs=2, learning_rate=2e-2, batch_size=16)


def test_only_adapter_and_head_train_and_the_base_stays_bit_equal(tiny: Path, tmp_path: Path) -> None:
    model, tokenizer = attached(tiny)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    trainable = set(adapter.trained_weights(model))
    assert trainable == {name for name in before if "lora_" in name or "modules_to_save" in name}
    fit(model, tokenizer, tmp_path, FEW)
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name]) is (name not in trainable), name


def test_an_adapter_before_training_and_one_switched_off_answer_as_the_base(tiny: Path, tmp_path: Path) -> None:
    files = encoders.locate(str(tiny))
    base = encoders.load(files, ["neg", "pos"]).model.eval()
    model, tokenizer = attached(tiny)
    encoded = tokens.encode(texts_and_labels(8)[0], tokenizer, 64)
    expected = predict.logits(base, encoded, tokenizer.pad_token_id, FP32)
    assert np.array_equal(predict.logits(model, encoded, tokenizer.pad_token_id, FP32), expected)
    fit(model, tokenizer, tmp_path, FEW)
    assert not np.allclose(predict.logits(model, encoded, tokenizer.pad_token_id, FP32), expected)
    with model.disable_adapter():
        assert np.array_equal(predict.logits(model, encoded, tokenizer.pad_token_id, FP32), expected)


def test_one_seed_gives_the_same_weights_and_another_one_others(tiny: Path, tmp_path: Path) -> None:
    def weights(seed: int, folder: str) -> dict[str, torch.Tensor]:
        model, tokenizer = attached(tiny, seed=seed, dropout=0.1)
        fit(model, tokenizer, tmp_path / folder, FEW, seed=seed)
        return adapter.trained_weights(model)

    first, second, other = weights(0, "a"), weights(0, "b"), weights(1, "c")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if "lora_A" in name)


def test_padding_changes_nothing(tiny: Path) -> None:
    model, tokenizer = attached(tiny)
    texts, _ = texts_and_labels(20)
    together = predict.logits(model, tokens.encode(texts, tokenizer, 64), tokenizer.pad_token_id, FP32)
    alone = [predict.logits(model, tokens.encode([t], tokenizer, 64), tokenizer.pad_token_id, FP32)[0] for t in texts]
    np.testing.assert_allclose(together, np.array(alone), atol=1e-5)


@pytest.mark.parametrize("by_length", [True, False])
def test_the_order_is_a_pure_function_of_seed_epoch_and_lengths(by_length: bool) -> None:
    lengths = np.random.default_rng(0).integers(5, 500, 1000)

    def order(seed: int, epoch: int) -> list[list[int]]:
        made = batches.Batches(lengths, 16, seed, by_length=by_length)
        made.set_epoch(epoch)
        return list(made)

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1) != order(1, 1)
    assert sorted(row for batch in order(0, 3) for row in batch) == list(range(1000))
    computed = sum(len(batch) * lengths[batch].max() for batch in order(0, 0))
    assert (computed < 1.1 * lengths.sum()) == by_length  # padded, random batches compute nearly twice as much


@pytest.mark.parametrize(
    ("select_by", "scores", "best"),
    [
        ("accuracy", [(0.7, 1.0), (0.9, 1.0), (0.8, 0.1)], 2),  # accuracy first
        ("accuracy", [(0.9, 1.0), (0.9, 0.5), (0.9, 0.7)], 2),  # then the lower loss
        ("accuracy", [(0.9, 0.5), (0.9, 0.5), (0.8, 0.1)], 1),  # then the earlier one
        ("f1", [(0.8, 1.0), (0.9, 0.1), (0.7, 1.0)], 3),  # F1, which falls here where accuracy rises
    ],
)
def test_the_best_epoch_is_what_stays(
    select_by: str, scores: list[tuple[float, float]], best: int, tiny: Path, tmp_path: Path
) -> None:
    model, tokenizer = attached(tiny)
    seen: list[dict[str, torch.Tensor]] = []
    given = iter([(0.5, 1.0), *scores])

    def validate(model: Any, on_batch: Any) -> dict[str, float]:
        seen.append(adapter.trained_weights(model))
        accuracy, loss = next(given)
        return {"accuracy": accuracy, "f1": 1 - accuracy, "recall": accuracy, "loss": loss}

    settings = FEW.model_copy(update={"epochs": 3, "select_by": select_by})
    outcome = fit(model, tokenizer, tmp_path, settings, validate=validate)
    assert outcome.best_epoch == best
    now = adapter.trained_weights(model)
    assert all(torch.equal(now[name], seen[best][name]) for name in now)


def test_the_mean_of_the_last_weights_is_what_is_validated_and_stays(tiny: Path, tmp_path: Path) -> None:
    model, tokenizer = attached(tiny)
    after: list[dict[str, torch.Tensor]] = []
    validated: list[dict[str, torch.Tensor]] = []

    def log(line: dict[str, Any]) -> None:
        if "loss" in line:
            after.append(adapter.trained_weights(model))

    def validate(model: Any, on_batch: Any) -> dict[str, float]:
        validated.append(adapter.trained_weights(model))
        return {"accuracy": 0.5 + len(validated) / 10, "f1": 0.5, "recall": 0.5, "loss": 1.0}

    settings = FEW.model_copy(update={"epochs": 3, "average": 0.5})
    fit(model, tokenizer, tmp_path, settings, validate=validate, log=log)
    now = adapter.trained_weights(model)
    for name, weight in now.items():
        torch.testing.assert_close(weight, torch.stack([of[name] for of in after[6:]]).mean(0))
        assert torch.equal(weight, validated[3][name])
        torch.testing.assert_close(validated[2][name], torch.stack([of[name] for of in after[6:8]]).mean(0))
        assert torch.equal(validated[1][name], after[3][name])  # of the first epoch: no mean yet
        assert not torch.equal(weight, after[-1][name])


@pytest.mark.parametrize(
    ("share", "steps", "taken"), [(0.9, 10, 9), (0.5, 12, 6), (0.6, 45, 27), (0.7, 10, 7), (0.25, 3, 1), (0.0, 9, 0)]
)
def test_the_mean_takes_its_share_of_the_steps_and_not_one_more(share: float, steps: int, taken: int) -> None:
    average = Average(share)
    for step in range(1, steps + 1):
        average.add(torch.nn.Linear(1, 1), step, steps)
    assert average.state().facts["count"] == taken


def test_early_stopping_stops_after_epochs_without_gain(tiny: Path, tmp_path: Path) -> None:
    model, tokenizer = attached(tiny)
    settings = FEW.model_copy(update={"epochs": 9, "early_stopping": 2})
    outcome = fit(model, tokenizer, tmp_path, settings, accuracies=[0.5, 0.9, 0.8, 0.8, 0.8, 0.95])
    assert (outcome.steps, outcome.best_epoch) == (3 * 4, 1)
    settings = settings.model_copy(update={"select_by": "f1"})  # of which the gain comes later
    outcome = fit(*attached(tiny), tmp_path / "f1", settings, accuracies=[0.5, 0.9, 0.95, 0.8, 0.85, 0.9, 0.7])
    assert (outcome.steps, outcome.best_epoch) == (5 * 4, 3)


def test_ctrl_c_in_the_last_validation_is_not_lost(tiny: Path, tmp_path: Path) -> None:
    model, tokenizer = attached(tiny)
    seen: list[int] = []

    def validate(*_: Any) -> dict[str, float]:
        seen.append(len(seen))
        if len(seen) == 2:
            signal.raise_signal(signal.SIGINT)
        return {"accuracy": 0.9, "f1": 0.9, "recall": 0.9, "loss": 0.5}

    with pytest.raises(KeyboardInterrupt):
        fit(model, tokenizer, tmp_path, FEW.model_copy(update={"epochs": 1}), validate=validate)
    assert len(seen) == 2


def test_accuracy_at_chance_is_said(tiny: Path, tmp_path: Path) -> None:
    model, tokenizer = attached(tiny)
    settings = FEW.model_copy(update={"epochs": 1})
    with pytest.warns(LorafitWarning, match=r"After epoch 1 validation accuracy is 0.550, no better than guessing"):
        fit(model, tokenizer, tmp_path, settings, accuracies=[0.5, 0.55])


def test_weights_that_did_not_move_are_said(tiny: Path, tmp_path: Path) -> None:
    model, tokenizer = attached(tiny)
    settings = FEW.model_copy(update={"epochs": 1, "learning_rate": 1e-30})
    with pytest.warns(LorafitWarning, match="no trainable weight has moved"):
        fit(model, tokenizer, tmp_path, settings)


def test_the_history_has_a_line_a_step_and_a_line_a_validation(tiny: Path, tmp_path: Path) -> None:
    model, tokenizer = attached(tiny)
    lines: list[dict[str, Any]] = []
    fit(model, tokenizer, tmp_path, FEW, log=lines.append)
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 9))
    assert all(line["tokens_per_second"] > 0 and line["learning_rate"] >= 0 for line in steps)
    assert [line["epoch"] for line in lines if "validation" in line] == [0, 1, 2]


@pytest.mark.parametrize("task", ["single_label", "multi_label"])
def test_balanced_class_weights_are_in_the_loss_that_is_trained_with(task: str, tiny: Path, tmp_path: Path) -> None:
    label_ids = np.array([0] * 58 + [1] * 6)
    if task == "multi_label":
        label_ids = np.eye(2, dtype=np.int64)[label_ids]
    model, tokenizer = attached(tiny)
    encoded = tokens.encode(texts_and_labels(64)[0], tokenizer, 64)
    logits = torch.from_numpy(predict.logits(model, encoded, tokenizer.pad_token_id, FP32))
    weights = torch.from_numpy(tasks.class_weights(label_ids, 2))
    expected = {
        "none": tasks.loss(logits, torch.from_numpy(label_ids)).item(),
        "balanced": tasks.loss(logits, torch.from_numpy(label_ids), weights).item(),
    }
    assert abs(expected["balanced"] - expected["none"]) > 0.05
    settings = FEW.model_copy(update={"batch_size": 64, "epochs": 1, "warmup": 0.0})  # one step
    for name, loss in expected.items():
        lines: list[dict[str, Any]] = []
        weighed = settings.model_copy(update={"class_weights": name})
        fit(*attached(tiny), tmp_path / name, weighed, label_ids=label_ids, log=lines.append)
        assert next(line["loss"] for line in lines if "loss" in line) == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("linear", [0.0, 0.5, *[1 - step / 6 for step in range(6)]]),
        ("cosine", [0.0, 0.5, *[(1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]]),
        ("constant", [0.0, 0.5, *[1.0] * 6]),
    ],
)
def test_the_rate_rises_in_the_warm_up_and_falls_by_the_schedule(
    schedule: str, shares: list[float], tiny: Path, tmp_path: Path
) -> None:
    lines: list[dict[str, Any]] = []
    settings = FEW.model_copy(update={"schedule": schedule, "warmup": 0.25})  # 2 of 8 steps
    fit(*attached(tiny), tmp_path, settings, log=lines.append)
    rates = [line["learning_rate"] for line in lines if "loss" in line]
    assert rates == pytest.approx([settings.learning_rate * share for share in shares], abs=1e-9)


def test_planning_leaves_weights_and_random_state_alone(tiny: Path) -> None:
    model, tokenizer = attached(tiny, dropout=0.5)
    texts, labels = texts_and_labels(64)
    before, state = adapter.trained_weights(model), torch.random.get_rng_state()
    encoded = tokens.encode(texts, tokenizer, 64)
    planned = training.plan(model, encoded, np.array(labels), FEW, tokenizer.pad_token_id, FP32)
    assert (planned.steps, planned.tokens) == (8, 2 * int(encoded.lengths.sum()))
    assert planned.estimated_seconds > 0
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(weight, before[name]) for name, weight in adapter.trained_weights(model).items())
    assert all(weight.grad is None for weight in model.parameters())


def test_a_target_that_no_layer_is_called_is_refused(tiny_recipe: Callable[..., Any]) -> None:
    with pytest.raises(EncoderError) as error:
        pipeline.plan(tiny_recipe(adapter={"targets": ["querry"]}))
    assert "is called 'querry'. Did you mean 'query'? Its attention layers are query, key, value, " in str(error.value)
    assert 'Set adapter.targets = ["query", "value"].' in str(error.value)


def test_the_encoders_own_dropout_is_a_setting(tiny: Path) -> None:
    files = encoders.locate(str(tiny))

    def rates(dropout: float | str) -> set[float]:
        model = encoders.load(files, ["a", "b"], dropout=dropout).model
        return {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}

    assert rates("keep") == {0.1}
    assert rates(0.0) == {0.0}
    assert rates(0.25) == {0.25}


def test_an_interrupted_run_goes_on_to_the_very_same_weights(
    tiny_recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tiny_recipe(adapter={"dropout": 0.1}, training={"checkpoint_every": 4, "average": 0.6})  # from step 19 on
    whole = pipeline.train(made, tmp_path / "whole")

    class KilledError(Exception):
        pass

    log = runs.Run.log

    def log_and_die(run: runs.Run, line: dict[str, Any]) -> None:
        log(run, line)
        if line.get("step") == 22:
            raise KilledError

    monkeypatch.setattr(runs.Run, "log", log_and_die)
    with pytest.raises(KilledError):
        pipeline.train(made, tmp_path / "killed")
    monkeypatch.undo()
    with pytest.raises(RunError, match="is unfinished. Go on with: lorafit train --resume"):
        pipeline.train(made, tmp_path / "killed")
    with pytest.raises(RunError, match="is not finished. Go on with: lorafit train --resume"):
        pipeline.evaluate(runs.open_run(tmp_path / "killed"))
    resumed = pipeline.resume(tmp_path / "killed")
    weights = [(run.adapter / "adapter_model.safetensors").read_bytes() for run in (whole, resumed)]
    assert weights[0] == weights[1]
    steps = [line["step"] for line in resumed.history if "loss" in line]
    assert steps == [*range(1, 23), *range(21, 46)]  # the checkpoint is that of step 20, in the middle of epoch 2
    assert [line["validation"] for line in resumed.validations] == [line["validation"] for line in whole.validations]
    assert resumed.record["best_epoch"] == whole.record["best_epoch"]
    assert resumed.seconds == pytest.approx(sum(line["seconds"] for line in resumed.history))


def test_a_run_whose_data_has_changed_is_neither_resumed_nor_scored(
    tiny_recipe: Callable[..., Any], reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another file would be split anew, and its test would hold texts that were trained on."""
    monkeypatch.setenv("LORAFIT_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "reviews.csv"
    shutil.copy(reviews, file)
    run = pipeline.train(tiny_recipe(data={"source": str(file)}), tmp_path / "run")
    with file.open("a") as stream:
        stream.write('"a good new film",pos\n')
    with pytest.raises(RunError, match="was trained on other data under the same name"):
        pipeline.train(run.recipe, tmp_path / "run")
    assert pipeline.evaluate(run).n == 40  # the prepared data is still there
    run.predictions.unlink()
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(RunError, match="The data of .* has changed since it was started"):
        pipeline.evaluate(run)
    run.update(state="training")
    with pytest.raises(RunError, match="The data of .* has changed since it was started"):
        pipeline.resume(run.path)


@pytest.mark.filterwarnings("ignore:training.learning_rate is 1e.38")
def test_training_that_diverges_is_one_sentence(tiny_recipe: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"Training has diverged: .* is not a number. Lower training.learning_rate"):
        pipeline.train(tiny_recipe(training={"learning_rate": 1e38}), tmp_path / "run")


def test_a_checkpoint_with_a_head_of_its_own_is_no_untrained_base(tiny: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    folder = Path(shutil.copytree(tiny, tmp_path / "headed"))
    AutoModelForSequenceClassification.from_pretrained(tiny).save_pretrained(folder)
    with pytest.raises(EncoderError, match="brings a trained classification head of its own"):
        encoders.load(encoders.locate(str(folder)), ["neg", "pos"])


@pytest.mark.parametrize(
    ("file", "content"), [("config.json", '{"model_type": "foo"}'), ("tokenizer.json", "{"), ("model.safetensors", "?")]
)
def test_a_broken_encoder_is_refused_in_one_sentence(
    file: str, content: str, tiny: Path, tiny_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "broken"))
    (folder / file).write_text(content)
    with pytest.raises(EncoderError, match="can't be loaded as a text classifier: "):
        pipeline.plan(tiny_recipe(encoder={"name": str(folder)}))


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_over(
    tiny_recipe: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = tiny_recipe()
    whole = pipeline.train(made, tmp_path / "whole")
    killed = pipeline.train(made, tmp_path / "killed")
    for part in ("checkpoints", "adapter"):
        shutil.rmtree(killed.path / part)
    killed.update(state="training")
    resumed = pipeline.resume(killed.path)
    assert "it starts over" in capfd.readouterr().err
    assert (resumed.adapter / "adapter_model.safetensors").read_bytes() == (
        whole.adapter / "adapter_model.safetensors"
    ).read_bytes()


def test_a_tracker_that_is_not_installed_is_named(tiny_recipe: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="training.report_to: nosuchtracker is not installed here"):
        pipeline.train(tiny_recipe(training={"report_to": ["nosuchtracker"]}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
