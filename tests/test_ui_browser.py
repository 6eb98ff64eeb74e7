"""The page in a real browser, as a visitor uses it."""

import io
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

pytest.importorskip("gradio", reason="needs gradio: pip install 'lorafit[ui]'")

from lorafit import runs
from lorafit.errors import DataError
from lorafit.ui import jobs

pytestmark = pytest.mark.slow

SECONDS = 120_000  # to wait for what takes longest, in thousandths


@dataclass
class Visitor:
    """One visitor's page, what it asked for, and what its console complained of."""

    page: Any
    folder: Path
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()

    def fill(self, label: str, value: str) -> None:
        self.page.get_by_label(re.compile(rf"^\s*{label}(\s|$)")).first.fill(value)  # its meaning stands behind it

    def choose(self, label: str, option: str) -> None:
        """Choose from the list that is in sight under a label."""
        box = self.page.get_by_label(re.compile(rf"^\s*{label}(\s|$)")).locator("visible=true").first
        box.click()
        box.fill(option)
        self.page.keyboard.press("Enter")

    def upload(self, file: Path) -> None:
        self.page.locator("input[type=file]").first.set_input_files(file)

    def see(self, selector: str, timeout: float = SECONDS) -> Any:
        found = self.page.locator(selector).first
        found.wait_for(timeout=timeout)
        return found

    def read(self, text: str | re.Pattern[str], timeout: float = SECONDS) -> Any:
        found = self.page.get_by_text(text).first
        found.wait_for(timeout=timeout)
        return found

    def state(self, name: str, state: str) -> Any:
        """Wait until the run chosen is in a state."""
        return self.see(f"section.status.{state}:has-text('runs/{name}:')")

    def choose_file(self, file: Path) -> None:
        self.upload(file)
        self.see("section[aria-label='What the doctor found']")
        self.tab("2 Train")
        self.see("button:text-is('Train'):visible")

    def train_tiny(self, tiny: Path, epochs: int) -> None:
        for label, value in (("Encoder", str(tiny)), ("Epochs", str(epochs)), ("Tokens read of a text, at most", "64")):
            self.fill(label, value)
        self.press("Train")


_servers: dict[Path, subprocess.Popen[str]] = {}


def begin(folder: Path) -> None:
    """Start a page's server in a folder; the file `url` in it says where."""
    command = [sys.executable, "-m", "lorafit", "ui", "--port", "0"]
    process = _servers[folder] = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = process.stderr.readline()
    assert "The page is at " in said, said + process.stderr.read()
    (folder / "url").write_text(said.split(";")[0].removeprefix("The page is at "))


def end(folder: Path) -> None:
    """Stop it, as Ctrl-C does; it has shown no trace until then."""
    process = _servers.pop(folder)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert "Traceback" not in said, said


def last_step(run: runs.Run) -> int:
    return max((line["step"] for line in run.history), default=0)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a page's server; no training is left behind."""
    begin(tmp_path)
    yield tmp_path
    end(tmp_path)
    monkeypatch.chdir(tmp_path)
    for job in jobs.under_way():
        job.stop()


@pytest.fixture(scope="module")
def museum(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a trained run, and a page's server, for visitors who train nothing."""
    folder = tmp_path_factory.mktemp("museum")
    (folder / "runs").mkdir()
    (folder / "runs" / "tiny").symlink_to(trained)
    begin(folder)
    yield folder
    end(folder)
    assert [file.parent.name for file in folder.glob("runs/*/run.json")] == ["tiny"]


@pytest.fixture
def visit(browser: Any, project: Path) -> Iterator[Callable[..., Visitor]]:
    """Open the page, as somebody who has not been there before."""
    with opened(browser, project) as visited:
        yield visited


@pytest.fixture
def visit_museum(browser: Any, museum: Path) -> Iterator[Callable[..., Visitor]]:
    """Open the page where there is a trained run, as somebody who has not been there before."""
    with opened(browser, museum) as visited:
        yield visited


@contextmanager
def opened(browser: Any, project: Path) -> Iterator[Callable[..., Visitor]]:
    contexts = []

    def visited(width: int = 1440, scheme: str = "light") -> Visitor:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        visitor = Visitor(context.new_page(), project)
        visitor.page.on("request", lambda request: visitor.requests.append(request.url))
        visitor.page.on("pageerror", lambda error: visitor.complaints.append(str(error)))
        visitor.page.on("console", lambda said: visitor.complaints.append(said.text) if said.type == "error" else None)
        visitor.page.goto((project / "url").read_text())
        visitor.read("Drop a file, or choose reviews.")
        return visitor

    yield visited
    for context in contexts:
        context.close()


def test_from_an_uploaded_file_to_an_adapter_a_comparison_and_a_prediction(
    visit: Callable[..., Visitor], tmp_path: Path
) -> None:
    """The real encoder on real sentences, with labels and columns of other names."""
    from lorafit import data, report
    from lorafit.predict import Classifier

    sentences = data.open_source("bundled:rotten-tomatoes").table.sample(200, random_state=0)
    moods = sentences["label"].map({"neg": "bored", "pos": "happy", 0: "bored", 1: "happy"})
    file = tmp_path / "what people said.csv"
    pd.DataFrame({"id": range(200), "said": sentences["text"].tolist(), "mood": moods.tolist()}).to_csv(
        file, index=False
    )

    visitor = visit()
    visitor.upload(file)
    found = visitor.see("section[aria-label='What the doctor found']").inner_text()
    assert "200 texts, 140 of them to train on" in found
    assert "bored" in found
    assert "The first 8 of 200 rows" in visitor.see("table").inner_text()
    visitor.press("On to training")
    visitor.read(re.compile(r"^Training: [\d,]+ tokens in 36 steps, 4 epochs; about "))
    visitor.fill("Epochs", "2")
    visitor.fill("Learning rate", "2e-3")
    command = visitor.page.locator("textarea[disabled]").first
    wanted = "lorafit train 'uploads/what people said.csv' --text-column said --label-column mood "
    wanted += "-s training.epochs=2 -s training.learning_rate=2e-3"
    visitor.page.wait_for_function("([box, text]) => box.value === text", arg=[command.element_handle(), wanted])
    visitor.press("Train")
    visitor.press("Train")
    visitor.read("runs/what-people-said is being trained with these very settings.")
    visitor.see("section.status.training")
    assert "validation accuracy" in visitor.state("what-people-said", "finished").inner_text()
    assert visitor.page.locator("canvas, svg.marks").count() >= 2  # both curves
    visitor.press("See what it gained")
    said = visitor.see(".verdict").inner_text()
    run = runs.open_run(tmp_path / "runs" / "what-people-said")
    assert run.scores is not None
    right, n = round(run.scores["test"]["adapted"]["accuracy"] * 30), run.scores["test"]["n"]
    assert n == 30
    assert said == f"Right on {right} of 30 texts that it had not seen. {report.verdict(run.scores)}"
    assert visitor.page.locator(".pictures figure").count() == 4
    accuracy = run.scores["test"]["adapted"]["accuracy"]
    assert f"{accuracy:.4f} (" in visitor.page.locator("table:has-text('The runs in this project')").inner_text()

    with visitor.page.expect_download() as download:
        visitor.page.get_by_text("Download the bundle (zip)").click()
    zipfile.ZipFile(io.BytesIO(Path(download.value.path()).read_bytes())).extractall(tmp_path / "taken")
    classifier = Classifier.load(tmp_path / "taken" / "adapter", threads=1)
    with visitor.page.expect_download() as download:
        visitor.page.get_by_text("Download the report").click()
    assert Path(download.value.path()).read_bytes() == (run.path / "report.html").read_bytes()

    visitor.press("Try it")
    text = "A warm and funny film."
    visitor.fill("Text", text)
    visitor.press("Ask")
    shown = visitor.see("section.answer").inner_text()
    (answer,), (base,) = (classifier.predict([text], base=base) for base in (False, True))
    assert f"With the adapter: {answer['label']}" in shown
    for one in (answer, base):
        assert f"{100 * one['happy_prob']:.1f}%" in shown
    assert "Blue words speak for" in visitor.see("section.words").inner_text()
    visitor.tab("Many texts")
    visitor.fill("Texts, one a line", f"{text}\n\nDull.")
    visitor.press("Ask about all of them")
    with visitor.page.expect_download() as download:
        visitor.page.get_by_text("Download as CSV").click()
    table = pd.read_csv(download.value.path())
    assert table["text"].tolist() == [text, "Dull."]
    assert table["happy_prob"][0] == pytest.approx(answer["happy_prob"], abs=1e-6)
    assert visitor.complaints == []
    here = (tmp_path / "url").read_text()
    assert [url for url in visitor.requests if not url.startswith((here, "data:", "blob:"))] == []


def test_a_wrong_file_gets_the_command_lines_sentence_and_the_next_one_is_taken(
    visit_museum: Callable[..., Visitor], reviews: Path, tmp_path: Path
) -> None:
    from lorafit import tables

    visitor = visit_museum()
    for name, content in (
        ("latin1.csv", "text,label\né,1\n".encode("latin1")),
        ("notes.txt", b"hello"),
        ("e.csv", b""),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError) as error:
            tables.read(tmp_path / name)
        visitor.upload(tmp_path / name)
        sentence = str(error.value).replace(str(tmp_path), "uploads")
        assert visitor.read(sentence).is_visible()
        assert visitor.page.get_by_role("button", name="On to training").is_disabled()
    visitor.upload(reviews)
    visitor.see("section[aria-label='What the doctor found']")
    assert visitor.page.locator(".refused").count() == 0
    assert visitor.page.get_by_role("button", name="On to training").is_enabled()


def test_settings_that_cannot_be_are_refused_and_nothing_is_begun(
    visit_museum: Callable[..., Visitor], reviews: Path, tmp_path: Path
) -> None:
    visitor = visit_museum()
    visitor.choose_file(reviews)
    visitor.fill("Epochs", "many")
    visitor.press("Train")
    visitor.read('uploads/reviews.csv: training.epochs = "many": it should be a valid integer.')
    visitor.press("Estimate the time")
    assert "should be a valid integer" in visitor.see(".refused").inner_text()
    visitor.fill("Epochs", "1")
    visitor.fill("Encoder", "bundled:bert")
    visitor.press("Estimate the time")
    visitor.read(re.compile("There is no bundled encoder 'bert'"))
    assert [file.parent.name for file in visitor.folder.glob("runs/*/run.json")] == ["tiny"]


def test_columns_that_were_not_found_can_be_chosen(visit_museum: Callable[..., Visitor], tmp_path: Path) -> None:
    praise, blame = ["good", "1"], ["bad", "2"]
    pd.DataFrame([praise, blame] * 20, columns=["one", "two"]).to_csv(tmp_path / "odd.csv", index=False)
    pd.DataFrame({"a": range(9), "b": range(9)}).to_csv(tmp_path / "none.csv", index=False)
    visitor = visit_museum()
    visitor.upload(tmp_path / "none.csv")
    visitor.read("No columns were found that look like texts and labels: choose them.")
    visitor.choose("Column with the texts", "a")
    visitor.choose("Column with the labels", "b")
    visitor.read("Set data.text.")  # they are numbers
    visitor.upload(tmp_path / "odd.csv")
    assert "40 texts" in visitor.see("section[aria-label='What the doctor found']").inner_text()


def test_a_training_is_found_again_after_a_reload_and_without_its_server_and_stopped_and_resumed(
    visit: Callable[..., Visitor], tiny: Path, reviews: Path, project: Path
) -> None:
    visitor = visit()
    visitor.choose_file(reviews)
    visitor.train_tiny(tiny, epochs=2000)
    visitor.read("tokens a second")
    run = runs.Run(project / "runs" / "reviews")
    visitor.page.reload()  # in the middle of training
    visitor.see("section.status.training:has-text('tokens a second')")
    visitor.page.close()
    end(project)
    before = last_step(run)
    begin(project)
    other = visit()  # who has never been there, at a new server
    other.tab("2 Train")
    other.choose("Run", "reviews")
    other.see("section.status.training:has-text('tokens a second')")
    assert last_step(run) > before
    other.press("Stop")
    other.state("reviews", "stopped")
    before = last_step(run)
    other.press("Resume")
    other.see("section.status.training:has-text('tokens a second')")
    end_of_waiting = time.monotonic() + SECONDS / 1000
    while last_step(run) == before:
        assert time.monotonic() < end_of_waiting, "it does not go on"
        time.sleep(0.1)
    other.press("Stop")
    other.state("reviews", "stopped")
    steps = [line["step"] for line in run.history if "loss" in line]
    assert steps == list(range(1, len(steps) + 1))  # none was lost, and none made twice


def test_two_visitors_do_not_disturb_each_other(
    visit: Callable[..., Visitor], tiny: Path, reviews: Path, tmp_path: Path
) -> None:
    one, other = visit(), visit()
    one.choose_file(reviews)
    assert other.page.locator("section[aria-label='What the doctor found']").count() == 0
    other.choose_file(reviews)  # the same file, under the same name
    one.train_tiny(tiny, epochs=400)
    one.read("tokens a second")
    other.train_tiny(tiny, epochs=1)
    waiting = other.state("reviews-2", "waiting").inner_text()
    assert "runs/reviews is being worked on" in waiting
    one.press("Stop")
    one.state("reviews", "stopped")
    other.state("reviews-2", "finished")
    one.state("reviews", "stopped")
    assert sorted(path.name for path in (tmp_path / "uploads").glob("*.csv")) == ["reviews.csv"]


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1440, "light")])
def test_every_step_fits_a_phone_and_a_desk_and_asks_nobody_else(
    width: int, scheme: str, visit_museum: Callable[..., Visitor]
) -> None:
    visitor = visit_museum(width, scheme)
    for tab, shown in (
        ("1 Data", "Drop a file"),
        ("2 Train", "Choose data in the first step."),
        ("3 Compare", "LoRA"),
        ("4 Try", "It tells apart"),
    ):
        visitor.tab(tab)
        visitor.read(re.compile(re.escape(shown)))
        wide = visitor.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, tab
        assert visitor.page.get_by_role("tab", name="4 Try").is_visible()
    assert visitor.complaints == []
    here = (visitor.folder / "url").read_text()
    assert [url for url in visitor.requests if not url.startswith((here, "data:", "blob:"))] == []


def test_the_keyboard_alone_asks_a_question(visit_museum: Callable[..., Visitor]) -> None:
    keyboard = (visitor := visit_museum()).page.keyboard

    def reach(name: str) -> None:
        for _ in range(40):
            keyboard.press("Tab")
            focused = "(e => e.getAttribute('aria-label') || e.labels?.[0]?.innerText || e.innerText || '')"
            if visitor.page.evaluate(f"{focused}(document.activeElement)").strip().startswith(name):
                return
        raise AssertionError(f"the keyboard does not reach {name}")

    reach("4 Try")
    keyboard.press("Enter")
    visitor.read(re.compile("It tells apart"))
    reach("Text")
    keyboard.type("the film was good")
    reach("Ask")
    keyboard.press("Enter")
    assert "With the adapter" in visitor.see("section.answer").inner_text()
    outline = visitor.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"  # what is reached is seen
    keyboard.press("Shift+Tab")
    keyboard.type(" of another film")
    visitor.page.wait_for_function("!document.querySelector('section.answer')")  # it was of the other text
