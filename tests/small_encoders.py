"""Small random encoders of every family, in memory with an adapter or as a checkpoint; a batch, and how far two answers
are apart.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from peft import LoraConfig, get_peft_model
from tokenizers.processors import TemplateProcessing
from torch import nn

from tests.conftest import BAD, FILLER, GOOD

LENGTHS = [1, 2, 80, 17, 33, 64, 40]
SHAPE = {
    "vocab_size": 200,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 96,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.3,  # large enough for tokens to matter to each other
    "pad_token_id": 1,
}
MODERN = {key: value for key, value in SHAPE.items() if "dropout" not in key and key not in ("initializer_range",)} | {
    "local_attention": 16,
    "cls_token_id": 2,
    "sep_token_id": 3,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
DISTIL = {
    "vocab_size": 200, "dim": 64, "n_layers": 3, "n_heads": 2, "hidden_dim": 128, "max_position_embeddings": 96,
    "dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0, "initializer_range": 0.3, "pad_token_id": 1,
}  # fmt: skip
CONFIGS: dict[str, Callable[[], Any]] = {
    "bert": lambda: transformers.BertConfig(**SHAPE),
    "roberta": lambda: transformers.RobertaConfig(**SHAPE),
    "xlm-roberta": lambda: transformers.XLMRobertaConfig(**SHAPE),
    "camembert": lambda: transformers.CamembertConfig(**SHAPE),
    "distilbert": lambda: transformers.DistilBertConfig(**DISTIL),
    "electra": lambda: transformers.ElectraConfig(**SHAPE, embedding_size=32),
    "albert": lambda: transformers.AlbertConfig(**SHAPE, embedding_size=32, classifier_dropout_prob=0.0),
    "modernbert": lambda: transformers.ModernBertConfig(**MODERN),
    "mpnet": lambda: transformers.MPNetConfig(**SHAPE),
    "deberta-v2": lambda: transformers.DebertaV2Config(**SHAPE),
}


def adapted(family: str = "bert", dtype: torch.dtype = torch.float32, **changed: Any) -> Any:
    """Return a small classifier of a family with a LoRA adapter that is not zero."""
    config = CONFIGS[family]()
    for key, value in changed.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    targets = {
        "distilbert": ["q_lin", "v_lin"],
        "modernbert": ["Wqkv", "Wo"],
        "deberta-v2": ["query_proj"],
        "mpnet": ["q"],
    }
    model = get_peft_model(
        model, LoraConfig(task_type="SEQ_CLS", r=4, target_modules=targets.get(family, ["query", "value"]))
    )
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.1)
    return model.to(dtype).train()


def batch(extra: int = 0) -> dict[str, torch.Tensor]:
    """Return ragged texts, padded to the longest and `extra` tokens more."""
    chance = torch.Generator().manual_seed(1)
    width = max(LENGTHS) + extra
    ids = torch.full((len(LENGTHS), width), 1)
    mask = torch.zeros(len(LENGTHS), width, dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        ids[row, :length] = torch.randint(5, 200, (length,), generator=chance)
        mask[row, :length] = 1
    labels = torch.tensor([0, 1, 0, 1, 1, 0, 1])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def step(model: Any, inputs: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """Return logits, and the gradient of everything that trains."""
    model.zero_grad()
    out = model(**(inputs or batch()))
    out.loss.backward()
    grads = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return {"logits": out.logits.detach(), **grads}


def gap(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Return the largest difference, as a share of each tensor's largest value."""
    assert one.keys() == other.keys()
    gaps = [((one[key] - other[key]).abs().max() / one[key].abs().max()).double() for key in one]
    return float(torch.stack(gaps).max())  # which, unlike Python's max, does not lose a NaN


BERTS_MARKS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
ROBERTAS_MARKS = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}  # padding has id 1
COUNT_FROM_PADDING = ("roberta", "xlm-roberta", "camembert", "mpnet", "roberta-prelayernorm")
# What the published checkpoints have and transformers' defaults do not.
AS_PUBLISHED: dict[str, dict[str, Any]] = {
    "deberta-v2": {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "share_att_key": True,
        "position_biased_input": False,
        "norm_rel_ebd": "layer_norm",
        "position_buckets": 16,
    },
    "modernbert": {"classifier_pooling": "mean"},
}


def write_encoder(folder: Path, config: Any, kind: Any = transformers.AutoModel) -> Path:
    """Write a pretrained encoder as its family has it, with random weights and a tokenizer that knows our words.

    The tokenizer does not say how long a text may be.
    """
    family = config.model_type
    marks = ROBERTAS_MARKS if family in COUNT_FROM_PADDING else BERTS_MARKS
    characters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = [*marks.values(), *GOOD, *BAD, *FILLER, *characters, *(f"##{character}" for character in characters)]
    ids = {word: place for place, word in enumerate(dict.fromkeys(words))}
    wordpiece = tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, unk_token=marks["unk"]))
    wordpiece.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    wordpiece.post_processor = TemplateProcessing(
        single=f"{marks['cls']} $A {marks['sep']}",
        special_tokens=[(marks[end], ids[marks[end]]) for end in ("cls", "sep")],
    )
    names = {f"{name}_token": mark for name, mark in marks.items()}
    transformers.PreTrainedTokenizerFast(tokenizer_object=wordpiece, **names).save_pretrained(folder)
    for key, value in AS_PUBLISHED.get(family, {}).items():
        setattr(config, key, value)
    config.vocab_size, config.pad_token_id = len(ids), ids[marks["pad"]]
    torch.manual_seed(0)
    kind.from_config(config).save_pretrained(folder)
    return folder
