"""The report: what it says and in which order, and the page in a real browser, of four kinds of task."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt
from matplotlib import image

from lorafit import report
from lorafit.report import figures, style
from lorafit.runs import Run
from tests import evaluated_runs as made

KINDS: dict[str, Callable[[], dict[str, Any]]] = {
    "binary": lambda: made.record_of(made.BINARY),
    "topics": lambda: made.record_of(made.TOPICS),
    "intents": lambda: made.record_of(made.INTENTS, n=1500, gain=4),
    "emotions": lambda: made.record_of(made.EMOTIONS, task="multi_label"),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A report of each kind."""
    folder = tmp_path_factory.mktemp("reports")
    found = {}
    for kind, record in KINDS.items():
        found[kind] = made.evaluated(folder / kind, record(), made.seeds_record() if kind == "topics" else None)
        report.write(found[kind])
    return found


def read(run: Run, name: str = "report.md") -> str:
    return (run.path / name).read_text(encoding="utf-8")


# The verdict


def scores_of(**changes: Any) -> dict[str, Any]:
    """Return scores of 0.871 with the base at 0.514, TF-IDF at 0.852 and the majority at 0.5, with changes."""
    test = {
        "n": 2000,
        "task": "single_label",
        "base": {"accuracy": 0.514, "f1": 0.34},
        "adapted": {"accuracy": 0.871, "accuracy_interval": [0.8556, 0.8850], "f1": 0.8, "f1_interval": [0.78, 0.82]},
        "compared_by": "accuracy",
        "improvement_points": 35.7,
        "mcnemar_p": 1e-90,
        "baselines": {
            "majority": {"accuracy": 0.5, "mcnemar_p": 1e-99},
            "tfidf": {"accuracy": 0.852, "mcnemar_p": 0.0312},
        },
    }
    return {"test": test | changes}


def test_the_verdict_says_interval_and_gain_over_base_and_baselines_with_their_p() -> None:
    assert report.verdict(scores_of()) == (
        "LoRA reaches an accuracy of 0.871 (95% interval 0.856 to 0.885) on 2,000 test texts: 35.7 points above its "
        "base (McNemar’s p < 0.001), 1.9 above TF-IDF with logistic regression (p = 0.031) and 37.1 above the majority "
        "class (p < 0.001)."
    )


def test_the_verdict_begins_with_what_lora_does_not_beat() -> None:
    full, tfidf = {"accuracy": 0.882, "mcnemar_p": 0.21}, {"accuracy": 0.871, "mcnemar_p": 1.0}
    said = report.verdict(scores_of(baselines={"tfidf": tfidf, "full": full}))
    assert said.startswith(
        "LoRA does not beat full fine-tuning or TF-IDF with logistic regression: it reaches an accuracy"
    )
    assert "1.1 points below full fine-tuning (McNemar’s p = 0.210, which chance may explain)" in said
    assert "level with TF-IDF with logistic regression (p = 1.000)" in said
    assert "35.7 above its base (p < 0.001)" in said
    ahead = {"accuracy": 0.891}
    assert report.verdict(scores_of(base=ahead)).startswith("LoRA does not beat its base: it reaches")


def test_where_thresholds_are_fitted_for_macro_f1_the_verdict_is_by_that() -> None:
    full = {"accuracy": 0.9, "f1": 0.79, "mcnemar_p": 0.01}
    tfidf = {"accuracy": 0.852, "f1": 0.81, "mcnemar_p": 0.0312}
    scores = scores_of(task="multi_label", compared_by="f1", baselines={"tfidf": tfidf, "full": full})
    assert report.verdict(scores) == (
        "LoRA does not beat TF-IDF with logistic regression: it reaches a macro F1 of 0.800 (95% interval 0.780 to "
        "0.820) on 2,000 test texts: 1.0 points below TF-IDF with logistic regression, 46.0 above its base and 1.0 "
        "above full fine-tuning."
    )
    del scores["test"]["baselines"]["full"]
    assert report.verdict(scores | {"seeds": made.seeds_record()}).startswith(
        "LoRA reaches a macro F1 of 0.871 ± 0.004 (mean ± standard deviation of 3 seeds): 36.2 ± 0.4 points above"
    )


def test_a_gain_that_chance_may_explain_is_said_to_be_one() -> None:
    said = report.verdict(scores_of(baselines={"tfidf": {"accuracy": 0.868, "mcnemar_p": 0.4}}))
    assert "0.3 above TF-IDF with logistic regression (p = 0.400, which chance may explain)" in said


def test_the_verdict_leads_with_the_mean_of_the_seeds() -> None:
    assert report.verdict(scores_of() | {"seeds": made.seeds_record()}) == (
        "LoRA reaches an accuracy of 0.872 ± 0.004 (mean ± standard deviation of 3 seeds): 36.2 ± 0.4 points above its "
        "base, 0.2 ± 1.0 above TF-IDF with logistic regression and 37.1 ± 0.3 above the majority class; with seed 0 "
        "alone 0.871 (95% interval 0.856 to 0.885) on 2,000 test texts."
    )


@pytest.mark.parametrize(("tfidf", "beats"), [([0.868, 0.874, 0.878], False), ([0.872, 0.86, 0.86], True)])
def test_of_several_seeds_their_mean_decides_and_not_the_first(tfidf: list[float], beats: bool) -> None:
    found = [0.871, 0.8755, 0.868]
    seeds = made.seeds_record()
    seeds["baselines"]["tfidf"] = made.beside(found, tfidf)
    of_the_first = {"tfidf": {"accuracy": tfidf[0], "mcnemar_p": 0.4}, "majority": {"accuracy": 0.5, "mcnemar_p": 0.0}}
    alone, said = (report.verdict(scores_of(baselines=of_the_first) | more) for more in ({}, {"seeds": seeds}))
    opening = "LoRA does not beat TF-IDF with logistic regression"
    assert alone.startswith(opening) == beats  # what seed 0 alone would say is the contrary
    assert said.startswith(f"{opening} on the mean of 3 seeds: it reaches an accuracy of 0.872 ± 0.004") != beats
    assert ("0.2 ± 0.7 points below TF-IDF with logistic regression" in said) != beats


def test_a_baseline_that_not_every_seed_has_is_named_beside_the_first_seed_alone() -> None:
    baselines = scores_of()["test"]["baselines"] | {"full": {"accuracy": 0.882, "mcnemar_p": 0.21}}
    said = report.verdict(scores_of(baselines=baselines) | {"seeds": made.seeds_record()})
    assert said.startswith("LoRA reaches an accuracy of 0.872 ± 0.004")
    assert said.endswith(
        "; with seed 0 alone 0.871 (95% interval 0.856 to 0.885) on 2,000 test texts, 1.1 points below full "
        "fine-tuning (McNemar’s p = 0.210, which chance may explain), which not every seed has."
    )


def test_seeds_of_an_earlier_version_which_kept_no_baselines_are_left_out(tmp_path: Path) -> None:
    seeds = {name: found for name, found in made.seeds_record().items() if name not in ("base", "baselines")}
    assert report.verdict(scores_of() | {"seeds": seeds}) == report.verdict(scores_of())
    run = made.evaluated(tmp_path / "earlier", made.record_of(made.BINARY), seeds)
    report.write(run)
    assert "## Seeds" not in read(run)


def test_the_report_puts_each_seed_beside_base_and_baselines(written: dict[str, Run]) -> None:
    rows = [line.strip("| ").split(" | ") for line in read(written["topics"]).splitlines()]
    assert ["accuracy", "seed 0", "seed 1", "seed 2", "mean ± sd", "LoRA’s gain, points"] in rows
    tfidf = ["TF-IDF with logistic regression", "0.8665", "0.8650", "0.8770", "0.8695 ± 0.0065", "0.20 ± 1.00"]
    assert tfidf in rows


def test_the_first_line_of_the_report_is_the_verdict(tmp_path: Path) -> None:
    run = made.evaluated(tmp_path / "behind", made.record_of(made.BINARY, gain=1.0))
    report.write(run)
    assert read(run).startswith("# LoRA does not beat TF-IDF with logistic regression:")
    first = re.search(r"<h1>(.*?)</h1>", read(run, "report.html"), flags=re.DOTALL)
    assert first is not None
    assert first[1].startswith("LoRA does not beat TF-IDF with logistic regression:")


# The content


@pytest.mark.parametrize("kind", KINDS)
def test_page_and_markdown_have_the_same_sections_and_figures(kind: str, written: dict[str, Run]) -> None:
    page, markdown = read(written[kind], "report.html"), read(written[kind])
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == re.findall(r"^## (.*)$", markdown, flags=re.MULTILINE)
    assert titles[0] == ("Seeds" if kind == "topics" else "Result")
    assert titles[-1] == "How the numbers were made"
    linked = re.findall(r"\]\((figures/.*?)\)", markdown)
    assert len(linked) == page.count("<svg ") == {"binary": 7, "topics": 7, "intents": 6, "emotions": 6}[kind]
    assert page.startswith("<!doctype html>")
    for name in linked:
        assert image.imread(written[kind].path / name).std() > 0.05  # something is drawn on it
        drawn = ElementTree.parse((written[kind].path / name).with_suffix(".svg"))
        assert drawn.getroot().tag.endswith("svg")


@pytest.mark.parametrize("kind", KINDS)
def test_every_label_has_a_row(kind: str, written: dict[str, Run]) -> None:
    rows = [line.split(" | ")[0] for line in read(written[kind]).splitlines() if line.startswith("| ")]
    labels = KINDS[kind]()["labels"]
    assert {f"| {report.markdown.escaped(label)}" for label in labels} <= set(rows)


def test_of_many_labels_the_worst_stand_first_and_the_others_are_folded_away(written: dict[str, Run]) -> None:
    run = written["intents"]
    found = run.scores["test"]["per_class"]
    worst = min(found, key=lambda label: found[label]["f1"])
    first = read(run).split("lowest F1 first")[1].splitlines()[4]
    assert first.startswith(f"| {report.markdown.escaped(worst)} |")
    assert "The other 140" in read(run, "report.html")
    assert "figures/confusion.png" not in read(run)
    assert "The most confused pairs" in read(run)


def test_what_is_not_in_the_record_is_left_out(tmp_path: Path) -> None:
    record = made.record_of(made.BINARY) | {"curves": {}, "errors": [], "by_length": []}
    run = made.evaluated(tmp_path / "bare", record)
    report.write(run)
    assert "Most confident errors" not in read(run)
    assert sorted(file.name for file in (run.path / "figures").glob("*.png")) == [
        "accuracy_bar.png",
        "accuracy_line.png",
        "confusion.png",
        "reliability.png",
    ]


def test_figures_of_an_earlier_report_are_gone(tmp_path: Path) -> None:
    run = made.evaluated(tmp_path / "again", made.record_of(made.BINARY))
    report.write(run)
    made.write_scores(run, made.record_of(made.EMOTIONS, task="multi_label"))
    report.write(run)
    assert not (run.path / "figures" / "confusion.png").exists()


@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_nobody_learns_the_writers_folders(name: str, written: dict[str, Run]) -> None:
    """A report is handed around."""
    assert all("/home/" not in read(run, name) for run in written.values())
    assert "reviews.csv" in read(written["binary"], name)


def test_other_baselines_stand_in_table_figure_and_verdict(tmp_path: Path) -> None:
    record = made.record_of(made.BINARY)
    record["baselines"]["full"] = record["baselines"]["tfidf"] | {"accuracy": 0.999}
    run = made.evaluated(tmp_path / "full", record)
    report.write(run)
    assert read(run).startswith("# LoRA does not beat full fine-tuning: it")
    names = [tick.get_text() for tick in figures.accuracy_bar(record).axes[0].get_yticklabels()]
    assert names == ["LoRA", "full fine-tuning", "TF-IDF + log. regression", "base, untrained head", "majority class"]


# Hostile text


def test_text_in_markdown_stays_text(written: dict[str, Run]) -> None:
    for run in written.values():
        blocks = MarkdownIt("gfm-like", {"linkify": False}).parse(read(run))
        tokens = [token for block in blocks for token in (block, *(block.children or []))]
        sources = [token.attrs["src"] for token in tokens if token.type == "image"]
        assert all(re.fullmatch(r"figures/\w+\.png", str(source)) for source in sources)
        assert not any(token.type == "link_open" for token in tokens)
        raw = "".join(token.content for token in tokens if token.type.startswith("html_"))
        tags = set(re.findall(r"<\W?(\w+)", raw))
        assert tags <= {"details", "summary", "blockquote"}
        headings = [token for token in tokens if token.type == "heading_open"]
        assert len(headings) == 1 + read(run).count("\n## ")


def test_a_dollar_or_an_underscore_in_a_label_is_drawn_as_it_is(written: dict[str, Run]) -> None:
    drawn = (written["topics"].path / "figures" / "roc.svg").read_text()
    assert "costs $5 to $9" in drawn
    assert "_health_" in drawn


def test_a_letter_that_no_font_has_is_no_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    report.write(made.evaluated(tmp_path / "wide", made.record_of(["\U0001e900\U0001e901", "否定的"])))
    assert [str(warning.message) for warning in recwarn if "Glyph" in str(warning.message)] == []


# Figures


def test_intervals_are_drawn_where_the_record_has_them() -> None:
    record = made.record_of(made.BINARY)
    lines = figures.accuracy_bar(record).axes[0].get_lines()
    drawn = [list(line.get_xdata()) for line in lines]
    assert record["adapted"]["accuracy_interval"] in drawn
    assert record["baselines"]["tfidf"]["f1_interval"] in drawn


def test_empty_bins_are_not_drawn() -> None:
    calibration = made.record_of(made.BINARY)["calibration"]
    calibration["bins_after"].append({"confidence": 0.0, "accuracy": 0.0, "count": 0})
    after = figures.reliability(calibration).axes[0].get_lines()[2]
    assert len(after.get_xdata()) == len(calibration["bins_after"]) - 1


def test_ten_labels_are_drawn_apart_with_colours_and_without() -> None:
    looks = figures._looks(10)
    assert len({(look["linewidth"], look.get("linestyle")) for look in looks}) == 11  # the mean is the last
    assert len({(look["color"], look.get("linestyle")) for look in looks}) == 11


def test_a_printed_line_stands_out_from_the_paper() -> None:
    for colour in (*style.LABELS, style.BASE, style.ADAPTED, style.BEST, style.MUTED, style.INK):
        assert contrast(colour, style.PAPER) > 3  # WCAG 2.2, 1.4.11: what a figure says


def test_of_many_labels_the_worst_curves_and_the_mean_are_drawn(written: dict[str, Run]) -> None:
    run = written["intents"]
    curves = run.scores["test"]["curves"]
    worst = sorted(curves, key=lambda label: curves[label]["pr"]["average_precision"])
    for name, area in (("roc", "auc"), ("precision_recall", "average_precision")):
        drawing = ElementTree.parse(run.path / "figures" / f"{name}.svg")
        said = "".join(drawing.getroot().itertext())
        kind = {"roc": "roc", "precision_recall": "pr"}[name]
        for short, label in zip(style.in_short(worst[:5]), worst, strict=False):
            assert f"{short}  {curves[label][kind][area]:.3f}" in said
        assert f"mean of all  {run.scores['test']['macro_curves'][kind][area]:.3f}" in said
    assert read(run).count("The 5 labels with the lowest average precision, and the mean of all.") == 2
    first = read(run).split("lowest average precision first")[1].splitlines()[4]
    assert first.startswith(f"| {report.markdown.escaped(worst[0])} |")


@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_every_score_stands_beside_its_interval(name: str, written: dict[str, Run]) -> None:
    for run in written.values():
        test, said = run.scores["test"], read(run, name)
        scores = [(test["calibration"], "ece_before"), (test["calibration"], "ece_after")]
        scores += [(test[who], key) for who in ("base", "adapted") for key in ("precision", "recall", "loss", "f1")]
        scores += [(found, key) for found in test["per_class"].values() for key in ("precision", "recall", "f1")]
        for found in (*test["curves"].values(), test["macro_curves"]):
            scores += [(found["roc"], "auc"), (found["pr"], "average_precision")]
        for found, key in scores:
            low, high = found[f"{key}_interval"]
            score = rf"(?:{found[key]:.3f}|{found[key]:.4f})\b[^.]{{,40}}?{low:.3f} to {high:.3f}"
            assert re.search(score, said), (key, score)


def test_a_score_that_is_not_defined_has_no_interval(tmp_path: Path) -> None:
    record = made.record_of(made.BINARY)
    record["per_class"]["neg"] |= {"precision": 0.0, "precision_interval": None}
    run = made.evaluated(tmp_path / "undefined", record)
    report.write(run)
    assert re.search(r"\| neg \| [\d.]+ \| 0\.000 \| none \|", read(run))


def test_every_colour_of_a_figure_in_the_page_is_the_pages_own(written: dict[str, Run]) -> None:
    """Else it would not follow the page into the dark."""
    page = read(written["topics"], "report.html")
    drawings = re.findall(r"<svg .*?</svg>", page, flags=re.DOTALL)
    assert drawings
    for drawing in drawings:
        assert re.findall(r"(?:fill|stroke): ?#\w+", drawing) == []
        assert 'id="figure_1"' not in drawing
    for name in style.VARIABLES.values():
        assert page.count(f"--{name}:") == 2  # light and dark


def test_a_long_label_keeps_its_beginning_and_its_end() -> None:
    assert style.in_short(["card payment: fee charged in a shop"]) == ["card paym…n a shop"]
    assert style.in_short(["two\nlines"]) == ["two lines"]


def test_long_labels_that_are_alike_are_told_apart() -> None:
    labels = [f"card payment: {what} in a web shop, case 1" for what in ("fee charged", "not recognised", "pending")]
    assert len(set(style.in_short(labels))) == 3


class _Ids(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attrs if name == "id" and value]


def test_ids_in_the_page_are_unique(written: dict[str, Run]) -> None:
    for run in written.values():
        parser = _Ids()
        parser.feed(read(run, "report.html"))
        assert len(parser.ids) == len(set(parser.ids))


# In a real browser


@dataclass(frozen=True)
class Opened:
    """A page that is open, what it asked for, and what its console said."""

    page: Any
    requests: list[str]
    said: list[str]


@pytest.fixture
def open_page(browser: Any, written: dict[str, Run]) -> Iterator[Callable[..., Opened]]:
    pages = []

    def opened(kind: str, width: int = 1440, scheme: str = "light") -> Opened:
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        pages.append(page)
        found = Opened(page, [], [])
        page.on("console", lambda message: found.said.append(message.text))
        page.on("pageerror", lambda error: found.said.append(str(error)))
        page.route("**/*", lambda route: (found.requests.append(route.request.url), route.continue_()))
        page.goto((written[kind].path / "report.html").as_uri())
        return found

    yield opened
    for page in pages:
        page.close()


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_asks_for_nothing_and_runs_nothing(kind: str, open_page: Callable[..., Opened]) -> None:
    opened = open_page(kind)
    opened.page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    opened.page.wait_for_timeout(100)
    assert len(opened.requests) == 1  # the page itself
    assert opened.said == []
    assert opened.page.title() == f"{kind}: lorafit report"
    assert opened.page.locator("script, img, link, iframe").count() == 0
    assert made.HOSTILE in opened.page.locator(".examples").inner_text()


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("kind", KINDS)
def test_the_page_never_scrolls_sideways(kind: str, width: int, open_page: Callable[..., Opened]) -> None:
    page = open_page(kind, width).page
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= page.evaluate("innerWidth")
    outside = """[...document.querySelectorAll('p, h1, h2, figure, dl, li')]
        .filter(one => one.getBoundingClientRect().right > innerWidth).length"""
    assert page.evaluate(outside) == 0


@pytest.mark.parametrize("width", [390, 1440])
def test_every_figure_is_seen_and_its_text_can_be_read(width: int, open_page: Callable[..., Opened]) -> None:
    page = open_page("topics", width).page
    for figure in page.locator("figure svg").all():
        box = figure.bounding_box()
        assert box["width"] > 300
        assert box["height"] > 150
    sizes = """[...document.querySelectorAll('svg text')].map(one => parseFloat(getComputedStyle(one).fontSize)
        * Math.hypot(one.getScreenCTM().a, one.getScreenCTM().b))"""
    assert min(page.evaluate(sizes)) > 7.5  # pixels


def test_dark_follows_the_reader_and_stays_readable(open_page: Callable[..., Opened]) -> None:
    def contrasts(scheme: str) -> tuple[str, dict[str, float]]:
        page = open_page("binary", scheme=scheme).page
        root = "getComputedStyle(document.documentElement)"
        colours = {
            name: page.evaluate(f"{root}.getPropertyValue('--{name}')").strip() for name in style.VARIABLES.values()
        }
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        if scheme == "light":
            assert colours == {name: colour for colour, name in style.VARIABLES.items()}
        return background, {name: contrast(colour, colours["paper"]) for name, colour in colours.items()}

    (light, on_light), (dark, on_dark) = contrasts("light"), contrasts("dark")
    assert (light, dark) == ("rgb(255, 255, 255)", "rgb(20, 23, 27)")
    for found in (on_light, on_dark):
        assert min(found["ink"], found["muted"]) > 4.5  # WCAG 2.2, 1.4.3: text
        lines = [style.VARIABLES[colour] for colour in (*style.LABELS, style.BASE)]
        assert min(found[name] for name in lines) > 3  # 1.4.11: what a figure says


def contrast(colour: str, other: str) -> float:
    """Return the contrast ratio of two colours (WCAG 2.2), from 1 to 21."""

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(colour), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_those_who_do_not_see_it_are_told_the_same(open_page: Callable[..., Opened]) -> None:
    page = open_page("topics").page
    images = page.get_by_role("img").all()
    assert len(images) == page.locator("figure").count() == 7
    assert all(len(one.get_attribute("aria-label")) > 30 for one in images)
    assert page.locator("table").count() == page.locator("table:has(caption):has(th[scope=col])").count()
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map(one => one.tagName)")
    assert levels == ["H1"] + ["H2"] * (len(levels) - 1)
    assert page.locator("html[lang=en]").count() == 1
    for link in page.locator("nav a").all():
        assert page.locator(f"section{link.get_attribute('href')}").count() == 1


def test_right_to_left_texts_run_right_to_left(open_page: Callable[..., Opened]) -> None:
    page = open_page("intents").page
    hebrew = page.locator(".examples summary", has_text="הסרט").first
    assert hebrew.evaluate("one => getComputedStyle(one).direction") == "rtl"


def test_the_page_prints_light_and_whole(open_page: Callable[..., Opened]) -> None:
    page = open_page("binary", scheme="dark").page
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    folded = page.locator("details .text").first
    assert folded.bounding_box()["height"] > 0
    assert not page.locator(".examples summary").first.is_visible()  # its beginning is not printed twice
    assert page.evaluate("document.documentElement.scrollWidth") <= page.evaluate("innerWidth")
