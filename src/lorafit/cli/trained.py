"""Commands on what was trained: predict, explain, inspect, verify, merge."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from lorafit import console
from lorafit.cli.shell import BundleFolder, DifferentBase, Encoder, Overwrite, PairColumn, Quiet, Ray, TextColumn, app
from lorafit.cli.terminal import print_contents, print_explanation, print_export, print_predictions, print_scored
from lorafit.errors import DataError


@app.command()
def predict(
    bundle: BundleFolder,
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT",
            help="Texts, of pairs two by two; without any, lines of standard input, of pairs with a tab between.",
        ),
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="Ask the base with its untrained head.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    input_path: Annotated[
        Path | None,
        typer.Option("--input", metavar="FILE", help="Read the texts from a file; with --ray from a folder's files."),
    ] = None,
    output_path: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="Write the answers to a file; with --ray to a folder."),
    ] = None,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    prefix: Annotated[
        str | None, typer.Option("--prefix", metavar="NAME", help="Put this before the name of each added column.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse a file with rows that have no usable text.")] = False,
    overwrite: Overwrite = False,
    encoder: Encoder = None,
    allow_different_base: DifferentBase = False,
    backend: Annotated[
        Path | None,
        typer.Option("--backend", metavar="EXPORT", help="Run on an export of it, which lorafit export made."),
    ] = None,
    ray: Ray = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", metavar="N", help="How many answer at a time, with --ray. [default: one a core]"),
    ] = None,
    _: Quiet = False,
) -> None:
    """Ask a trained adapter about texts.

    With --input about a file of any size: CSV, TSV, JSONL (also .gz, .bz2, .xz, .zst) or Parquet. Rows without a usable
    text go to OUTPUT.rejected.jsonl. The same command again goes on where one was interrupted.

    With --ray about a folder of Parquet files, by many processes, on one machine or a cluster. Rows without a usable
    text go to OUTPUT/_rejected.
    """
    from lorafit.data import pairs_of_lines
    from lorafit.exported import FORMS
    from lorafit.predict import Classifier

    def load() -> Classifier:
        loaded = Classifier.load(bundle, encoder=encoder, allow_different_base=allow_different_base, backend=backend)
        if loaded.backend in FORMS:
            console.say(f"Runs on {loaded.backend}.")
        return loaded

    if workers is not None and ray is None:
        raise DataError("--workers goes with --ray; without Ray one process answers, on all cores.")
    if input_path is not None:
        if texts or as_json or output_path is None:
            raise DataError("--input needs --output, and neither texts nor --json beside it.")
        how: dict[str, Any] = {
            "text_column": text_column or "text",
            "pair_column": pair_column or "",
            "base": base,
            "prefix": prefix or "",
            "strict": strict,
            "overwrite": overwrite,
        }
        if ray is not None:
            from lorafit import cluster

            whom = cluster.Asked(bundle, encoder, allow_different_base, backend)
            done = cluster.score(whom, input_path, output_path, address=ray, workers=workers, **how)
            print_scored(done, output_path, output_path / "_rejected")
            return
        from lorafit import bulk

        print_scored(bulk.score(load, input_path, output_path, **how), output_path, bulk.rejected_file(output_path))
        return
    if ray is not None:
        raise DataError("--ray answers folders: name them with --input DIR and --output DIR.")
    if any((output_path, text_column, pair_column, prefix, strict, overwrite)):
        raise DataError("--output, --text-column, --pair-column, --prefix, --strict and --overwrite go with --input.")
    asked = texts or _lines_of_standard_input()
    classifier = load()
    if classifier.text_pair:
        answers = classifier.predict(_two_by_two(texts) if texts else pairs_of_lines(asked), base=base)
    else:
        answers = classifier.predict(asked, base=base)
    if as_json:
        typer.echo(json.dumps(answers, ensure_ascii=False, indent=2))
    else:
        print_predictions(answers)


@app.command()
def explain(
    bundle: BundleFolder,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="One text.")],
    page: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write it as a page, too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    encoder: Encoder = None,
    allow_different_base: DifferentBase = False,
    _: Quiet = False,
) -> None:
    """Show which words carried a decision.

    By integrated gradients, in log-odds of the decided label; checked by taking the named words out. Needs captum: pip
    install 'lorafit[explain]'
    """
    from lorafit import explain as explaining

    found = explaining.explain(bundle, text, encoder=encoder, allow_different_base=allow_different_base)
    if page is not None:
        explaining.write_page(found, page)
    if as_json:
        typer.echo(json.dumps(found.as_record(), ensure_ascii=False, indent=2))
    else:
        print_explanation(found)


@app.command()
def inspect(bundle: BundleFolder) -> None:
    """Show what an adapter holds.

    Its files are compared with their hashes; its base is not needed.
    """
    from lorafit import bundle as bundles

    print_contents(bundles.inspect(bundles.folder_of(bundle)))


@app.command()
def verify(bundle: BundleFolder, encoder: Encoder = None, _: Quiet = False) -> None:
    """Prove again that an adapter is what was trained.

    Compares files, labels and tensors with their hashes, and logits in fp32 with those kept at the end of the training.
    """
    from lorafit import bundle as bundles
    from lorafit import proof

    folder = bundles.folder_of(bundle)
    found = proof.verify(folder, encoder=encoder)
    typer.echo(
        f"{folder} is what was trained: its files, labels and tensors are unchanged, and its logits on {found.texts} "
        f"texts are within {found.gap_fp32:.1g} of those kept."
    )


@app.command()
def merge(
    bundle: BundleFolder,
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")],
    encoder: Encoder = None,
    allow_different_base: DifferentBase = False,
    overwrite: Overwrite = False,
    _: Quiet = False,
) -> None:
    """Write base and adapter as one ordinary model.

    The same as export --to merged: transformers and its pipelines load it, with the names of the labels. It is in fp32,
    merged with the base's stored weights.
    """
    _export(bundle, "merged", target, encoder, allow_different_base, overwrite)


@app.command()
def export(
    bundle: BundleFolder,
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")],
    form: Annotated[
        str, typer.Option("--to", metavar="FORM", help="merged, onnx, onnx-int8, openvino or openvino-int8.")
    ],
    encoder: Encoder = None,
    allow_different_base: DifferentBase = False,
    overwrite: Overwrite = False,
    _: Quiet = False,
) -> None:
    """Write base and adapter for another runtime, checked.

    200 test texts are asked of the export and of the original, up to 2,000 where those can't tell. One that drifts is
    refused: by 1e-3 in a logit, in int8 by 0.5 points of accuracy. Then: lorafit predict BUNDLE --backend OUT. All
    forms but merged need: pip install 'lorafit[export]'
    """
    _export(bundle, form, target, encoder, allow_different_base, overwrite)


def _export(
    bundle: Path, form: str, target: Path, encoder: str | None, allow_different_base: bool, overwrite: bool
) -> None:
    from lorafit.export import export as write_export

    print_export(
        write_export(
            bundle, form, target, encoder=encoder, allow_different_base=allow_different_base, overwrite=overwrite
        )
    )


def _lines_of_standard_input() -> list[str]:
    if sys.stdin.isatty():
        console.say("One text a line; end with Ctrl-D.")
    try:
        lines = sys.stdin.read().removesuffix("\n").split("\n")  # splitlines would cut at form feeds too
    except UnicodeDecodeError as error:
        raise DataError(f"Standard input is not UTF-8 (byte {error.start}).") from None
    if lines == [""]:
        raise DataError("No text given: name one, pipe lines in, or use --input FILE --output FILE.")
    return lines


def _two_by_two(texts: list[str]) -> list[tuple[str, str]]:
    if len(texts) % 2:
        raise DataError(f"This adapter reads pairs: name texts two by two, not {len(texts)}.")
    return list(zip(texts[::2], texts[1::2], strict=True))
