"""The command line: a thin shell that parses, calls one function, prints, and leaves with an exit code.

Exit codes: 0 done, 2 refused (one sentence on standard error), 130 interrupted by Ctrl-C, 143 by SIGTERM. Torch and its
kin are imported inside the commands, so that `--help` answers at once.
"""

import io
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from lorafit import __version__, console, interrupts
from lorafit.errors import DataError, LorafitError, RecipeError, StorageError
from lorafit.files import write_text
from lorafit.terminal import (
    print_compared,
    print_contents,
    print_evaluation,
    print_explanation,
    print_findings,
    print_predictions,
    print_runs,
    print_seeds,
)

if TYPE_CHECKING:
    from lorafit.recipe import Recipe

# Read by the libraries when they are imported: their bars, reports and advice stay off our users' terminals.
_LIBRARIES_QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_VERBOSITY": "critical",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "DATASETS_VERBOSITY": "critical",
    "TRANSFORMERS_VERBOSITY": "critical",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TOKENIZERS_PARALLELISM": "true",
}


def _silence(asked: bool) -> None:
    if asked:
        console.silence()


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"lorafit {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="lorafit",
    help="Turn a pretrained BERT-family encoder into a text classifier with LoRA, and prove what the adapter gained.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, as TOML.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/demo.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("-s", "--set", metavar="TABLE.KEY=VALUE", help="Change one key of the recipe."),
]
Small = Annotated[bool, typer.Option("--small", help="Apply the recipe's own [small] table.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what stands there.")]
TextColumn = Annotated[str | None, typer.Option("--text-column", metavar="NAME", help="The column with the texts.")]
PairColumn = Annotated[
    str | None, typer.Option("--pair-column", metavar="NAME", help="The column with each text's second one, for pairs.")
]
LabelColumn = Annotated[str | None, typer.Option("--label-column", metavar="NAME", help="The column with the labels.")]
Quiet = Annotated[bool, typer.Option("--quiet", callback=_silence, help="Results, warnings and errors only.")]
BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A run folder or an adapter folder.")]
Encoder = Annotated[
    str | None,
    typer.Option("--encoder", metavar="NAME", help="The base: bundled:NAME, hub:NAME or a folder. [default: found]"),
]
DifferentBase = Annotated[
    bool, typer.Option("--allow-different-base", help="Take a base with other weights; what is written says so.")
]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The run's folder. [default: runs/NAME]")]


def main() -> None:
    """Run the command line, and turn what we refuse into one sentence and exit code 2."""
    os.environ |= {key: value for key, value in _LIBRARIES_QUIET.items() if key not in os.environ}
    for stream in (sys.stdin, sys.stdout, sys.stderr):  # Windows pipes are not UTF-8 by themselves
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8")
    with console.our_words_only(), interrupts.sigterm_exits():
        try:
            app()
        except LorafitError as error:
            console.complain("Error", str(error), "red")
            sys.exit(2)


@app.callback()
def _options(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")] = False,
) -> None:
    """Hold the options that come before a command; typer wants a function for them."""


@app.command()
def demo(overwrite: Overwrite = False, _: Quiet = False) -> None:
    """Run the whole flow on the bundled reviews.

    Prepare, train, evaluate and predict, by recipes/demo.toml; the run lies in runs/demo.
    """
    from lorafit import pipeline, predict, recipe, runs

    demo_recipe = recipe.load(recipe.shipped("demo"))
    unfinished = None if overwrite else runs.find_unfinished(runs.DEFAULT_ROOT / demo_recipe.name, demo_recipe)
    run = pipeline.resume(unfinished.path) if unfinished else pipeline.train(demo_recipe, overwrite=overwrite)
    pipeline.evaluate(run)
    print_evaluation(run)
    texts = [
        "A film to remember: warm, funny and beautifully played.",
        "Two hours of my life that I will not get back.",
    ]
    print_predictions(predict.Classifier.load(run.path).predict(texts))
    console.say(f"The report and its figures lie in {run.path}. Ask it yourself: lorafit predict {run.path} 'a text'")


@app.command()
def init(
    data_file: Annotated[Path, typer.Argument(metavar="DATA_FILE", help="A CSV, TSV, JSONL or Parquet file.")],
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a recipe for a data file, to edit.

    Looks at the file and finds its columns with texts and labels.
    """
    from lorafit import recipe

    drafted = _recipe_for_file(data_file, _Columns(text_column, pair_column, label_column), ())
    path = Path(f"{drafted.name}.toml")
    if path.exists() and not overwrite:
        raise StorageError(f"{path} is there already. Replace it with --overwrite.")
    write_text(path, recipe.to_commented_toml(drafted, f"Run it with: lorafit train {path}"))
    typer.echo(f"Wrote {path}. Edit it, then: lorafit train {path}")


@app.command()
def fetch(recipe_file: RecipeFile, settings: Overrides = None, small: Small = False, _: Quiet = False) -> None:
    """Cache encoder and data, so that the rest runs offline."""
    from lorafit import pipeline, recipe

    pipeline.fetch(recipe.load(recipe_file, tuple(settings or ()), small=small))


@app.command()
def prepare(recipe_file: RecipeFile, settings: Overrides = None, small: Small = False, _: Quiet = False) -> None:
    """Turn data into splits and token ids.

    Says where train, validation and test lie.
    """
    from lorafit import pipeline, recipe

    found = pipeline.prepare(recipe.load(recipe_file, tuple(settings or ()), small=small))
    for name, split in found.splits.items():
        typer.echo(f"{name:<10}  {len(split):>7,} texts  {len(split.tokens.ids):>10,} tokens  {split.file}")


@app.command()
def doctor(
    source: Annotated[
        Path,
        typer.Argument(metavar="RECIPE | DATA_FILE | RUN", help="A recipe, a file with texts and labels, or a run."),
    ],
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    settings: Overrides = None,
    small: Small = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    _: Quiet = False,
) -> None:
    """Look at the data before training, and again after it.

    Counts, lengths beside the window, duplicates, leaks between splits, contradictions, damaged texts; after a run the
    likeliest label errors too (pip install 'lorafit[doctor]'). The exit code is 2 where something has to be mended.
    """
    from lorafit import doctor, runs

    columns = _Columns(text_column, pair_column, label_column)
    if source.is_dir():
        if any(columns) or settings or small:
            raise RecipeError("A run has its own recipe: it takes no columns, --set or --small.")
        found = doctor.examine_run(runs.open_run(source))
    else:
        found = doctor.examine(_chosen_recipe(source, columns, tuple(settings or ()), small))
    if as_json:
        typer.echo(json.dumps(found.as_record(), ensure_ascii=False, indent=2))
    else:
        print_findings(found)
    if found.errors:
        raise typer.Exit(2)


@app.command()
def train(
    source: Annotated[
        Path | None,
        typer.Argument(metavar="RECIPE | DATA_FILE", help="A recipe, or a file with texts and labels."),
    ] = None,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    settings: Overrides = None,
    small: Small = False,
    out: Out = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the whole recipe and the plan; train nothing.")
    ] = False,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="RUN", help="Go on with an unfinished run.")
    ] = None,
    overwrite: Overwrite = False,
    seeds: Annotated[
        int,
        typer.Option("--seeds", metavar="N", min=1, help="Train and evaluate N times, with N seeds from the recipe's."),
    ] = 1,
    _: Quiet = False,
) -> None:
    """Train an adapter: from a recipe, or straight from a data file."""
    from lorafit import pipeline, recipe, runs

    columns = _Columns(text_column, pair_column, label_column)
    if resume is not None:
        if small or out or overwrite or dry_run or seeds > 1:
            raise RecipeError(
                "--resume goes on with a run as it was started: no --small, --out, --overwrite, --dry-run, --seeds."
            )
        claimed = None
        if source is not None:
            claimed = _chosen_recipe(source, columns, tuple(settings or ()), small=False)
        elif settings:
            claimed = recipe.from_values(runs.open_run(resume).recipe.model_dump(), tuple(settings))
        pipeline.resume(resume, claimed)
        return
    if source is None:
        raise RecipeError("Name a recipe or a data file; `lorafit demo` needs neither.")
    chosen = _chosen_recipe(source, columns, tuple(settings or ()), small)
    if dry_run:
        typer.echo(recipe.to_toml(chosen), nl=False)
        pipeline.plan(chosen)
        return
    if seeds > 1:
        from lorafit import seeds as repeated

        print_seeds(repeated.train(chosen, seeds, out, overwrite=overwrite))
        return
    run = pipeline.train(chosen, out, overwrite=overwrite)
    console.say(f"What did it gain? lorafit evaluate {run.path}")


@app.command()
def evaluate(
    run: RunFolder,
    baselines: Annotated[
        list[str] | None,
        typer.Option(
            "--baseline",
            metavar="NAME",
            help='One more beside the commonest label and TF-IDF: "frozen", logistic regression on the frozen encoder; '
            '"full", full fine-tuning. Repeatable.',
        ),
    ] = None,
    _: Quiet = False,
) -> None:
    """Compare base and adapted on the test texts.

    Prints the scores beside cheap baselines, and writes scores.json, the report and the figures.
    """
    from lorafit import pipeline, runs

    found = runs.open_run(run)
    pipeline.evaluate(found, baselines or ())
    print_evaluation(found)
    console.say(f"The report lies in {found.path / 'report.md'}.")


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Evaluated runs with the same test.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where table and figure go.")] = Path("comparison"),
    _: Quiet = False,
) -> None:
    """Compare evaluated runs on the same test texts.

    Each is compared with the first, text by text. Writes comparison.json, and a figure as PNG and SVG.
    """
    from lorafit import comparison

    print_compared(comparison.compare(folders, out))
    console.say(f"Table and figure lie in {out}.")


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
    input_file: Annotated[
        Path | None, typer.Option("--input", metavar="FILE", help="Read the texts from a file.")
    ] = None,
    output_file: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Write the answers to a file.")
    ] = None,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    encoder: Encoder = None,
    allow_different_base: DifferentBase = False,
    _: Quiet = False,
) -> None:
    """Ask a trained adapter about texts."""
    from lorafit.predict import Classifier, predict_file

    def load() -> Classifier:
        return Classifier.load(bundle, encoder=encoder, allow_different_base=allow_different_base)

    if input_file is not None:
        if texts or output_file is None:
            raise DataError("--input needs --output, and no texts beside it.")
        rows = predict_file(
            load, input_file, output_file, text_column=text_column or "text", pair_column=pair_column or "", base=base
        )
        typer.echo(f"Wrote {rows:,} rows to {output_file}.")
        return
    if output_file is not None or text_column is not None or pair_column is not None:
        raise DataError("--output, --text-column and --pair-column go with --input.")
    asked = texts or _lines_of_standard_input()
    classifier = load()
    if classifier.text_pair:
        answers = classifier.predict(_two_by_two(texts) if texts else _split_at_tabs(asked), base=base)
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

    transformers and its pipelines load it, with the names of the labels. It is in fp32, merged with the base's stored
    weights.
    """
    from lorafit import export

    made = export.merge(bundle, target, encoder=encoder, allow_different_base=allow_different_base, overwrite=overwrite)
    typer.echo(f"Wrote {made.folder}. Largest logit gap to the unmerged model: {made.gap:.1e} on {made.texts} texts.")


@app.command()
def runs() -> None:
    """List the runs there are, newest first."""
    from lorafit.runs import DEFAULT_ROOT, list_runs

    found = list_runs()
    if not found:
        typer.echo(f"There are no runs in {DEFAULT_ROOT}/ yet. Start with: lorafit demo")
        return
    print_runs(found)


class _Columns(NamedTuple):
    """The columns of a data file that were named."""

    text: str | None
    pair: str | None
    label: str | None


def _chosen_recipe(source: Path, columns: _Columns, settings: tuple[str, ...], small: bool) -> "Recipe":
    from lorafit import recipe, tables

    if not tables.is_table(source):
        if any(columns):
            raise RecipeError(
                "--text-column, --pair-column and --label-column go with a data file; a recipe names its own columns."
            )
        return recipe.load(source, settings, small=small)
    if small:
        raise RecipeError("--small goes with a recipe that has a [small] table.")
    return _recipe_for_file(source, columns, settings)


def _recipe_for_file(file: Path, columns: _Columns, settings: tuple[str, ...]) -> "Recipe":
    """Return a recipe for a data file; columns that were not named are found, and said."""
    from lorafit import recipe, tables

    text, pair, label = columns
    if not (text and label):
        others = tables.read(file).drop(columns=[pair] if pair else [], errors="ignore")
        found = tables.guess_columns(others, str(file))
        text, label = text or found.text, label or found.label
        console.say(f"Columns found: texts in {text!r}, labels in {label!r}.")
    return recipe.for_file(file, text, label, settings, text_pair=pair or "")


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


def _split_at_tabs(lines: list[str]) -> list[tuple[str, str]]:
    pairs = []
    for number, line in enumerate(lines, start=1):
        first, tab, second = line.partition("\t")
        if not tab or "\t" in second:
            raise DataError(f"This adapter reads pairs: line {number} needs one tab, between its two texts.")
        pairs.append((first, second))
    return pairs
