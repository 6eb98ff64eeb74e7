"""An encoder over real tokens gives what it gave over padded ones, in every family, forward and backward."""

import copy
import functools
import os
import pickle
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from torch import nn

from lorafit import padfree, runtime
from lorafit.errors import EncoderError, LorafitWarning
from lorafit.padfree import kernels
from lorafit.padfree.attention import attend
from lorafit.padfree.layout import Layout, rounded
from lorafit.padfree.modules import FASTER, Dropout
from tests.small_encoders import CONFIGS, LENGTHS, adapted, batch, gap, step

SERVED = [family for family in CONFIGS if family in padfree.FAMILIES]


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("family", SERVED)
def test_logits_and_gradients_are_those_of_the_ordinary_path(family: str, dtype: torch.dtype, limit: float) -> None:
    model = adapted(family, dtype)
    ordinary = step(model)
    assert len(ordinary) > 4
    assert padfree.enable(model)
    assert gap(ordinary, step(model)) < limit
    assert padfree.enable(model, first_token_only=True)
    assert gap(ordinary, step(model)) < limit


@pytest.mark.parametrize("family", SERVED)
def test_the_projections_see_as_many_rows_as_there_are_real_tokens(family: str) -> None:
    model = adapted(family)
    padfree.enable(model)
    rows: list[int] = []
    seen = [
        module
        for name, module in model.base_model.model.base_model.named_modules()
        if isinstance(module, nn.Linear) and "lora" not in name and "pooler" not in name
    ]
    for module in seen:
        module.register_forward_hook(lambda _module, args, _out: rows.append(args[0].shape[:-1].numel()))
    step(model)
    assert len(rows) >= 4 * 3
    assert set(rows) == {sum(LENGTHS)}


@pytest.mark.parametrize("family", SERVED)
@pytest.mark.parametrize("first_token_only", [False, True])
def test_without_gradients_rows_are_filled_up_to_few_sizes_and_answers_stay(
    family: str, first_token_only: bool
) -> None:
    model = adapted(family).eval()
    inputs = {name: values for name, values in batch().items() if name != "labels"}
    rows: list[int] = []
    layers = [module for name, module in model.named_modules() if name.endswith(("intermediate", "lin1", "Wi", "ffn"))]
    for texts in range(1, len(LENGTHS) + 1):
        some = {name: values[:texts] for name, values in inputs.items()}
        with torch.no_grad():
            padfree.disable(model)
            ordinary = model(**some, output_hidden_states=True)
            padfree.enable(model, first_token_only=first_token_only)
            handles = [
                layer.register_forward_hook(lambda _m, args, _o: rows.append(args[0].shape[1])) for layer in layers
            ]
            assert float((model(**some).logits - ordinary.logits).abs().max()) < 1e-5
            for handle in handles:
                handle.remove()
            states = model(**some, output_hidden_states=True).hidden_states
        real = some["attention_mask"].bool()
        for mine, theirs in zip(states, ordinary.hidden_states, strict=True):
            assert float((mine - theirs)[real].abs().max()) < 1e-4
    assert rows
    assert set(rows) <= {rounded(count) for count in range(1, sum(LENGTHS) + 1)} | {1}
    assert sum(LENGTHS) not in rows  # 237


@pytest.mark.parametrize("family", SERVED)
def test_hooks_of_others_on_the_encoder_see_padded_states_whenever_they_came(family: str) -> None:
    model = adapted(family)
    encoder = model.base_model.model.base_model
    shapes: list[torch.Size] = []

    def note(_module: nn.Module, _args: object, output: Any) -> None:
        shapes.append(output.last_hidden_state.shape)

    encoder.register_forward_hook(note)
    padfree.enable(model)
    encoder.register_forward_hook(note)
    model(**batch())
    assert shapes == [(len(LENGTHS), max(LENGTHS), 64)] * 2


def test_only_first_tokens_go_behind_the_last_attention_when_that_is_asked_for() -> None:
    model = adapted()
    rows: list[int] = []
    for layer in model.base_model.model.bert.encoder.layer:
        layer.intermediate.register_forward_hook(lambda _module, args, _out: rows.append(args[0].shape[1]))
    padfree.enable(model, first_token_only=True)
    step(model)
    assert rows == [sum(LENGTHS), sum(LENGTHS), len(LENGTHS)]


@pytest.mark.parametrize("family", SERVED)
def test_padding_of_any_length_changes_nothing(family: str) -> None:
    model = adapted(family)
    padfree.enable(model)
    assert gap(step(model), step(model, batch(extra=13))) == 0


@pytest.mark.parametrize("family", SERVED)
def test_bf16_is_within_its_own_error(family: str) -> None:
    exact = step(adapted(family))
    model = adapted(family, torch.bfloat16)
    ordinary = gap(exact, step(model))
    padfree.enable(model)
    assert gap(exact, step(model)) < max(2 * ordinary, 0.05)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_switching_off_puts_everything_back(family: str) -> None:
    model = adapted(family)
    before = step(model)
    look = lambda: [  # noqa: E731
        (name, type(m), len(m._forward_hooks), len(m._forward_pre_hooks), [p.dtype for p in m.parameters()])
        for name, m in model.named_modules()
    ]
    at_first, attention = look(), model.config._attn_implementation
    padfree.enable(model)
    assert padfree.is_enabled(model)
    assert look() != at_first
    padfree.enable(model)  # twice is once
    padfree.disable(model)
    assert not padfree.is_enabled(model)
    assert look() == at_first
    assert model.config._attn_implementation == attention
    assert gap(before, step(model)) == 0


@pytest.mark.parametrize("family", ["mpnet", "deberta-v2"])
def test_a_family_that_cannot_be_served_keeps_its_ordinary_path_and_says_so(family: str) -> None:
    model = adapted(family)
    before = step(model)
    with pytest.warns(LorafitWarning, match=f"padfree can't serve {family}"):
        assert not padfree.enable(model)
    assert gap(before, step(model)) == 0
    padfree.disable(model)


@pytest.mark.parametrize("family", SERVED)
def test_gradient_checkpointing_and_accumulation_change_nothing(family: str) -> None:
    model = adapted(family)
    before = step(model)
    padfree.enable(model, first_token_only=True)
    if family != "albert":  # which transformers does not checkpoint
        model.gradient_checkpointing_enable({"use_reentrant": False})
    assert gap(before, step(model)) < 1e-4
    model.zero_grad()
    whole = batch()
    for rows in (slice(0, 3), slice(3, 7)):
        part = {key: value[rows] for key, value in whole.items()}
        (model(**part).loss * len(part["labels"]) / len(LENGTHS)).backward()
    accumulated = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    del before["logits"]
    assert gap(before, accumulated) < 1e-4


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_calls_that_need_padding_take_the_ordinary_path(family: str) -> None:
    model = adapted(family).eval()
    inputs = batch()
    left = {"input_ids": inputs["input_ids"].flip(1), "attention_mask": inputs["attention_mask"].flip(1)}
    holes = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"].clone()}
    holes["attention_mask"][:, 5:10] = 0
    embedded = {
        "inputs_embeds": model.get_input_embeddings()(inputs["input_ids"]),
        "attention_mask": inputs["attention_mask"],
    }
    for given in (left, holes, embedded):
        padfree.disable(model)
        ordinary = model(**given).logits
        padfree.enable(model, first_token_only=True)
        torch.testing.assert_close(model(**given).logits, ordinary)


def test_an_attention_that_somebody_sets_later_is_theirs() -> None:
    model = adapted().eval()
    ordinary = model(**batch()).logits
    padfree.enable(model, first_token_only=True)
    model.base_model.model.set_attn_implementation("eager")
    torch.testing.assert_close(model(**batch()).logits, ordinary, atol=1e-5, rtol=1e-5)


def test_models_that_share_a_configuration_do_not_meet() -> None:
    config = CONFIGS["bert"]()
    one, other = (transformers.BertModel(config).eval() for _ in range(2))
    inputs = {key: value for key, value in batch().items() if key != "labels"}
    expected = one(**inputs).pooler_output, other(**inputs).pooler_output
    padfree.enable(one)
    padfree.enable(other)
    padfree.disable(one)
    torch.testing.assert_close((one(**inputs).pooler_output, other(**inputs).pooler_output), expected)
    padfree.disable(other)
    assert config._attn_implementation == "sdpa"


class _FromElsewhere(transformers.BertModel):
    """A model class of somebody's own, in a notebook, say: transformers does not change its attention."""

    _can_set_attn_implementation_cached_value = False


@pytest.mark.parametrize("made", [lambda: _FromElsewhere(CONFIGS["bert"]()), lambda: nn.Linear(2, 2)])
def test_what_transformers_cannot_change_is_left_alone_and_named(made: Any) -> None:
    model = made()
    with pytest.warns(LorafitWarning, match="padfree can't serve (bert|Linear)"):
        assert not padfree.enable(model)
    assert not padfree.is_enabled(model)


def test_attention_weights_are_refused_where_they_were_to_be_had() -> None:
    model = adapted().eval()
    model.base_model.model.set_attn_implementation("eager")
    assert len(model(**batch(), output_attentions=True).attentions) == 3
    padfree.enable(model)
    with pytest.raises(EncoderError, match="Call padfree.disable"):
        model(**batch(), output_attentions=True)


def test_one_batch_may_mix_adapters_as_peft_has_it() -> None:
    model = adapted().eval()
    model.add_adapter("second", LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "key"]))
    for name, weight in model.named_parameters():
        if "lora_B.second" in name:
            nn.init.normal_(weight, std=0.1)
    encoder = model.base_model.model.bert
    inputs = {key: value for key, value in batch().items() if key != "labels"}
    names = ["default", "second", "__base__", "second", "default", "default", "second"]

    def answers() -> torch.Tensor:
        with model._enable_peft_forward_hooks(adapter_names=names):
            states: torch.Tensor = encoder(**inputs).last_hidden_state
        return states * inputs["attention_mask"][..., None]

    ordinary = answers()
    padfree.enable(model)
    torch.testing.assert_close(answers(), ordinary, atol=1e-5, rtol=1e-5)


def test_adapters_of_another_kind_change_the_frozen_answers_in_place() -> None:
    torch.manual_seed(0)
    model = get_peft_model(
        transformers.AutoModelForSequenceClassification.from_config(CONFIGS["bert"]()),
        AdaLoraConfig(task_type="SEQ_CLS", init_r=4, total_step=10, target_modules=["query", "value"]),
    )
    ordinary = step(model)
    padfree.enable(model)
    assert gap(ordinary, step(model)) < 1e-4


def test_a_gradient_of_gradients_is_refused_not_wrong() -> None:
    inputs, layout = flat(torch.float32, 32)
    out = attend(*inputs, layout, scale=0.2)
    (grad,) = torch.autograd.grad(out.square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.square().sum().backward()


def test_hidden_states_as_a_plain_tuple() -> None:
    model = adapted().eval().base_model.model.bert
    inputs = {key: value for key, value in batch().items() if key != "labels"}
    ordinary = model(**inputs, output_hidden_states=True).hidden_states
    mask = inputs["attention_mask"][..., None]
    padfree.enable(model)
    *_, states = model(**inputs, output_hidden_states=True, return_dict=False)
    for one, other in zip(ordinary, states, strict=True):
        torch.testing.assert_close(one * mask, other * mask, atol=1e-5, rtol=1e-4)


def test_hidden_states_of_every_layer_keep_their_shape() -> None:
    model = adapted().eval()
    ordinary = model(**batch(), output_hidden_states=True).hidden_states
    padfree.enable(model, first_token_only=True)
    ours = model(**batch(), output_hidden_states=True).hidden_states
    mask = batch()["attention_mask"][..., None]
    assert len(ours) == len(ordinary) == 4
    for one, other in zip(ordinary, ours, strict=True):
        torch.testing.assert_close(one * mask, other * mask, atol=1e-5, rtol=1e-4)


def test_a_batch_without_a_mask_and_one_given_by_place() -> None:
    model = adapted().eval().base_model.model
    ids = batch()["input_ids"][2:3]
    ordinary = model(ids).logits, model(ids, torch.ones_like(ids)).logits
    padfree.enable(model)
    torch.testing.assert_close((model(ids).logits, model(ids, torch.ones_like(ids)).logits), ordinary)


def test_adapters_switched_off_merged_and_several_give_peft_s_answers() -> None:
    model = adapted().eval()
    model.add_adapter("second", LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "key"]))
    inputs = batch()

    def answers() -> list[torch.Tensor]:
        logits = []
        for name in ("default", "second"):
            model.set_adapter(name)
            logits.append(model(**inputs).logits)
        with model.disable_adapter():
            logits.append(model(**inputs).logits)
        model.base_model.set_adapter(["default"])
        model.merge_adapter()
        logits.append(model(**inputs).logits)
        model.unmerge_adapter()
        return logits

    ordinary = answers()
    padfree.enable(model)
    torch.testing.assert_close(answers(), ordinary, atol=1e-4, rtol=1e-4)


def test_adapter_dropout_draws_from_torch_s_seed_and_keeps_the_mean() -> None:
    model = adapted()
    for module in model.modules():
        if hasattr(module, "lora_dropout"):
            module.lora_dropout["default"] = nn.Dropout(0.5)
    padfree.enable(model)
    torch.manual_seed(3)
    first = step(model)
    torch.manual_seed(3)
    assert gap(first, step(model)) == 0
    assert gap(first, step(model)) > 0


def test_two_models_in_one_process_do_not_meet() -> None:
    one, other = adapted("bert"), adapted("roberta")
    alone = step(one), step(other)
    padfree.enable(one)
    assert gap(alone[1], step(other)) == 0
    padfree.enable(other)
    padfree.disable(one)
    assert gap(alone[0], step(one)) == 0
    assert gap(alone[1], step(other)) < 1e-4


def test_threads_share_a_model() -> None:
    model = adapted().eval()
    padfree.enable(model, first_token_only=True)
    batches = [{key: value[rows : rows + 2] for key, value in batch().items()} for rows in range(6)]
    with torch.inference_mode():
        alone = [model(**each).logits for each in batches]
    answers: list[list[torch.Tensor]] = [[] for _ in batches]

    def work(number: int) -> None:
        with torch.inference_mode():
            answers[number] = [model(**batches[number]).logits for _ in range(20)]

    workers = [threading.Thread(target=work, args=(number,)) for number in range(len(batches))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for expected, several in zip(alone, answers, strict=True):
        assert len(several) == 20
        for answer in several:
            torch.testing.assert_close(answer, expected)


def test_a_model_survives_pickling_copying_and_a_worker_process(tmp_path: Path) -> None:
    model = adapted().eval()
    padfree.enable(model, first_token_only=True)
    inputs = batch()
    expected = model(**inputs).logits
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert torch.equal(twin(**inputs).logits, expected)
        padfree.disable(twin)
        assert not any(type(module) in FASTER.values() for module in twin.modules())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in twin.modules())
        torch.testing.assert_close(twin(**inputs).logits, expected, atol=1e-5, rtol=1e-5)
    assert padfree.is_enabled(model)
    (tmp_path / "model.pickle").write_bytes(pickle.dumps((model, inputs, expected)))
    program = (
        "import pickle, sys, torch; from pathlib import Path\n"
        "model, inputs, expected = pickle.loads(Path(sys.argv[1]).read_bytes())\n"
        "torch.testing.assert_close(model(**inputs).logits, expected)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "model.pickle")], check=True)


def test_saving_and_loading_know_nothing_of_it(tmp_path: Path) -> None:
    model = adapted().eval().base_model.model
    ordinary = model.state_dict().keys()
    padfree.enable(model)
    assert model.state_dict().keys() == ordinary
    merged = adapted().eval().merge_and_unload()
    expected = merged(**batch()).logits
    padfree.enable(merged)
    merged.save_pretrained(tmp_path)
    assert "padfree" not in (tmp_path / "config.json").read_text()
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(**batch()).logits, expected)


def flat(
    dtype: torch.dtype, size: int, heads: int = 2, lengths: list[int] = LENGTHS
) -> tuple[list[torch.Tensor], Layout]:
    chance = torch.Generator().manual_seed(2)
    mask = torch.zeros(len(lengths), max(lengths))
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    shape = (sum(lengths), heads, size)
    inputs = [torch.randn(shape, generator=chance).to(dtype).requires_grad_() for _ in range(3)]
    return inputs, Layout.of(mask)


def explicit(inputs: list[torch.Tensor], layout: Layout, window: int | None) -> torch.Tensor:
    """Attention in fp64, written out."""
    answers = []
    for q, k, v in zip(*(x.double().transpose(0, 1).split(layout.lengths(), dim=1) for x in inputs), strict=True):
        scores = q @ k.transpose(1, 2) * 0.2
        if window is not None:
            places = torch.arange(q.shape[1])
            scores = scores.masked_fill((places[:, None] - places).abs() > window, float("-inf"))
        answers.append(scores.softmax(-1) @ v)
    return torch.cat(answers, dim=1).transpose(0, 1)


EDGES = [1, 2, 3, 15, 16, 17, 31, 32, 33, 47, 49, 95, 96, 97, 200]  # around what is worked on at once


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 2e-6), (torch.bfloat16, 1.5e-2)])
@pytest.mark.parametrize("window", [None, 5, 64])
@pytest.mark.parametrize("size", [16, 32, 48, 64, 128])
def test_the_kernels_compute_attention(dtype: torch.dtype, limit: float, window: int | None, size: int) -> None:
    inputs, layout = flat(dtype, size, lengths=EDGES)
    assert kernels.usable(*inputs)
    out = attend(*inputs, layout, scale=0.2, window=window)
    with torch.inference_mode():
        assert torch.equal(attend(*inputs, layout, scale=0.2, window=window), out)
    grad_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    expected = explicit(inputs, layout, window)
    found = [out, *torch.autograd.grad(out, inputs, grad_out)]
    wanted = [expected, *torch.autograd.grad(expected, inputs, grad_out.double())]
    for one, other in zip(found, wanted, strict=True):
        assert float((one - other).abs().max() / other.abs().max()) < limit


@pytest.mark.parametrize("gone", ["amx", "avx512"])
def test_the_kernels_compute_attention_on_processors_that_can_do_less(
    gone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {"amx": ["-mno-amx-tile", "-mno-amx-bf16"], "avx512": ["-mno-amx-tile", "-mno-amx-bf16", "-mno-avx512f"]}
    wanted = flags[gone] if "amx" in runtime.instruction_sets() else flags[gone][2:]
    monkeypatch.setattr(kernels, "_FLAGS", (*kernels._FLAGS, *(wanted if platform.machine() == "x86_64" else [])))
    compiler = next(filter(None, map(shutil.which, ["c++", "g++", "clang++"])))
    kernels._build(compiler, tmp_path / "less.so")
    less = kernels.Kernels(tmp_path / "less.so")
    monkeypatch.setattr(kernels, "available", lambda: less)
    inputs, layout = flat(torch.bfloat16, 32, lengths=EDGES)
    out = attend(*inputs, layout, scale=0.2)
    expected = explicit(inputs, layout, None)
    assert float((out - expected).abs().max() / expected.abs().max()) < 1.5e-2
    grad_out = torch.ones_like(out)
    found, wanted_grads = (torch.autograd.grad(y, inputs, grad_out.to(y.dtype)) for y in (out, expected))
    for one, other in zip(found, wanted_grads, strict=True):
        assert float((one - other).abs().max() / other.abs().max()) < 1.5e-2


def test_attention_leaves_other_products_of_the_thread_alone() -> None:
    inputs, layout = flat(torch.bfloat16, 32, lengths=EDGES)
    x, weight = torch.randn(200, 384).bfloat16(), torch.randn(512, 384).bfloat16()
    before = torch.nn.functional.linear(x, weight)
    attend(*inputs, layout, scale=0.2)
    assert torch.equal(torch.nn.functional.linear(x, weight), before)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_first_queries_only_have_the_gradients_of_first_queries(dtype: torch.dtype, limit: float) -> None:
    inputs, layout = flat(dtype, 32)
    first = layout.starts[:-1]
    asked = attend(*inputs, layout, scale=0.2, queries=1)[first]
    expected = explicit(inputs, layout, None)[first]
    weight = torch.randn(asked.shape, generator=torch.Generator().manual_seed(3))
    found = [asked, *torch.autograd.grad((asked * weight).sum(), inputs)]
    wanted = [expected, *torch.autograd.grad((expected * weight).sum(), inputs)]
    for one, other in zip(found, wanted, strict=True):
        assert float((one - other).abs().max() / other.abs().max()) < limit


def test_a_score_of_minus_infinity_is_nothing() -> None:
    inputs, layout = flat(torch.bfloat16, 32, lengths=[20])
    with torch.inference_mode():
        query, key, value = (x.clone() for x in inputs)
        query[:], key[:], key[3] = 1e20, 1e-20, -3e38  # the fourth score is below what fp32 can hold
        out = attend(query, key, value, layout, scale=0.2)
        others = [n for n in range(20) if n != 3]
        torch.testing.assert_close(out[0].float(), value[others].float().mean(0), atol=2e-2, rtol=0)


def test_attention_dropout_has_the_right_share_and_the_gradients_of_its_own_mask() -> None:
    share, lengths = 0.3, [16] * 40
    inputs, layout = flat(torch.float32, 16, lengths=lengths)
    query, key, value = inputs
    eye = torch.eye(16).repeat(40, 1)[:, None].expand(-1, 2, -1).contiguous()  # the answer is then the weights

    def call(value: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(5)
        return attend(query, key, value, layout, scale=0.2, dropout=share)

    dropped = call(eye).reshape(40, 16, 2, 16).transpose(1, 2)  # texts, heads, queries, keys
    kept = dropped != 0
    assert 0.28 < 1 - kept.double().mean() < 0.32

    q, k, v = (x.reshape(40, 16, 2, 16).transpose(1, 2) for x in inputs)
    weights = (q @ k.transpose(2, 3) * 0.2).softmax(-1) * kept / (1 - share)
    torch.testing.assert_close(dropped, weights, atol=1e-5, rtol=1e-4)
    expected = (weights @ v).transpose(1, 2).reshape(640, 2, 16)
    out = call(value)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
    found = torch.autograd.grad((out * weight).sum(), inputs)
    wanted = torch.autograd.grad((expected * weight).sum(), inputs)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_its_share_and_passes_the_gradient_of_the_rest(dtype: torch.dtype) -> None:
    layer = Dropout(0.1)
    x = torch.ones(999, 77, dtype=dtype, requires_grad=True)
    torch.manual_seed(0)
    out = layer(x)
    assert 0.095 < float((out == 0).double().mean()) < 0.105
    assert set(out.unique().tolist()) == {0.0, float(torch.tensor(1 / 0.9, dtype=dtype))}
    assert torch.equal(torch.autograd.grad(out.sum(), x)[0], out.detach())
    torch.manual_seed(0)
    assert torch.equal(layer(x), out)
    assert not torch.equal(layer(x), out)
    assert layer.eval()(x) is x


def test_an_encoder_s_own_dropout_works_and_is_off_in_evaluation() -> None:
    model = adapted(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    padfree.enable(model)
    torch.manual_seed(0)
    first = step(model)
    assert gap(first, step(model)) > 0
    torch.manual_seed(0)
    assert gap(first, step(model)) == 0
    ours = model.eval()(**batch()).logits
    padfree.disable(model)
    torch.testing.assert_close(ours, model(**batch()).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_without_a_compiler_torch_s_operators_answer_the_same(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted(family)
    before = step(model)
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(kernels, "_load", kernels._load.__wrapped__)
    assert padfree.status() == "torch's own operators, because there is no no-such-compiler here"
    padfree.enable(model)
    assert gap(before, step(model)) < 1e-4


def test_a_compiler_that_fails_is_named_with_its_first_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken-c++"
    broken.write_text("#!/bin/sh\n[ \"$1\" = --version ] && exit 0\necho 'no such flag' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("LORAFIT_CACHE", str(tmp_path / "cache"))
    kept, reason = kernels._load.__wrapped__()
    assert kept is None
    assert reason == f"{broken} did not build them (no such flag)"


def test_the_kernels_are_built_once_and_also_where_nothing_can_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORAFIT_CACHE", str(tmp_path / "cache"))
    compiled, _ = kernels._load.__wrapped__()
    assert compiled is not None
    (library,) = (tmp_path / "cache").iterdir()
    built = library.stat().st_mtime_ns
    kernels._load.__wrapped__()
    assert library.stat().st_mtime_ns == built
    monkeypatch.setattr(runtime, "instruction_sets", lambda: "of another machine with the same home")
    kernels._load.__wrapped__()
    assert len(list((tmp_path / "cache").iterdir())) == 2
    (tmp_path / "file").write_text("")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("LORAFIT_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    compiled, _ = kernels._load.__wrapped__()
    assert compiled is not None
    assert list((tmp_path / "temporary").iterdir()) == []


def test_threads_that_come_at_once_wait_for_one_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builds: list[Path] = []
    build = kernels._build

    def count(compiler: str, library: Path) -> None:
        builds.append(library)
        build(compiler, library)

    monkeypatch.setenv("LORAFIT_CACHE", str(tmp_path))
    monkeypatch.setattr(kernels, "_load", functools.cache(kernels._load.__wrapped__))
    monkeypatch.setattr(kernels, "_build", count)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: kernels.available(), range(4)))
    assert None not in found
    assert len(builds) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_answers_are_those_of_the_ordinary_path() -> None:
    model = adapted().cuda()
    inputs = {key: value.cuda() for key, value in batch().items()}
    ordinary = step(model, inputs)
    padfree.enable(model, first_token_only=True)
    assert gap(ordinary, step(model, inputs)) < 1e-3


def test_memory_stays_flat_over_batches_of_every_size() -> None:
    program = (
        "import psutil, torch, transformers, sys\n"
        "from lorafit import padfree, runtime\n"
        "runtime.choose('bf16')\n"
        "config = transformers.BertConfig(vocab_size=99, hidden_size=256, num_hidden_layers=2, num_attention_heads=4,"
        " intermediate_size=1024)\n"
        "model = transformers.BertModel(config).eval().requires_grad_(False).bfloat16()\n"
        "padfree.enable(model)\n"
        "memory = []\n"
        "with torch.inference_mode():\n"
        "    for n in range(240):\n"
        "        ids = torch.ones(4, 100 + n, dtype=torch.long)\n"
        "        model(ids)\n"
        "        memory.append(psutil.Process().memory_info().rss)\n"
        "print((memory[-1] - memory[60]) / 1e6)\n"
    )
    environment = {key: value for key, value in os.environ.items() if "CACHE_CAPACITY" not in key}
    said = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert float(said.stdout) < 100  # megabytes; without the limit on prepared products it is several hundred
