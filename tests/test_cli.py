"""The command line: each step alone and in sequence, and every refusal as one sentence with exit code 2."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lorafit import recipe
from tests.conftest import BLAME, PRAISE, Said, mount_small_disk, texts_and_labels, write_csv

Cli = Callable[..., Said]
FAST = [
    "-s", "encoder.precision=fp32", "-s", "data.max_tokens=64", "-s", "training.learning_rate=2e-2",
    "-s", "training.batch_size=8", "-s", "training.epochs=2",
]  # fmt: skip


def imdb_shaped(folder: Path) -> Path:
    """Write a file in the shape of the well-known IMDB CSV."""
    texts, labels = texts_and_labels(120)
    words = [["negative", "positive"][label] for label in labels]
    return write_csv(folder / "IMDB Dataset.csv", texts, words, "review,sentiment")


def recipe_file(folder: Path, made: Any) -> Path:
    file = folder / "tiny.toml"
    file.write_text(recipe.to_toml(made), encoding="utf-8")
    return file


def refused(said: Said) -> str:
    """Check the manner of a refusal; returns its sentence."""
    assert said.code == 2, said
    assert "Traceback" not in said.err + said.out
    errors = [line for line in said.err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, said.err
    return errors[0]


def test_every_step_in_sequence_and_again(cli: Cli, tiny_recipe: Callable[..., Any], tmp_path: Path) -> None:
    file = recipe_file(tmp_path, tiny_recipe(seed=7))
    assert cli("fetch", file).code == 0
    first, again = cli("prepare", file), cli("prepare", file)
    assert first.out == again.out
    assert all(Path(line.split()[-1]).is_file() for line in first.out.splitlines())
    assert [line.split()[:2] for line in first.out.splitlines()] == [
        ["train", "120"],
        ["validation", "40"],
        ["test", "40"],
    ]
    assert "nothing has changed" in again.err
    assert "nothing has changed" not in first.err

    said = cli("train", file)
    assert said.code == 0
    assert "2,114 of" in said.err  # 2 layers x 2 targets x 2 factors x 32 x 8, and the head
    assert "steps" in said.err
    assert "cpu" in said.err
    assert "about" in said.err
    before = (Path("runs/tiny") / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    said = cli("train", file)
    assert said.code == 0
    assert "runs/tiny is trained already" in said.err
    assert (Path("runs/tiny") / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == before
    said = cli("train", "--resume", "runs/tiny")
    assert (said.code, "is finished" in said.err) == (0, True)

    first, again = cli("evaluate", "runs/tiny"), cli("evaluate", "runs/tiny")
    assert first.out == again.out
    assert "Evaluated already" in again.err
    scores = json.loads(Path("runs/tiny/scores.json").read_text())["test"]
    said = first.out.splitlines()
    # TF-IDF does well on these texts, and then the first line says so.
    assert said[0].startswith("LoRA does not beat " if scores["beaten_by"] else "LoRA reaches ")
    assert said[2:4] == [
        f"Base accuracy:         {scores['base']['accuracy']:.4f}   (the same encoder with an untrained head)",
        f"Adapted accuracy:      {scores['adapted']['accuracy']:.4f}",
    ]
    assert "macro F1" in first.out
    assert "TF-IDF with logistic regression" in first.out
    for found, name in [(scores["adapted"], key) for key in ("precision", "recall", "loss")] + [
        (scores["calibration"], key) for key in ("ece_before", "ece_after")
    ]:
        low, high = found[f"{name}_interval"]
        assert re.search(rf"{found[name]:.4f}\W+{low:.3f} to {high:.3f}", first.out)
    assert f"The report lies in {Path('runs/tiny/report.html')}." in first.err
    listed = cli("runs")
    assert "runs/tiny" in listed.out
    assert f"{scores['adapted']['accuracy']:.4f}" in listed.out


def test_another_recipe_is_refused_unless_overwritten(
    cli: Cli, trained: Path, tiny_recipe: Any, tmp_path: Path
) -> None:
    import shutil

    run = shutil.copytree(trained, tmp_path / "runs" / "tiny")
    file = recipe_file(tmp_path, tiny_recipe(adapter={"rank": 2}, training={"epochs": 1}))
    weights = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    sentence = refused(cli("train", file))
    assert "holds a run of another recipe" in sentence
    assert "adapter.rank" in sentence
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == weights
    assert cli("train", file, "--overwrite").code == 0
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() != weights


def test_a_folder_with_foreign_files_is_never_replaced(cli: Cli, tiny_recipe: Any, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    file = recipe_file(tmp_path, tiny_recipe())
    assert "holds files that are no run" in refused(cli("train", file, "--out", "mine", "--overwrite"))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_a_data_file_is_enough(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    file = imdb_shaped(tmp_path)
    settings = ["-s", f"encoder.name={tiny}", *FAST]
    said = cli("train", file, "--text-column", "review", "--label-column", "sentiment", *settings)
    assert said.code == 0, said.err
    manifest = json.loads(Path("runs/IMDB-Dataset/adapter/lorafit.json").read_text())
    assert manifest["labels"] == ["negative", "positive"]
    said = cli("predict", "runs/IMDB-Dataset", "a lovely film", "--json")
    assert list(json.loads(said.out)[0]) == ["text", "negative_prob", "positive_prob", "label"]
    assert "texts in 'review', labels in 'sentiment'" in cli("train", file, *settings).err


def test_init_writes_a_recipe_to_edit(cli: Cli, tmp_path: Path) -> None:
    said = cli("init", imdb_shaped(tmp_path))
    assert said.code == 0
    assert "lorafit train IMDB-Dataset.toml" in said.out
    written = Path("IMDB-Dataset.toml").read_text()
    assert recipe.load("IMDB-Dataset.toml").data.text == "review"
    assert "# The inner width r of the two factors: " in written
    assert "is there already" in refused(cli("init", imdb_shaped(tmp_path)))
    assert cli("init", imdb_shaped(tmp_path), "--overwrite").code == 0


def test_a_dry_run_prints_the_whole_recipe_and_trains_nothing(cli: Cli, tiny_recipe: Any, tmp_path: Path) -> None:
    said = cli("train", recipe_file(tmp_path, tiny_recipe()), "--dry-run")
    assert said.code == 0
    assert recipe.from_values(tomllib.loads(said.out)) == tiny_recipe()
    assert "2,114 of" in said.err
    assert not Path("runs").exists()


def test_predict_reads_arguments_lines_and_files(cli: Cli, trained: Path, tmp_path: Path) -> None:
    texts = [PRAISE, BLAME]
    asked = json.loads(cli("predict", trained, *texts, "--json").out)
    assert [answer["label"] for answer in asked] == ["pos", "neg"]
    assert json.loads(cli("predict", trained, "--json", stdin="\n".join(texts)).out) == asked
    assert len(json.loads(cli("predict", trained, "--json", stdin="one\x0c text\u2028 of a line\n").out)) == 1
    assert "pos_prob" in cli("predict", trained / "adapter", *texts).out
    assert json.loads(cli("predict", trained, *texts, "--json", "--base").out) != asked
    for suffix in (".csv", ".tsv", ".jsonl", ".parquet"):
        write_csv(tmp_path / "in.csv", texts, [1, 2], "review,id")
        said = cli("predict", trained, "--input", "in.csv", "--output", f"out{suffix}", "--text-column", "review")
        assert said.code == 0
        assert re.fullmatch(rf"Wrote 2 rows to out\{suffix} in \d s \(\d+ a second\)\.\n", said.out)
        from lorafit import tables

        out = tables.read(Path(f"out{suffix}"))
        assert list(out.columns) == ["review", "id", "predicted_label", "neg_prob", "pos_prob"]
        assert out["predicted_label"].tolist() == ["pos", "neg"]
        assert float(out["pos_prob"][0]) == pytest.approx(asked[0]["pos_prob"], abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "missing.toml"], "There is no recipe missing.toml."),
        (["train", "missing.csv"], "There is no file missing.csv."),
        (["train", "empty.csv"], "empty.csv is empty."),
        (
            ["train", "nulls.csv", "--text-column", "text", "--label-column", "label"],
            "1 of 4 rows have no text (row 2,",
        ),
        (
            ["train", "good.csv", "--text-column", "txt", "--label-column", "label"],
            "its columns are text, label. Did you",
        ),
        (["train", "latin.csv"], "latin.csv is not UTF-8"),
        (["train", "one.csv", "--text-column", "text", "--label-column", "label"], "every row has the label 'a'"),
        (["train", "numbers.csv", "--text-column", "text", "--label-column", "label"], "holds numbers"),
        (["train", "small.csv", "--text-column", "text", "--label-column", "label"], "Too few examples of"),
        (["train", "broken.toml"], "broken.toml is not valid TOML"),
        (["train", "good.csv", "-s", "encoder.name=hub:no/such-encoder"], "The Hub has no encoder 'no/such-encoder'"),
        (["train", "good.csv", "-s", "encoder.name=bert-base-cased"], "is written hub:bert-base-cased"),
        (["train", "good.csv", "-s", "encoder.name=bundled:minilmm"], "Did you mean 'minilm'?"),
        (
            ["train", "good.csv", "-s", "data.labels=['a','c']"],
            "labels are none of those known from data.labels or from the training texts, ['a', 'c']: 'b' in row 2",
        ),
        (
            ["train", "good.csv", "-s", "adapter.rnk=3"],
            "adapter.rnk is no key of a recipe. Did you mean 'adapter.rank'?",
        ),
        (["train"], "Name a recipe or a data file"),
        (["train", "good.csv", "--small"], "--small goes with a recipe"),
        (["evaluate", "nowhere"], "nowhere is no run folder."),
        (["predict", "nowhere", "text"], "There is no run folder or adapter directory nowhere"),
        (["predict", "nowhere", "--input", "good.csv"], "--input needs --output"),
        (["init", "good.txt"], "unknown format"),
        (["init", "good.csv", "--pair-column", "nope"], "has no column 'nope'"),
    ],
)
def test_bad_input_is_refused(arguments: list[str], sentence: str, cli: Cli, tmp_path: Path) -> None:
    texts, _ = texts_and_labels(20)
    write_csv(tmp_path / "good.csv", texts, ["a", "b"] * 10)
    write_csv(tmp_path / "one.csv", texts, ["a"] * 20)
    write_csv(tmp_path / "small.csv", texts[:4], ["a", "b"] * 2)
    write_csv(tmp_path / "numbers.csv", [str(n) for n in range(20)], ["a", "b"] * 10)
    write_csv(tmp_path / "nulls.csv", ["a film", "", "c film", "d film"], ["a", "b"] * 2)
    (tmp_path / "empty.csv").write_bytes(b"")
    (tmp_path / "latin.csv").write_bytes("text,label\ncafé,a\n".encode("latin1"))
    (tmp_path / "broken.toml").write_text("[data\n")
    assert sentence in refused(cli(*arguments))
    assert not Path("runs").exists()


def test_a_clash_of_names_and_an_unknown_format_lose_nothing(cli: Cli, trained: Path, tmp_path: Path) -> None:
    pd.DataFrame({"text": ["a film"], "pos_prob": [1]}).to_csv(tmp_path / "in.csv", index=False)
    assert "has a column 'pos_prob' already" in refused(
        cli("predict", trained, "--input", "in.csv", "--output", "o.csv")
    )
    assert "unknown format" in refused(cli("predict", trained, "--input", "in.csv", "--output", "out.xlsx"))
    assert "not UTF-8" in refused(cli("predict", trained, stdin=b"caf\xe9"))
    assert "There is no folder" in refused(cli("predict", trained, "--input", "in.csv", "--output", "no/out.csv"))
    assert not list(tmp_path.glob("o*.csv"))
    assert "No text given" in refused(cli("predict", trained, stdin=""))


@pytest.mark.parametrize("kilobytes", [64, 180])
def test_a_full_disk_is_said_and_what_was_written_stays(
    kilobytes: int, cli: Cli, tiny_recipe: Any, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    if not mount_small_disk(disk, kilobytes):
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        (disk / "mine.txt").write_text("stays")
        file = recipe_file(tmp_path, tiny_recipe())
        assert "The disk is full" in refused(cli("train", file, "--out", disk / "run"))
        assert (disk / "mine.txt").read_text() == "stays"
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)  # a traceback may hold a file open


def test_a_place_that_cannot_be_written_is_said(cli: Cli, tiny_recipe: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    file = recipe_file(tmp_path, tiny_recipe())
    assert "can't be a folder" in refused(cli("train", file, "--out", "file/run"))


def test_quiet_says_nothing_and_a_pipe_sees_no_bars(cli: Cli, tiny_recipe: Any, tmp_path: Path) -> None:
    file = recipe_file(tmp_path, tiny_recipe())
    said = cli("train", file, "--quiet")
    assert (said.code, said.out, said.err) == (0, "", "")


def test_the_terminal_shows_our_words_only(tiny_recipe: Any, tmp_path: Path) -> None:
    file = recipe_file(tmp_path, tiny_recipe())
    done = subprocess.run(
        [sys.executable, "-m", "lorafit", "train", str(file)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    starts = (
        "Data: ",
        "Encoder: ",
        "Labels: ",
        "Training: ",
        "Calibrated: ",
        "Proving ",
        "Trained in ",
        "What did it gain? ",
    )
    assert [line for line in done.stderr.splitlines() if not line.startswith(starts)] == []
    assert done.stdout == ""


def _on_a_terminal(command: list[str], folder: Path) -> str:
    """Run a command whose standard error is a terminal; returns what was drawn on it."""
    import pty

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command, cwd=folder, stderr=theirs, stdout=subprocess.DEVNULL, env=os.environ | {"TERM": "xterm"}
    )
    os.close(theirs)
    drawn = b""
    try:
        while chunk := os.read(ours, 65536):
            drawn += chunk
    except OSError:  # Linux's way to say that the other end is closed
        assert process.wait(timeout=60) == 0
    os.close(ours)
    return drawn.decode()


def test_a_terminal_sees_bars_with_an_estimate(tiny_recipe: Any, tmp_path: Path) -> None:
    file = recipe_file(tmp_path, tiny_recipe(seed=11))
    command = [sys.executable, "-m", "lorafit", "train", str(file)]
    drawn = _on_a_terminal(command, tmp_path)
    for bar in ("Tokenizing", "Training", "Validating"):
        assert bar in drawn
    assert "left" in drawn
    assert "Traceback" not in drawn
    assert "Loading weights" not in drawn


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_and_version_answer_without_torch(flag: str) -> None:
    code = (
        f"import sys; sys.argv = ['lorafit', {flag!r}]\n"
        "from lorafit.cli import main\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert "lorafit" in done.stdout


def test_a_cold_prediction_does_not_wait_for_what_it_has_no_use_for() -> None:
    code = "import sys, lorafit; lorafit.Classifier; print({'sklearn', 'matplotlib', 'datasets'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
