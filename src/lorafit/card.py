"""The model card of a bundle: what it is, what it scored on how many texts, and how to use it in plain PEFT."""

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from lorafit.data import TAG
from lorafit.files import write_text
from lorafit.intervals import as_interval
from lorafit.manifest import Base, Manifest
from lorafit.recipe import Adapter
from lorafit.tokens import overlap

FILE = "README.md"


def write(folder: Path, manifest: Manifest, test: dict[str, Any] | None = None) -> None:
    """Write the card of the bundle in `folder`.

    Args:
        folder: the adapter directory.
        manifest: what it holds.
        test: base against adapted on the test texts, as `scores.json` has it; None before `evaluate`.

    Raises:
        StorageError: a disk that is full or not writable.
    """
    write_text(folder / FILE, text(manifest, test))


def write_merged(folder: Path, manifest: Manifest) -> None:
    """Write the card of the merged model in `folder`.

    Raises:
        StorageError: a disk that is full or not writable.
    """
    header = ModelCardData(
        base_model=manifest.base.id,
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=["lorafit"],
    )
    card = _MERGED.format(
        header=header.to_yaml(),
        base=_base_link(manifest.base),
        weights=manifest.base.sha256[:12],
        labels=_numbered(manifest),
        html=_HTML if manifest.html == "strip" else "",
        lost="".join(f"{sentence}\n" for sentence in lost_in_merging(manifest)),
        all_labels=", top_k=None" if manifest.task == "multi_label" else "",
        text=_PIPELINE_PAIR if manifest.text_pair else _TEXT,
    )
    write_text(folder / FILE, card)


def lost_in_merging(manifest: Manifest) -> list[str]:
    """Return what an ordinary model can't keep of a bundle, a sentence each: its reading of long texts, its thresholds.

    >>> lost_in_merging(checks.check(Path("runs/demo/adapter")))
    []
    """
    lost = []
    if manifest.long_text != "head":
        lost.append(
            f"A pipeline reads only the first {manifest.max_tokens} tokens of a longer text, where training and "
            f'lorafit go by data.long_text = "{manifest.long_text}".'
        )
    if manifest.thresholds is not None:
        pairs = zip(manifest.labels, manifest.thresholds, strict=True)
        listed = ", ".join(f"{label} {threshold:.3g}" for label, threshold in pairs)
        lost.append(f"lorafit gives a label from thresholds of its own ({listed}); a pipeline does not.")
    return lost


def text(manifest: Manifest, test: dict[str, Any] | None = None) -> str:
    """Return the card as Markdown, with the Hub's metadata header.

    >>> print(text(checks.check(Path("runs/demo/adapter"))))
    """
    assert manifest.training is not None
    recipe, base = manifest.training.recipe, manifest.base
    return _TEMPLATE.format(
        header=_header(manifest, test).to_yaml(),
        name=recipe["name"],
        base=_base_link(base),
        weights=base.sha256[:12],
        labels=_numbered(manifest),
        data=manifest.training.data,
        texts=manifest.training.texts,
        reading=manifest.reading,
        html="; tags such as `<br />` are taken out first" if manifest.html == "strip" else "",
        adapter=Adapter.model_validate(recipe["adapter"]),
        training=recipe["training"],
        seed=recipe["seed"],
        precision=manifest.training.precision,
        packages=", ".join(f"{name} {version}" for name, version in manifest.training.packages.items()),
        scores=_scores(manifest, test),
        use=_use(manifest),
    )


def _header(manifest: Manifest, test: dict[str, Any] | None) -> ModelCardData:
    assert manifest.training is not None
    recipe = manifest.training.recipe
    source = manifest.training.data
    results = [
        EvalResult(
            task_type="text-classification",
            dataset_type=_data_set(source) or "private",
            dataset_name=f"{source}, {test['n']:,} test texts",
            metric_type=metric,
            metric_value=round(test["adapted"][key], 6),
        )
        for metric, key in (("accuracy", "accuracy"), ("f1", "f1"))
        if test
    ]
    return ModelCardData(
        base_model=manifest.base.id,
        library_name="peft",
        pipeline_tag="text-classification",
        tags=["lora", "lorafit", f"base_model:adapter:{manifest.base.id}"] if manifest.base.id else ["lora", "lorafit"],
        datasets=_data_set(source),
        metrics=["accuracy", "f1"],
        model_name=recipe["name"],
        eval_results=results or None,
    )


def _data_set(source: str) -> str | None:
    """Return the Hub's name of a data set, if it comes from there."""
    return source.removeprefix("hub:").partition("@")[0] if source.startswith("hub:") else None


def _base_link(base: Base) -> str:
    if base.id is None:
        return f"`{base.name}`, an encoder that is not on the Hub"
    return f"[{base.id}](https://huggingface.co/{base.id}) at revision `{base.revision}`"


def _numbered(manifest: Manifest) -> str:
    several = "; a text may have several" if manifest.task == "multi_label" else ""
    return ", ".join(f"{label_id} = `{label}`" for label_id, label in enumerate(manifest.labels)) + several


def _scores(manifest: Manifest, test: dict[str, Any] | None) -> str:
    assert manifest.training is not None
    validation, texts = manifest.training.validation, manifest.training.texts
    rows = ["| | texts | accuracy | macro F1 |", "|---|---|---|---|"]
    if test:
        for who in ("base", "adapted"):
            scores = (
                f"{test[who][key]:.4f} ({as_interval(test[who][f'{key}_interval'])})" for key in ("accuracy", "f1")
            )
            rows.append(f"| test, {who} | {test['n']:,} | {' | '.join(scores)} |")
    rows.append(f"| validation, adapted | {texts.validation:,} | {validation.accuracy:.4f} | {validation.f1:.4f} |")
    explained = (
        "*base* is the same encoder with an untrained head; in brackets are 95% intervals. "
        if test
        else "The test texts wait for `evaluate`. "
    )
    return "\n".join(rows) + f"\n\n{explained}The epoch was chosen on the validation texts, so those flatter it."


def _use(manifest: Manifest) -> str:
    """Return how to use it: in plain PEFT, where that can read as the adapter was trained, and with lorafit."""
    with_lorafit = _WITH_LORAFIT.format(text=_PAIR if manifest.text_pair else _TEXT)
    if manifest.pooling == "mean":
        return f"{_MEAN}\n\n{with_lorafit}"
    cut = _CUT.format(max_tokens=manifest.max_tokens) if manifest.long_text == "head+tail" else ""
    plain = "\n\n".join(["With plain PEFT, for which the names of the labels have to be given:", *_snippets(manifest)])
    return f"{plain}\n\n{cut}{with_lorafit}"


def _snippets(manifest: Manifest) -> list[str]:
    names = dict(enumerate(manifest.labels))
    strips = manifest.html == "strip"
    ask = _ASK.format(
        logits=_logits(manifest),
        strip=(_STRIP_PAIRS if manifest.text_pair else _STRIP) if strips else "",
        text=_PAIR if manifest.text_pair else _TEXT,
        normalized="sigmoid()" if manifest.task == "multi_label" else "softmax(-1)",
        thresholds="" if manifest.thresholds is None else f"thresholds = torch.tensor({manifest.thresholds})\n",
        given=_given(manifest),
    )
    imports = "import re\n\n" if strips else ""
    whole = _OVER_THE_BASE.format(
        imports=imports,
        names=names,
        base=manifest.base.id or "path/to/" + manifest.base.name,
        revision=f", revision={manifest.base.revision!r}" if manifest.base.id else "",
        ask=ask,
    )
    if manifest.base.id is None:
        return [f"With the encoder `{manifest.base.name}` at hand:", whole]
    return [_AUTO.format(imports=imports, names=names, ask=ask), "Or over a base that you load yourself:", whole]


def _logits(manifest: Manifest) -> str:
    """Return the Python lines that read the texts: all of their windows, where those were trained on."""
    if not manifest.long_text.startswith("windows"):
        return _LOGITS.format(max_tokens=manifest.max_tokens)
    pool = "amax" if manifest.long_text == "windows:max" else "mean"
    stride = overlap(manifest.max_tokens)
    return _LOGITS_OF_WINDOWS.format(max_tokens=manifest.max_tokens, stride=stride, pool=pool)


def _given(manifest: Manifest) -> str:
    """Return the Python expression for what is given to a row of probabilities, as `tasks.decide` has it."""
    if manifest.task == "multi_label":
        limits = 0.5 if manifest.thresholds is None else "thresholds"
        return f"[id2label[int(number)] for number in (row >= {limits}).nonzero()]"
    return f"id2label[int({'row' if manifest.thresholds is None else '(row / thresholds)'}.argmax())]"


_TEXT, _PAIR = '"A text."', '("A text.", "Its second text.")'
_PIPELINE_PAIR = '{"text": "A text.", "text_pair": "Its second text."}'
_STRIP = f"""\
texts = [re.sub({TAG.pattern!r}, " ", text) for text in texts]  # as in training
"""
_STRIP_PAIRS = f"""\
texts = [tuple(re.sub({TAG.pattern!r}, " ", text) for text in pair) for pair in texts]  # as in training
"""
_ASK = """\
tokenizer = AutoTokenizer.from_pretrained(folder)
texts = [{text}]
{strip}{thresholds}{logits}
probabilities = logits.{normalized}
for row in probabilities:
    print({given}, row.tolist())"""
_LOGITS = """\
batch = tokenizer(texts, truncation=True, max_length={max_tokens}, padding=True, return_tensors="pt")
with torch.inference_mode():
    logits = model(**batch).logits"""
_LOGITS_OF_WINDOWS = """\
in_windows = {{"max_length": {max_tokens}, "stride": {stride}, "return_overflowing_tokens": True}}  # as in training
batch = tokenizer(texts, truncation=True, padding=True, return_tensors="pt", **in_windows)
text_of_window = batch.pop("overflow_to_sample_mapping")
with torch.inference_mode():
    logits = model(**batch).logits
logits = torch.stack([logits[text_of_window == number].{pool}(0) for number in range(len(texts))])"""

_AUTO = """\
```python
{imports}import torch
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoTokenizer

folder = "."  # this directory
id2label = {names}
label2id = {{name: number for number, name in id2label.items()}}
model = AutoPeftModelForSequenceClassification.from_pretrained(folder, id2label=id2label, label2id=label2id).eval()
{ask}
```"""

_OVER_THE_BASE = """\
```python
{imports}import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder = "."  # this directory
id2label = {names}
label2id = {{name: number for number, name in id2label.items()}}
base = AutoModelForSequenceClassification.from_pretrained(
    {base!r}{revision}, id2label=id2label, label2id=label2id
)
model = PeftModel.from_pretrained(base, folder).eval()
{ask}
```"""

_WITH_LORAFIT = """\
With lorafit, which knows the names, finds the base, and refuses a wrong one:

```python
from lorafit import Classifier

print(Classifier.load(".").predict([{text}]))
```"""
_MEAN = """\
The head reads the mean of the tokens. PEFT's files can't say so: in plain PEFT this adapter would read each text's
first token, and its answers would be wrong."""
_CUT = """\
That reads a longer text's first {max_tokens} tokens only, where training read more of it.

"""

_TEMPLATE = """\
---
{header}
---

# {name}

A LoRA adapter with its classification head, for {base} (SHA-256 of the weights {weights}...).

Labels: {labels}.

## Scores

{scores}

## Data and recipe

* Data: {data}; {texts.train:,} texts to train on, {texts.validation:,} to choose the epoch, {texts.test:,} to test.
* A text is read {reading}{html}.
* {adapter}.
* Training: {training[epochs]} epochs at most, batches of {training[batch_size]}, learning rate
  {training[learning_rate]:g}, {training[schedule]} schedule, seed {seed}, {precision}.
* {packages}.

The whole recipe stands in `lorafit.json`.

## Use it

{use}

## What stands beside this card

`proof.json` holds up to 32 texts, most of them cut short, that were kept out of the training, with the answers
of the trained model; `lorafit verify .` asks them again. Do not hand this directory to people who
must not read those texts.
"""

_HTML = "Tags such as `<br />` were taken out of the texts in training: take them out of yours.\n"
_MERGED = """\
---
{header}
---

# A text classifier

{base} (SHA-256 of the weights {weights}...) with a LoRA adapter merged into it, in fp32. Labels: {labels}.
`lorafit_export.json` says which adapter, how it was trained, and how far the answers are from those before merging.
{html}{lost}
```python
from transformers import pipeline

classify = pipeline("text-classification", model=".", truncation=True{all_labels})
print(classify([{text}]))
```
"""
