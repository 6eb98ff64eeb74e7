"""What the tests share: a tiny real encoder, learnable data, a Hub on loopback, the command line in this process."""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

from tests.hub_server import HubServer

# Each of several test processes has a core of its own, and so have those that it starts: threads that wait for each
# other on fewer cores than they count on are many times slower. Before torch counts the cores.
_WORKER = os.environ.get("PYTEST_XDIST_WORKER")
if _WORKER and hasattr(os, "sched_setaffinity"):
    _CORES = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {_CORES[int(_WORKER.removeprefix("gw")) % len(_CORES)]})

# Before any of the libraries is imported: they read these once.
_SCRATCH = Path(tempfile.mkdtemp(prefix="lorafit-tests-"))
HUB = HubServer(_SCRATCH / "hub")
os.environ |= {
    "LORAFIT_CACHE": str(_SCRATCH / "cache"),
    "HF_HOME": str(_SCRATCH / "hf"),
    "HF_ENDPOINT": HUB.url,
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
os.environ.pop("HF_TOKEN", None)

PRAISE = "the film was good great fine lovely warm bright and lovely music"
BLAME = "the film was bad awful dull poor cold grim and awful music"
GOOD = ("good", "great", "fine", "lovely", "warm", "bright")
BAD = ("bad", "awful", "dull", "poor", "cold", "grim")
FILLER = ("the", "film", "was", "a", "story", "and", "its", "people", "with", "music", "of", "it", "in", "that")


def texts_and_labels(count: int, seed: int = 0) -> tuple[list[str], list[int]]:
    """Return distinct texts whose label stands in their words; the numbers in them make them distinct."""
    chance = random.Random(seed)
    texts, labels = [], []
    for number in range(count):
        label = number % 2
        words = chance.choices(FILLER, k=chance.randint(2, 20)) + chance.choices(GOOD if label else BAD, k=8)
        chance.shuffle(words)
        texts.append(" ".join([*words, str(number)]))
        labels.append(label)
    return texts, labels


def make_tiny_encoder(folder: Path) -> Path:
    """Write a two-layer BertModel and a WordPiece tokenizer that knows our words, letters and digits."""
    import torch
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    marks = [*"abcdefghijklmnopqrstuvwxyz0123456789.,!?"]
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *GOOD,
        *BAD,
        *FILLER,
        *marks,
        *(f"##{mark}" for mark in marks),
    ]
    wordpiece = BertWordPieceTokenizer(vocab={word: place for place, word in enumerate(dict.fromkeys(words))})
    wordpiece.save(str(folder / "tokenizer.json"))
    tokenizer = BertTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), model_max_length=64)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=wordpiece.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,  # random weights this large tell words apart, so that there is something to learn from
    )
    BertModel(config).save_pretrained(folder)
    return folder


def write_csv(file: Path, texts: list[str], labels: list[object], header: str = "text,label") -> Path:
    """Write texts and labels as they are, quoted."""
    quoted = [f'"{text}",{label}' for text, label in zip(texts, labels, strict=True)]
    file.write_text("\n".join([header, *quoted]) + "\n", encoding="utf-8")
    return file


def write_table(table: pd.DataFrame, file: Path) -> None:
    """Write a data file of the kind that its name says; a list in a cell of CSV or TSV is JSON."""
    if file.suffix in (".csv", ".tsv"):
        cells = table.map(lambda cell: json.dumps(cell, ensure_ascii=False) if isinstance(cell, list) else cell)
        cells.to_csv(file, index=False, sep="," if file.suffix == ".csv" else "\t")
    elif file.suffix == ".jsonl":
        table.to_json(file, orient="records", lines=True, force_ascii=False)
    else:
        table.to_parquet(file, index=False)


def mount_small_disk(folder: Path, kilobytes: int) -> bool:
    """Make a folder a disk of its own that is soon full; returns False where that is not allowed."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    return os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0


@dataclass(frozen=True)
class Said:
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def hub() -> HubServer:
    return HUB


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_encoder(tmp_path_factory.mktemp("encoders") / "tiny")


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts, labels = texts_and_labels(200)
    return write_csv(tmp_path_factory.mktemp("data") / "reviews.csv", texts, [["neg", "pos"][n] for n in labels])


def _tiny_values(tiny: Path, reviews: Path) -> dict[str, dict[str, object]]:
    """Return a recipe's tables that learn the small data in a second or two."""
    return {
        "data": {"source": str(reviews), "train_size": 120, "validation_size": 40, "test_size": 40, "max_tokens": 64},
        "encoder": {"name": str(tiny), "precision": "fp32"},
        "adapter": {"targets": ["query", "value"]},
        "training": {"epochs": 3, "learning_rate": 2e-2, "batch_size": 8},
    }


@pytest.fixture(scope="session")
def tiny_recipe(tiny: Path, reviews: Path) -> Callable[..., object]:
    """Build a small recipe; keyword tables override it."""
    from lorafit import recipe

    def build(**tables: object) -> recipe.Recipe:
        values: dict[str, object] = {"name": "tiny", **_tiny_values(tiny, reviews)}
        for name, table in tables.items():
            values[name] = {**values.get(name, {}), **table} if isinstance(table, dict) else table
        return recipe.from_values(values)

    return build


@pytest.fixture(scope="session")
def trained(tiny: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished and evaluated run on the tiny encoder, to read from."""
    from lorafit import pipeline, recipe

    path = tmp_path_factory.mktemp("trained") / "runs" / "tiny"
    made = recipe.from_values({"name": "tiny", **_tiny_values(tiny, reviews)}, ("training.epochs=4",))
    pipeline.evaluate(pipeline.train(made, path))
    return path


STARTED: list["subprocess.Popen[bytes]"] = []  # by the test that runs


@pytest.fixture(autouse=True)
def none_is_left() -> Iterator[None]:
    """A test that fails leaves no process in STARTED that goes on, and none that such a one has started."""
    yield
    for process in STARTED:
        if process.poll() is None:
            for one in [*psutil.Process(process.pid).children(recursive=True), process]:
                with suppress(psutil.NoSuchProcess):
                    one.kill()
            process.wait()
    STARTED.clear()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real browser, Chromium of the system."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def proved_in_this_process() -> Iterator[None]:
    """Runs in this process prove their bundles here too: a fresh process takes 4 s, and test_proof.py is about it."""
    from lorafit import proof

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof, "_ask_fresh_process", proof.answer)
        yield


@pytest.fixture
def cli(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[..., Said]]:
    """Run the command line in this process, in an empty folder."""
    from lorafit import cli as command_line
    from lorafit import console

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object, stdin: str | bytes | None = None) -> Said:
        import io

        monkeypatch.setattr(sys, "argv", ["lorafit", *map(str, arguments)])
        raw = stdin.encode() if isinstance(stdin, str) else (stdin or b"")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8"))
        capfd.readouterr()
        code = 0
        try:
            command_line.main()
        except SystemExit as leave:
            code = int(leave.code or 0)
        said = capfd.readouterr()
        return Said(code, said.out, said.err)

    yield run
    console._stderr.quiet = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first, so that no process has one left when the others are done."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI, which installs what tests need, one skipped for want of it is a failure; a GPU can't be installed."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter is not None else []
    if os.environ.get("CI") and any("needs a GPU" not in str(report.longrepr) for report in skipped):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
