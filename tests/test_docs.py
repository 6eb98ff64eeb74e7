"""What we publish is run: the README's commands, the notebook, the pages of --help, the file tree."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import nbformat
import pytest
import transformers
from nbclient import NotebookClient
from packaging.version import Version

from tests.hub_server import HubServer

ROOT = Path(__file__).parents[1]
COMMANDS = (
    "",
    "demo",
    "init",
    "fetch",
    "prepare",
    "doctor",
    "train",
    "sweep",
    "evaluate",
    "compare",
    "predict",
    "serve",
    "ui",
    "explain",
    "inspect",
    "verify",
    "merge",
    "export",
    "runs",
)


def help_pages() -> str:
    """Return docs/cli.md as it should be."""
    pages = ["# The command line\n\nMade by `python -m tests.test_docs`; a test compares it.\n"]
    for command in COMMANDS:
        words = ["lorafit", *command.split(), "--help"]
        shown = subprocess.run(
            [sys.executable, "-m", *words],
            env=os.environ | {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.replace("python -m lorafit", "lorafit")
        pages.append(f"## {' '.join(words[:-1])}\n\n```text\n{shown.strip()}\n```\n")
    return "\n".join(pages)


def test_the_pages_of_help_are_the_ones_in_the_docs() -> None:
    assert (ROOT / "docs" / "cli.md").read_text() == help_pages(), "run: python -m tests.test_docs"


def test_the_file_tree_in_the_readme_is_the_architecture() -> None:
    tree = (ROOT / "README.md").read_text().split("src/lorafit/")[1]
    named = set(re.findall(r"^\s+([\w.]+(?:/|\.py))\s", tree, flags=re.MULTILINE))
    package = ROOT / "src" / "lorafit"
    folders = {folder for folder in package.rglob("*") if folder.is_dir() and folder.name != "__pycache__"}
    assert named == {file.name for file in package.rglob("*.py")} | {f"{folder.name}/" for folder in folders}


def test_the_figures_in_readme_and_docs_are_the_ones_in_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    table = importlib.import_module("table")
    pages = [(ROOT / name).read_text() for name in table.PAGES]
    for name in table.BLOCKS:
        assert sum(f"<!-- {name}: made by benchmarks/table.py -->" in page for page in pages) == 1
    assert [table.filled(page) for page in pages] == pages, "run: python benchmarks/table.py"


def test_every_link_in_the_readme_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not link.startswith("http") and not (ROOT / link).exists()] == []


def readme_commands() -> list[str]:
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")]


@contextmanager
def service(command: str, folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """Run a service, or the page, until the end, as from another terminal; begins once it listens."""
    log = folder / f"{command.split()[1]}.log"
    with (
        log.open("w") as said,
        subprocess.Popen(f"exec {command}", shell=True, cwd=folder, env=environment, stderr=said) as process,
    ):
        try:
            for _ in range(600):
                if "http://127.0.0.1" in log.read_text() or process.poll() is not None:
                    break
                time.sleep(0.1)
            assert "http://127.0.0.1" in log.read_text(), log.read_text()
            yield
        finally:
            process.terminate()


def readme_python() -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL))


def test_each_pain_of_the_field_names_tests_that_there_are() -> None:
    rows = [line for line in (ROOT / "docs" / "pains.md").read_text().splitlines() if line.startswith("| ")][1:]
    there = {
        name for file in (ROOT / "tests").glob("test_*.py") for name in re.findall(r"def (test_\w+)", file.read_text())
    }
    named = [re.findall(r"`(test_\w+)`", row) for row in rows]
    assert len(rows) == 15
    assert all(named)
    assert {name for tests in named for name in tests} <= there


def test_transformers_is_new_enough_not_to_run_code_from_a_config() -> None:
    """CVE-2026-4372, CVE-2026-5241: those before 5.5 do."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    floor = next(line for line in project["dependencies"] if line.startswith("transformers"))
    assert Version(floor.removeprefix("transformers>=")) >= Version("5.5")
    assert Version(transformers.__version__) >= Version("5.5")


@pytest.mark.slow
def test_the_readmes_commands_and_its_python_run_as_written(tmp_path: Path, hub: HubServer) -> None:
    """In order, in an empty folder, beside a reviews.csv of a user's; `lorafit demo` is the real one.

    Plain PEFT asks the Hub for the base: the one on loopback has the bundled encoder under its real name and commit.
    """
    from lorafit import bundled, data

    encoder = bundled.encoder("minilm")
    shutil.copytree(encoder.folder, hub.folder("models", encoder.hub_id))
    hub.commits[encoder.hub_id] = encoder.revision

    pool = data.open_source("bundled:imdb").table.sample(150, random_state=0)
    pool = pool.assign(sentiment=pool["label"].map({"neg": "negative", "pos": "positive"})).rename(
        columns={"text": "review"}
    )
    pool[["review", "sentiment"]].to_csv(tmp_path / "reviews.csv", index=False)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    commands = readme_commands()
    assert any(command.startswith("lorafit demo") for command in commands)
    with ExitStack() as services:
        for command in commands:
            if command.startswith(("lorafit serve", "lorafit ui")):
                services.enter_context(service(command, tmp_path, environment))
                continue
            done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{command}\n{done.stderr}"
            if command.startswith("curl"):
                assert json.loads(done.stdout)["predictions"][0]["label"] in {"pos", "neg", "positive", "negative"}
    scores = (tmp_path / "runs" / "demo" / "scores.json").read_text()
    accuracy = json.loads(scores)["test"]["adapted"]["accuracy"]
    assert (
        accuracy > 0.83
    )  # what is measured stands in results/; here: that it learned, with four standard errors to spare
    done = subprocess.run([sys.executable, "-c", readme_python()], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "pos" in done.stdout


@pytest.mark.slow
def test_the_notebook_runs_as_it_is(tmp_path: Path) -> None:
    notebook = nbformat.read(ROOT / "notebooks" / "quickstart.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "notebooks").mkdir()
    folder = {"metadata": {"path": tmp_path / "notebooks"}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=folder).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in shown)
    assert "pos_prob" in str(shown[-1])


if __name__ == "__main__":
    (ROOT / "docs" / "cli.md").write_text(help_pages())
