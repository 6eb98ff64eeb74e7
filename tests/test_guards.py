"""The guards speak up once where something is wrong, and keep quiet on ordinary runs."""

import json
import math
import random
import re
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerState

from lorafit import Classifier, adapter, checkpoints, guards, pipeline, recipe, runs, tasks
from lorafit.checkpoints import State
from lorafit.errors import LorafitWarning, RunError
from lorafit.guards import Guard
from lorafit.recipe import Training
from tests.conftest import Said, texts_and_labels, write_csv
from tests.test_training import FEW, attached, fit

pytestmark = pytest.mark.usefixtures("proved_in_this_process")
HALVES = np.array([0, 1] * 150)
Epochs = list[tuple[float, float, float]]  # validation accuracy (macro recall too), validation loss, training loss


def guard_of(label_ids: np.ndarray = HALVES, *, epoch_steps: int = 2, **settings: Any) -> Guard:
    start = {"weight": torch.zeros(1, 2)}
    return Guard(label_ids, start, Training(**settings), epoch_steps=epoch_steps, folder=Path("none"))


def linear(weight: float) -> torch.nn.Module:
    model = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.constant_(model.weight, weight)
    return model


def what_is_said(guard: Guard, epochs: Epochs, moved: float = 1.0) -> list[str]:
    model = linear(moved)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for number, (accuracy, loss, training_loss) in enumerate(epochs, start=1):
            for step in (2 * number - 1, 2 * number):
                guard.look_at_step(model, step, {"loss": training_loss, "grad_norm": 1.0}, 0.7)
            guard.look(model, {"accuracy": accuracy, "recall": accuracy, "loss": loss}, number)
    return [str(warning.message) for warning in said]


ORDINARY: dict[str, Epochs] = {
    "learns, and then stands still": [(0.8, 0.5, 0.6), (0.88, 0.3, 0.4), (0.87, 0.31, 0.3), (0.875, 0.3, 0.2)] * 2,
    "is noisy": [(0.88, 0.3, 0.4), (0.84, 0.36, 0.3), (0.87, 0.31, 0.25), (0.83, 0.4, 0.2), (0.88, 0.3, 0.1)] * 2,
    "grows surer, and still gains": [(0.85, 0.3, 0.4), (0.86, 0.34, 0.3), (0.865, 0.38, 0.2), (0.88, 0.42, 0.1)],
    "gets all right, and the loss creeps up": [(1.0, 0.0100 + 0.0001 * n, 0.1 / (n + 1)) for n in range(6)],
    "has one bad epoch": [(0.88, 0.3, 0.4), (0.6, 0.9, 0.3), (0.88, 0.3, 0.3), (0.6, 0.9, 0.3), (0.6, 0.8, 0.2)],
    "has both losses rise, as with a rate too high for a while": [
        (0.9, 0.3 + 0.1 * n, 0.3 + 0.1 * n) for n in range(5)
    ],
}


@pytest.mark.parametrize("epochs", ORDINARY.values(), ids=ORDINARY)
def test_nothing_is_said_of_a_run_that(epochs: Epochs) -> None:
    assert what_is_said(guard_of(), epochs) == []


def test_validation_accuracy_below_its_best_for_three_epochs_is_said_once() -> None:
    epochs = [(0.9, 0.3, 0.4), (0.8, 0.5, 0.3), (0.8, 0.5, 0.3), (0.8, 0.5, 0.3), (0.8, 0.5, 0.3), (0.8, 0.5, 0.3)]
    assert what_is_said(guard_of(), epochs) == [
        "After epoch 4 validation accuracy has been clearly below its best, 0.900, for 3 epochs. The best epoch's "
        "weights are kept; training.early_stopping = 3 would save the time."
    ]
    assert what_is_said(guard_of(early_stopping=5), epochs) == []
    (said,) = what_is_said(guard_of(average=0.5), epochs)  # which early stopping would cut off
    assert said.endswith(" The best epoch's weights are kept; fewer epochs would save the time.")


def test_validation_loss_that_rises_while_training_loss_falls_is_said_once() -> None:
    epochs = [(0.88, 0.3 + 0.1 * n, 0.3 / (n + 1)) for n in range(6)]
    assert what_is_said(guard_of(), epochs) == [
        "After epoch 4 validation loss has risen for 3 epochs, from 0.300 to 0.600, while training loss fell. The best "
        "epoch's weights are kept; training.early_stopping = 3 would save the time."
    ]


def test_chance_is_the_commonest_label_or_set_of_labels_and_is_said_once() -> None:
    at_chance = [(0.55, 0.7, 0.7)] * 3
    (said,) = what_is_said(guard_of(), at_chance)
    assert said.startswith("After epoch 1 validation accuracy is 0.550, no better than guessing the commonest label. ")
    sets = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 1]] * 75)  # each label alone is there in half of the texts
    assert what_is_said(guard_of(sets), at_chance) == []
    (said,) = what_is_said(guard_of(sets), [(0.29, 0.7, 0.7)] * 2)
    assert "no better than guessing the commonest set of labels" in said


def test_of_unbalanced_labels_a_majority_guess_is_chance_and_rare_ones_found_are_not() -> None:
    rare = np.array([0] * 297 + [1] * 3)  # 1%
    model = linear(0.5)
    for accuracy, recall in ((1.0, 1.0), (0.9967, 0.833), (0.99, 0.995)):
        guard_of(rare).look(model, {"accuracy": accuracy, "recall": recall, "loss": 0.1}, 1)
    with pytest.warns(LorafitWarning, match="validation accuracy is 0.990, no better than guessing the commonest"):
        guard_of(rare).look(model, {"accuracy": 0.99, "recall": 0.5, "loss": 0.1}, 1)
    none = np.array([[0, 0]] * 297 + [[0, 1]] * 3)  # sets of labels: of those, accuracy tells
    guard_of(none).look(model, {"accuracy": 1.0, "recall": 1.0, "loss": 0.1}, 1)
    with pytest.warns(LorafitWarning, match="guessing the commonest set of labels"):
        guard_of(none).look(model, {"accuracy": 0.99, "recall": 0.0, "loss": 0.1}, 1)


def test_a_higher_rate_is_the_advice_only_where_the_rate_is_low() -> None:
    at_chance = [(0.5, 0.7, 0.7)]
    (low,) = what_is_said(guard_of(learning_rate=2e-4), at_chance)
    assert low.endswith("LoRA often needs a higher training.learning_rate (about 0.001); check the labels too.")
    (high,) = what_is_said(guard_of(learning_rate=5e-3), at_chance)
    assert high.endswith("Try another training.learning_rate (it is 0.005); check the labels too.")


def test_a_resumed_training_counts_on_and_says_nothing_twice(tiny: Path, tmp_path: Path) -> None:
    accuracies = [0.5, 0.55, 0.95, 0.6, 0.6, 0.6]  # at chance in the first epoch; then three below the best
    settings = FEW.model_copy(update={"epochs": 5})

    def interrupt(line: dict[str, Any]) -> None:
        if line["step"] == 14:  # the second of the fourth epoch
            raise KeyboardInterrupt

    with pytest.warns(LorafitWarning) as before, pytest.raises(KeyboardInterrupt):
        fit(*attached(tiny), tmp_path, settings, accuracies=accuracies, log=interrupt)
    resume = checkpoints.last(tmp_path)
    with pytest.warns(LorafitWarning) as after:
        fit(*attached(tiny), tmp_path, settings, accuracies=accuracies[4:], resume=resume)
    said = [[str(one.message) for one in of if one.category is LorafitWarning] for of in (before, after)]
    assert [[one.partition(" validation")[0] for one in of] for of in said] == [["After epoch 1"], ["After epoch 5"]]


def test_weights_that_do_not_move_are_said_once() -> None:
    said = what_is_said(guard_of(), [(0.5, 0.7, 0.7)] * 2, moved=0.0)
    assert said == ["After epoch 1 no trainable weight has moved. Is training.learning_rate too small?"]


def what_steps_say(guard: Guard, losses: list[float], guess: float = 0.7) -> list[str]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step, loss in enumerate(losses, start=1):
            guard.look_at_step(linear(1.0), step, {"loss": loss}, guess)
    return [str(warning.message) for warning in said]


def test_a_training_loss_that_stays_a_guess_s_is_said_once_within_the_epoch() -> None:
    (said,) = what_steps_say(guard_of(epoch_steps=400, epochs=1, warmup=0.1), [5.0] * 40 + [0.71] * 360)
    assert said == (
        "After step 240 the training loss of the last 100 steps is 0.710, no better than guessing by how common each "
        "label is (0.700). Try another training.learning_rate (it is 0.001); check the labels too."
    )
    (said,) = what_steps_say(guard_of(epoch_steps=10, warmup=0.0), [0.7] * 200)  # never fewer than 50 steps
    assert said.startswith("After step 100 the training loss of the last 50 steps is 0.700")
    (said,) = what_steps_say(guard_of(epoch_steps=100, warmup=0.0), [0.5] * 150 + [0.8] * 150)  # it had learnt
    assert said.startswith("After step 200 ")


@pytest.mark.parametrize(
    "losses",
    [
        [0.8] * 99,
        [0.72] * 50 + [0.69] * 250,
        [0.8 - 0.1 * step / 100 for step in range(300)],
        [3.0 * 0.99**step + 0.1 for step in range(300)],  # rare labels: the head's fresh answers are far from a guess
    ],
    ids=["is over too soon to tell", "is a little better than a guess", "falls slowly", "comes down to a guess first"],
)
def test_nothing_is_said_of_a_training_loss_that(losses: list[float]) -> None:
    assert what_steps_say(guard_of(epoch_steps=100, warmup=0.0), losses) == []


def test_a_resumed_training_looks_at_the_same_steps_together() -> None:
    whole, first, second = (guard_of(epoch_steps=100, warmup=0.0) for _ in range(3))
    losses = [0.7 + 0.001 * step for step in range(100)]
    assert what_steps_say(first, losses[:80]) == []
    second.remember(State({}, json.loads(json.dumps(first.state().facts))))
    assert (
        what_steps_say(second, losses[80:])[0].partition(" the ")[2]
        == (what_steps_say(whole, losses)[0].partition(" the ")[2])
    )
    assert second.state() == whole.state()


@pytest.fixture
def said_while_training(
    tiny_recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[str]]:
    """Return what a run of 480 texts in 120 steps an epoch hears before its first epoch ends."""

    def train(labels: list[object], learning_rate: float = 2e-3, weights: str = "none", **data: Any) -> list[str]:
        file = write_csv(tmp_path / "data.csv", texts_and_labels(len(labels))[0], labels)
        made = tiny_recipe(
            data={"source": str(file), "train_size": 480, "validation_size": 40, "test_size": 40} | data,
            training={
                "epochs": 1,
                "batch_size": 4,
                "learning_rate": learning_rate,
                "class_weights": weights,
                "threads": 1,
            },
        )
        monkeypatch.setattr(Guard, "look", lambda *_: None)  # at the epoch's end
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pipeline.train(made, tmp_path / "run")
        said = [str(one.message) for one in caught if one.category is LorafitWarning]
        return [one for one in said if not one.startswith("training.learning_rate is")]

    return train


MOODS: list[object] = [["neg", "pos"][label] for label in texts_and_labels(560)[1]]


@pytest.mark.parametrize("rate", [2e-4, 2e-2])
def test_a_run_that_learns_hears_nothing_while_it_trains(
    rate: float, said_while_training: Callable[..., list[str]]
) -> None:
    assert said_while_training(MOODS, rate) == []


def test_a_rate_that_moves_nothing_is_said_before_the_first_epoch_ends(
    said_while_training: Callable[..., list[str]],
) -> None:
    moves, chance = said_while_training(MOODS, 1e-7)
    assert moves == "After step 28 no trainable weight has moved. Is training.learning_rate too small?"
    assert chance.startswith("After step 108 the training loss of the last 50 steps is ")


@pytest.mark.parametrize(
    ("kind", "weights"),
    [("halves", "none"), ("unbalanced", "balanced"), ("several a text", "none"), ("several a text", "balanced")],
)
def test_labels_that_have_nothing_to_do_with_the_texts_are_said_before_the_first_epoch_ends(
    kind: str, weights: str, said_while_training: Callable[..., list[str]]
) -> None:
    chance = random.Random(0)
    if kind == "several a text":
        several: list[object] = ["|".join(chance.sample("abc", chance.randint(1, 2))) for _ in range(560)]
        (said,) = said_while_training(several, weights=weights, label_separator="|")
    else:
        one: list[object] = [*chance.choices(["neg", "pos"], [1, 1 if kind == "halves" else 9], k=560)]
        (said,) = said_while_training(one, weights=weights)
    assert "no better than guessing by how common each label is" in said


@pytest.mark.parametrize(
    ("rate", "ratio", "says"),
    [
        (5e-5, 1, "training.learning_rate is 5e-05, a rate of full fine-tuning: below 0.0001 LoRA learns little, and "
                  "may stay at chance. Try 0.001."),
        (0.03, 1, "training.learning_rate is 0.03: above 0.02 LoRA seldom learns, and often diverges. Try 0.001."),
        (5e-3, 16, "training.learning_rate times lora_plus_ratio is 0.08: above 0.02 LoRA seldom learns"),
    ],
)  # fmt: skip
def test_a_rate_far_from_what_lora_needs_is_said(rate: float, ratio: float, says: str) -> None:
    with pytest.warns(LorafitWarning) as said:
        guards.look_at_rate(rate, ratio)
    assert str(said[0].message).startswith(says)


def test_the_usual_rates_pass(recwarn: pytest.WarningsRecorder) -> None:
    for rate, ratio in ((1e-4, 1.0), (2e-4, 1.0), (1e-3, 1.0), (2e-3, 1.0), (2e-2, 1.0), (5e-5, 16.0), (1e-3, 16.0)):
        guards.look_at_rate(rate, ratio)
    assert [str(said.message) for said in recwarn] == []


def test_of_the_recipes_that_come_with_lorafit_project_a_alone_has_a_rate_far_from_what_lora_needs() -> None:
    for name in ("demo", "imdb-one-pass", "imdb-bert-base-uncased"):
        guards.look_at_rate(recipe.load(recipe.shipped(name)).training.learning_rate)
    with pytest.warns(LorafitWarning, match="training.learning_rate is 5e-05, a rate of full fine-tuning"):
        guards.look_at_rate(recipe.load(recipe.shipped("imdb-bert-base-cased")).training.learning_rate)


def test_the_rate_is_looked_at_before_training(tiny_recipe: Callable[..., Any]) -> None:
    with pytest.warns(LorafitWarning, match="training.learning_rate times lora_plus_ratio is 5e-05"):
        pipeline.plan(tiny_recipe(training={"learning_rate": 2.5e-5, "lora_plus_ratio": 2.0}))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("key", "name"), [("loss", "loss"), ("grad_norm", "gradient")])
def test_a_loss_or_gradient_that_is_not_a_number_ends_the_training(key: str, name: str, value: float) -> None:
    with pytest.raises(RunError) as error:
        guard_of().look_at_step(linear(1.0), 7, {"loss": 0.5, "grad_norm": 1.0} | {key: value}, 0.7)
    assert str(error.value) == (
        f"Training has diverged: the {name} of step 7 is not a number. Lower training.learning_rate (it is 0.001) and "
        "train anew."
    )


def test_a_training_that_diverges_leaves_its_last_good_checkpoint_and_no_other(tiny: Path, tmp_path: Path) -> None:
    model, tokenizer = attached(tiny)
    lines: list[dict[str, Any]] = []

    def spoil(line: dict[str, Any]) -> None:
        lines.append(line)
        if line["step"] == 7:
            with torch.no_grad():
                model.base_model.model.classifier.modules_to_save["default"].weight.fill_(math.nan)

    settings = FEW.model_copy(update={"checkpoint_every": 2, "epochs": 3})
    with pytest.raises(RunError) as error:
        fit(model, tokenizer, tmp_path, settings, log=spoil)
    assert str(error.value) == (
        "Training has diverged: the loss of step 8 is not a number. Lower training.learning_rate (it is 0.02) and "
        "train anew. The best weights so far, of epoch 1, are kept in "
        f"{tmp_path / 'checkpoint-6' / 'state.safetensors'}: those under best/ fit the PEFT model's load_state_dict. "
        "--out trains into another folder; --overwrite would remove them."
    )
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6, 7]
    assert checkpoints.last(tmp_path) == tmp_path / "checkpoint-6"
    for state in ("weights", "best"):
        tensors = checkpoints.load(tmp_path / "checkpoint-6")[0][state].tensors
        assert tensors.keys() == adapter.trained_weights(model).keys()
        assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())


@pytest.mark.filterwarnings("ignore:training.learning_rate is 1e.38")
def test_answers_that_are_not_numbers_end_the_training_with_one_sentence(
    tiny_recipe: Callable[..., Any], tmp_path: Path, cli: Callable[..., Said]
) -> None:
    file = tmp_path / "tiny.toml"
    only_step = {"epochs": 1, "batch_size": 120, "learning_rate": 1e38, "warmup": 0.0}  # its own loss is a number
    file.write_text(recipe.to_toml(tiny_recipe(training=only_step)), encoding="utf-8")
    said = cli("train", file)
    assert (said.code, said.err.splitlines()[-1]) == (
        2,
        "Error: Training has diverged: its answers are not numbers. Lower training.learning_rate (it is 1e+38) and "
        "train anew.",
    )
    assert not runs.open_run("runs/tiny").finished


@pytest.mark.filterwarnings("ignore:kept has no lorafit.json")
def test_a_later_epoch_that_diverges_names_the_best_weights_and_they_can_be_used(
    tiny_recipe: Callable[..., Any], tmp_path: Path, cli: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Guard.look_at_step

    def look_and_spoil(guard: Guard, model: Any, step: int, *more: Any) -> None:
        look(guard, model, step, *more)
        if step == 30:  # the last of the second epoch
            torch.nn.init.constant_(model.base_model.model.classifier.modules_to_save["default"].weight, math.nan)

    monkeypatch.setattr(Guard, "look_at_step", look_and_spoil)
    file = tmp_path / "tiny.toml"
    file.write_text(recipe.to_toml(tiny_recipe()), encoding="utf-8")
    said = cli("train", file, "--out", "runs/demo")
    kept = Path("runs/demo/checkpoints/checkpoint-15/state.safetensors")
    assert (said.code, said.err.splitlines()[-1]) == (
        2,
        "Error: Training has diverged: its answers are not numbers. Lower training.learning_rate (it is 0.02) and "
        f"train anew. The best weights so far, of epoch 1, are kept in {kept}: those under best/ fit the PEFT model's "
        "load_state_dict. --out trains into another folder; --overwrite would remove them.",
    )
    page = (Path(__file__).parents[1] / "docs" / "design" / "checkpoints.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"  ```python\n(.*?)```", page, flags=re.DOTALL)
    exec(textwrap.dedent(snippet).replace("checkpoint-107", "checkpoint-15"))
    run = runs.open_run("runs/demo")
    found = pipeline.data_of(run)
    logits = Classifier.load("kept", precision="fp32").logits(found.validation.tokens)
    losses = tasks.losses(logits, found.validation.label_ids)
    before, after = (line["validation"]["loss"] for line in run.validations)
    assert losses.mean() == pytest.approx(after, rel=1e-4)
    assert after < 0.9 * before


def test_a_checkpoint_from_before_the_first_epochs_end_holds_no_best_weights(tmp_path: Path) -> None:
    best = State({}, {"scores": {}, "epoch": 0})
    checkpoints.save(tmp_path / "checkpoint-2", {"best": best}, TrainerState(global_step=2))
    assert str(guards.diverged("x", 1e-3, tmp_path)).endswith("and train anew.")
