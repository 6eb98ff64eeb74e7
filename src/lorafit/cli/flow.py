"""Commands from data to scores: demo, init, fetch, prepare, doctor, train, sweep, evaluate, compare, runs."""

import json
from pathlib import Path
from typing import Annotated

import typer

from lorafit import console, ranks
from lorafit.cli.shell import (
    Columns,
    LabelColumn,
    Out,
    Overrides,
    Overwrite,
    PairColumn,
    Quiet,
    Ray,
    RecipeFile,
    RunFolder,
    Small,
    TextColumn,
    app,
    chosen_recipe,
    recipe_for_file,
)
from lorafit.cli.terminal import (
    print_compared,
    print_evaluation,
    print_findings,
    print_predictions,
    print_runs,
    print_seeds,
)
from lorafit.errors import RecipeError, StorageError
from lorafit.files import write_text


@app.command()
def demo(overwrite: Overwrite = False, _: Quiet = False) -> None:
    """Run the whole flow on the bundled reviews.

    Prepare, train, evaluate and predict, by recipes/demo.toml; the run lies in runs/demo.
    """
    _refuse_ranks("demo")
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

    drafted = recipe_for_file(data_file, Columns(text_column, pair_column, label_column), ())
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

    columns = Columns(text_column, pair_column, label_column)
    if source.is_dir():
        if any(columns) or settings or small:
            raise RecipeError("A run has its own recipe: it takes no columns, --set or --small.")
        found = doctor.examine_run(runs.open_run(source))
    else:
        found = doctor.examine(chosen_recipe(source, columns, tuple(settings or ()), small))
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
    ray: Ray = None,
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", help="How many train together, with --ray. [default: 2]")
    ] = None,
    _: Quiet = False,
) -> None:
    """Train an adapter: from a recipe, or straight from a data file.

    By several workers: torchrun --nproc-per-node 2 -m lorafit train RECIPE, or on Ray with --ray.
    """
    from lorafit import pipeline, recipe, runs

    columns = Columns(text_column, pair_column, label_column)
    if workers is not None and ray is None:
        raise RecipeError("--workers goes with --ray; without Ray it is torchrun --nproc-per-node N -m lorafit train.")
    if resume is not None:
        if ray is not None:
            raise RecipeError("--ray goes on with an unfinished run by itself: name the recipe, not --resume.")
        if small or out or overwrite or dry_run or seeds > 1:
            raise RecipeError(
                "--resume goes on with a run as it was started: no --small, --out, --overwrite, --dry-run, --seeds."
            )
        claimed = None
        if source is not None:
            claimed = chosen_recipe(source, columns, tuple(settings or ()), small=False)
        elif settings:
            claimed = recipe.from_values(runs.open_run(resume).recipe.model_dump(), tuple(settings))
        pipeline.resume(resume, claimed)
        return
    if source is None:
        raise RecipeError("Name a recipe or a data file; `lorafit demo` needs neither.")
    chosen = chosen_recipe(source, columns, tuple(settings or ()), small)
    if dry_run:
        if ranks.is_first():
            typer.echo(recipe.to_toml(chosen), nl=False)
        pipeline.plan(chosen)
        return
    if seeds > 1:
        if ranks.count() > 1 or ray is not None:
            raise RecipeError(
                "--seeds evaluates run after run, which one process does: start it without torchrun and --ray."
            )
        from lorafit import seeds as repeated

        found = repeated.train(chosen, seeds, out, overwrite=overwrite)
        print_seeds(runs.open_run(found["runs"][0]["path"]))
        return
    if ray is not None:
        from lorafit import cluster

        run = cluster.train(chosen, out, address=ray, workers=2 if workers is None else workers, overwrite=overwrite)
        console.say(f"What did it gain? lorafit evaluate {run.path}")
        return
    begun = runs.was_begun_by(out or runs.DEFAULT_ROOT / chosen.name, ranks.launch())  # before a worker died
    run = pipeline.train(chosen, out, overwrite=overwrite and not begun, go_on=begun)
    ranks.end()
    console.say(f"What did it gain? lorafit evaluate {run.path}")


@app.command()
def sweep(
    recipe_file: RecipeFile,
    space_file: Annotated[
        Path, typer.Option("--space", metavar="SPACE", help="What keys of the recipe may be, as TOML.")
    ],
    trials: Annotated[int, typer.Option("--trials", metavar="N", help="How many trials in all.")] = 20,
    settings: Overrides = None,
    small: Small = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="The sweep's folder. [default: sweeps/NAME]")
    ] = None,
    storage: Annotated[
        str, typer.Option("--storage", metavar="URL", help="The study's database. [default: SQLite in the folder]")
    ] = "",
    ray: Ray = None,
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", help="How many trials at a time, with --ray. [default: 2]")
    ] = None,
    _: Quiet = False,
) -> None:
    """Search for the best recipe, on validation texts (pip install 'lorafit[sweep]').

    Poor trials are stopped early. What was interrupted goes on with the same command; a second process that runs it too
    takes trials of its own. The best trial's run is finished, and asked about the test texts once.
    """
    from lorafit import recipe
    from lorafit import sweep as search
    from lorafit.sweep import space

    _refuse_ranks("sweep")
    if workers is not None and ray is None:
        raise RecipeError("--workers goes with --ray; without Ray start the same command once more, for two at a time.")
    chosen = recipe.load(recipe_file, tuple(settings or ()), small=small)
    keys = space.load(space_file, chosen)
    if ray is None:
        found = search.run(chosen, keys, trials, out, storage)
    else:
        from lorafit import cluster

        count = 2 if workers is None else workers
        found = cluster.sweep(chosen, keys, trials, out, storage, address=ray, workers=count)
    if found.best is not None:
        print_evaluation(found.best)
        console.say(
            f"The report lies in {found.folder / 'report.html'}, the best recipe in {found.folder / search.BEST}."
        )


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
    console.say(f"The report lies in {found.path / 'report.html'}.")


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
def runs() -> None:
    """List the runs there are, newest first."""
    from lorafit.runs import DEFAULT_ROOT, list_runs

    found = list_runs()
    if not found:
        typer.echo(f"There are no runs in {DEFAULT_ROOT}/ yet. Start with: lorafit demo")
        return
    print_runs(found)


def _refuse_ranks(command: str) -> None:
    if ranks.count() > 1:
        raise RecipeError(f"`lorafit {command}` is for one process; torchrun goes with `lorafit train`.")
