"""Measure the page: its start, the first paint, and a prediction, with nothing else to do and beside a training.

    python benchmarks/page.py

Needs the extras `demo`, `ui` and Chromium. In a folder of its own: a short run on bundled sentences is trained first,
then another one beside which predictions are asked. Writes results/page.json.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import workload
from playwright.sync_api import Browser, Page, sync_playwright

from lorafit import data
from lorafit.runs import Run

ROUNDS = 3
ASKED = 4  # texts a round; each is explained too, which takes longer than its answer
SMALL = ("-s", "data.train_size=600", "-s", "data.test_size=200", "-s", "training.epochs=1")
LONG = ("-s", "training.epochs=40", "-s", "name=beside")
ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "rotten-tomatoes.toml"
# From the press of the button to the first answer of another text.
WATCH = """() => {
  const button = [...document.querySelectorAll('button')].find(one => one.textContent.trim() === 'Ask');
  window.seconds = [];
  button.addEventListener('click', () => { window.pressed = performance.now(); });
  new MutationObserver(() => {
    const shown = document.querySelector('section.answer')?.textContent;
    if (!shown || shown === window.shown || !window.pressed) return;
    window.shown = shown;
    window.seconds.push((performance.now() - window.pressed) / 1000);
    window.pressed = 0;
  }).observe(document.body, {childList: true, subtree: true, characterData: true});
}"""


def main() -> None:
    """Measure, and write what was measured."""
    texts = [
        str(text) for text in data.open_source("bundled:imdb").table["text"].sample(ROUNDS * ASKED, random_state=0)
    ]
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        lorafit(folder, "train", str(RECIPE), *SMALL)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        opened = [open_and_close(folder, browser) for _ in range(ROUNDS)]
        idle, beside = predictions(folder, browser, texts)
        browser.close()
    record = {
        **workload.circumstances(),
        "rounds": ROUNDS,
        "start_seconds": summary([one["start"] for one in opened]),
        "first_paint_seconds": summary([one["first_paint"] for one in opened]),
        "usable_seconds": summary([one["usable"] for one in opened]),
        "asked": "IMDB reviews, one at a time, adapted and base; from the press to the answer on the page",
        "prediction_seconds": summary(idle),
        "prediction_beside_a_training_seconds": summary(beside),
    }
    (ROOT / "results" / "page.json").write_text(json.dumps(record, indent=2) + "\n")


def summary(seconds: list[float]) -> dict[str, Any]:
    """Return median, largest and number of the times."""
    return {"median": round(statistics.median(seconds), 3), "largest": round(max(seconds), 3), "n": len(seconds)}


def lorafit(folder: Path, *arguments: str) -> None:
    """Run a command of lorafit to its end."""
    subprocess.run([sys.executable, "-m", "lorafit", *arguments, "--quiet"], cwd=folder, check=True)


def started(folder: Path) -> tuple[subprocess.Popen[str], str, float]:
    """Return a page's server, where it is, and the seconds until it said so."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "lorafit", "ui", "--port", "0"]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = process.stderr.readline()
    return process, said.split(";")[0].removeprefix("The page is at "), time.perf_counter() - start


def open_and_close(folder: Path, browser: Browser) -> dict[str, float]:
    """Return the seconds of a start, of a browser's first paint after it, and until the page can be used."""
    process, url, seconds = started(folder)
    try:
        page = browser.new_page()
        start = time.perf_counter()
        page.goto(url)
        page.get_by_text("Drop a file, or choose reviews.").wait_for()
        usable = time.perf_counter() - start
        paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") / 1000
        page.close()
    finally:
        process.terminate()
        process.communicate()
    return {"start": seconds, "first_paint": paint, "usable": usable}


def predictions(folder: Path, browser: Browser, texts: list[str]) -> tuple[list[float], list[float]]:
    """Return the seconds of each prediction, with nothing else to do and beside a training, round by round in turn."""
    process, url, _ = started(folder)
    idle: list[float] = []
    beside: list[float] = []
    try:
        page = browser.new_page()
        page.goto(url)
        page.get_by_role("tab", name="4 Try").click()
        page.get_by_text("It tells apart").wait_for()
        page.evaluate(WATCH)
        for number in range(ROUNDS):
            some = texts[number * ASKED : (number + 1) * ASKED]
            idle += asked(page, some)
            training = begin_training(folder)
            beside += asked(page, some)
            training.terminate()
            training.wait()
    finally:
        process.terminate()
        process.communicate()
    return idle, beside


def begin_training(folder: Path) -> subprocess.Popen[bytes]:
    """Return a training as the page begins it, once it has made some steps."""
    run = Run(folder / "runs" / "beside")
    before = len(run.history)
    command = [sys.executable, "-m", "lorafit.ui.worker", "runs", "beside", "train", str(RECIPE), *LONG]
    if before:
        command = [sys.executable, "-m", "lorafit.ui.worker", "runs", "beside", "train", "--resume", str(run.path)]
    process = subprocess.Popen(command, cwd=folder, env=os.environ, stderr=subprocess.DEVNULL)
    while len(run.history) < before + 20:
        assert process.poll() is None
        time.sleep(0.2)
    return process


def asked(page: Page, texts: list[str]) -> list[float]:
    """Return the seconds of each answer."""
    before = len(page.evaluate("window.seconds"))
    for number, text in enumerate(texts, start=1):
        page.get_by_label("Text", exact=True).fill(text)
        page.get_by_role("button", name="Ask", exact=True).click()
        page.wait_for_function(f"window.seconds.length === {before + number}", timeout=60_000)
        page.locator("section.words").wait_for(timeout=120_000)  # the explanation, which is not what is measured
    return [float(seconds) for seconds in page.evaluate("window.seconds")[before:]]


if __name__ == "__main__":
    main()
