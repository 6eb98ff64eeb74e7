"""A bundle in other forms, each with its measured agreement: merged weights; ONNX and OpenVINO, in fp32 and int8."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lorafit import bundle, card, exported, runtime
from lorafit.bundle import Loaded
from lorafit.console import say
from lorafit.errors import BundleError, RecipeError, StorageError, nearest
from lorafit.export import agreement, convert
from lorafit.exported import FORMS, Agreement, Exported, Form
from lorafit.files import new_folder, sha256_of


@dataclass(frozen=True)
class Done:
    """What an export came to: its folder, its manifest, and what it can't keep outside lorafit, a sentence each."""

    folder: Path
    made: Exported
    lost: list[str]


def export(
    source: Path | str,
    form: str,
    target: Path | str,
    *,
    encoder: str | None = None,
    allow_different_base: bool = False,
    overwrite: bool = False,
) -> Done:
    """Write a bundle, its encoder included, in another form into `target`, once its answers are those of the original.

    Up to 200 texts that were not trained on are asked of both, read back from what was written: the run's test texts,
    with an adapter directory alone those of its proof. Where an int8 form loses more than the limit, but not surely so,
    up to 2,000 decide.

    Args:
        source: an adapter directory, or the run folder that holds one.
        form: "merged", an ordinary transformers model in fp32; "onnx" or "openvino", in fp32; "onnx-int8" or
            "openvino-int8".
        target: the folder to make.
        encoder: take this one as the base.
        allow_different_base: take a base with other weights; the manifest in `target` says so.
        overwrite: replace an export that stands at `target`; anything else stays.

    Raises:
        BundleError: no bundle that can be used, one that the form can't hold, or answers too far from the original's.
        LorafitError: the runtime is not installed.
        StorageError: `target` is there already, or can't be written.

    >>> export("runs/demo", "openvino-int8", "exports/demo").made.agreement.largest_logit_gap
    """
    wanted = _known(form)
    folder, target = bundle.folder_of(source), Path(target).resolve()
    if target.is_relative_to(folder.resolve()):
        raise StorageError(f"{target} lies inside the bundle itself. Choose another place.")
    _refuse_to_replace(target, overwrite)
    bundle_sha256 = bundle.fingerprint(folder)
    convert.refuse_missing(wanted)
    load = partial(bundle.load, folder, encoder=encoder, allow_different_base=allow_different_base)
    loaded = load()
    if wanted == "merged" and loaded.manifest.pooling == "mean":
        raise BundleError(
            f"{folder} reads the mean of the tokens, which an ordinary model of its family can't; its adapter can't be "
            "merged into one. The other forms can hold it."
        )
    held_out = agreement.choose(Path(source), folder, loaded, agreement.TEXTS)
    say(f"Asking the original about {held_out.drawn_from} ...")
    original = agreement.ask_original(loaded, held_out)
    with new_folder(target, replace=True) as unfinished:
        say(f"Converting to {wanted} ...")
        model = loaded.model.merge_and_unload()
        inputs = convert.convert(model, wanted, unfinished, held_out.samples, [*loaded.fresh, "pooler"])
        size_bytes = convert.bytes_of(unfinished)
        loaded.tokenizer.model_max_length = loaded.manifest.max_tokens
        loaded.tokenizer.save_pretrained(unfinished)
        found = agreement.measure(unfinished, wanted, loaded, model, held_out, original)
        if agreement.in_doubt(wanted, found):
            more = agreement.choose(Path(source), folder, loaded, agreement.TEXTS_IN_DOUBT)
            say(f"Whether it loses too much {found.texts} texts can't tell. Asking both about {more.drawn_from} ...")
            found = agreement.on_more_texts(found, unfinished, wanted, load(), more)
        agreement.refuse_drift(wanted, found)
        if wanted == "merged":
            card.write_merged(unfinished, loaded.manifest)
        made = _describe(bundle_sha256, loaded, wanted, inputs, size_bytes, found, _sums(unfinished))
        exported.write(unfinished, made)
        _refuse_to_replace(target, overwrite)  # some minutes later
    return Done(target, made, card.lost_in_merging(loaded.manifest) if wanted == "merged" else [])


def _known(form: str) -> Form:
    for known in FORMS:
        if form == known:
            return known
    raise RecipeError(f"There is no form {form!r}; there are {', '.join(FORMS)}.{nearest(form, FORMS)}")


def _refuse_to_replace(target: Path, overwrite: bool) -> None:
    """Refuse a target that holds what nobody asked to remove.

    Raises:
        StorageError: says what to do.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not exported.is_export(target):
        raise StorageError(f"{target} holds something else than an export. Choose another place.")
    exported.refuse_others(target, exported.read(target))
    hidden = sorted(file.name for file in target.iterdir() if file.name.startswith("."))
    if hidden:
        raise StorageError(f"{target} holds {hidden[0]} beside the export. Choose another place, or move it.")
    if not overwrite:
        raise StorageError(f"{target} is there already. Replace it with --overwrite.")


def _describe(
    bundle_sha256: str,
    loaded: Loaded,
    form: Form,
    inputs: list[str],
    size_bytes: int,
    found: Agreement,
    files: dict[str, str],
) -> Exported:
    machine = runtime.describe_machine()
    return Exported(
        form=form,
        bundle_sha256=bundle_sha256,
        different_base=loaded.different_base,
        adapter=loaded.manifest,
        fresh=loaded.fresh,
        token_types=loaded.token_types,
        inputs=inputs,
        agreement=found,
        bytes=size_bytes,
        packages=machine["packages"] | convert.versions(form),
        processor=machine["processor"],
        files=files,
    )


def _sums(folder: Path) -> dict[str, str]:
    return {file.name: sha256_of(file) for file in sorted(folder.iterdir()) if file.name != card.FILE}
