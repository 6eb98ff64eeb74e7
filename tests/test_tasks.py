"""What a task makes of logits, against scikit-learn, torch and worked examples."""

import numpy as np
import pytest
import torch

from lorafit import tasks


def test_the_form_of_label_ids_says_the_task() -> None:
    assert tasks.task_of(np.array([0, 1])) == "single_label"
    assert tasks.task_of(np.array([[0, 1]])) == "multi_label"


def test_probabilities_sum_to_one_where_a_text_has_one_label_and_stand_alone_where_it_has_many() -> None:
    logits = np.array([[0.0, 0.0, np.log(2.0)]], dtype=np.float32)
    np.testing.assert_allclose(tasks.probabilities(logits, "single_label"), [[0.25, 0.25, 0.5]], atol=1e-7)
    np.testing.assert_allclose(tasks.probabilities(logits, "multi_label"), [[0.5, 0.5, 2 / 3]], atol=1e-7)


def test_a_weighted_loss_is_that_of_rare_examples_repeated() -> None:
    logits = torch.tensor([[1.0, -1.0], [0.5, 0.0], [0.0, 2.0]])
    label_ids = np.array([0, 0, 1])
    weights = torch.from_numpy(tasks.class_weights(label_ids, 2))
    repeated = tasks.loss(logits[[0, 1, 2, 2]], torch.tensor([0, 0, 1, 1]))
    assert tasks.loss(logits, torch.from_numpy(label_ids), weights).item() == pytest.approx(repeated.item())


def test_class_weights_of_many_labels_balance_having_against_lacking() -> None:
    label_ids = np.array([[1, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, 0]])
    assert tasks.class_weights(label_ids, 3).tolist() == pytest.approx([1 / 3, 3.0, 1.0])
    assert tasks.class_weights(np.array([0, 0, 2]), 3)[1] == 1.0  # nobody has it
    assert tasks.class_weights(np.array([[1, 0], [1, 1]]), 2).tolist() == [1.0, 1.0]  # with 0 its loss would vanish


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "label_ids",
    [np.array([0] * 7 + [1] * 2 + [2]), np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1], [1, 0, 0]])],
    ids=["one", "several"],
)
def test_no_answer_that_is_the_same_for_every_text_has_a_lower_loss_than_a_guess(
    label_ids: np.ndarray, weighted: bool
) -> None:
    weights = tasks.class_weights(label_ids, 3) if weighted else np.ones(3, dtype=np.float32)
    logits = torch.from_numpy(tasks.guess(label_ids, 3, weights)).double().requires_grad_()
    same = logits.expand(len(label_ids), -1)
    tasks.loss(same, torch.from_numpy(label_ids), torch.from_numpy(weights).double()).backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-7  # the loss is convex


def test_a_guess_is_finite_where_no_text_or_every_text_has_a_label() -> None:
    for label_ids in (np.array([0, 0, 2]), np.array([[1, 0, 0], [1, 0, 1]])):
        guess = torch.from_numpy(tasks.guess(label_ids, 3)).expand(len(label_ids), -1)
        assert np.isfinite(guess.numpy()).all()
        assert tasks.loss(guess, torch.from_numpy(label_ids)) < 1.0


def test_labels_are_given_by_threshold_where_there_are_thresholds() -> None:
    both = np.array([[0.7, 0.3], [0.9, 0.1]])
    assert tasks.decide(both, "single_label").tolist() == [0, 0]
    assert tasks.decide(both, "single_label", [0.75, 0.25]).tolist() == [1, 0]
    assert tasks.decide(both, "multi_label").tolist() == [[1, 0], [1, 0]]
    assert tasks.decide(both, "multi_label", [0.8, 0.1]).tolist() == [[0, 1], [1, 1]]
