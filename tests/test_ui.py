"""The page's parts without a browser: what is chosen, kept, begun, watched, and who is let in."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="needs gradio: pip install 'lorafit[ui]'")

import gradio as gr

from lorafit import recipe as recipes
from lorafit import runs, tables
from lorafit.errors import DataError, LorafitError, RunError, StorageError
from lorafit.ui import choice, data, events, jobs, settings, train, uploads, views, watch
from lorafit.ui.choice import Choice
from tests.conftest import Said, mount_small_disk

SECONDS = 90


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in which the page would be started."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def arguments(tiny: Path, reviews: Path, project: Path) -> list[str]:
    """A short training on the tiny encoder."""
    keys = ["encoder.name=" + str(tiny), "training.epochs=1", "training.batch_size=8", "data.max_tokens=64"]
    chosen = Choice(reviews, "text", ("label",))
    return chosen.arguments([*keys, "name=small"])


def wait(until: Callable[[], Any], seconds: float = SECONDS) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.05)


# What is chosen


@pytest.mark.parametrize(
    "chosen",
    [
        Choice(Path("reviews.csv"), "a text", ("label",)),
        Choice(Path("reviews.csv"), "text", ("joy", "fear of 'x'"), ""),
        Choice(Path("pairs.csv"), "one", ("label",), "two"),
        None,
    ],
    ids=["columns", "several labels", "pairs", "bundled"],
)
def test_the_command_makes_the_very_recipe_that_was_chosen(chosen: Choice | None, project: Path) -> None:
    from lorafit.cli.shell import Columns, chosen_recipe

    chosen = chosen or choice.bundled("demo")
    header = "a text,text,label,joy,fear of 'x',one,two\n"
    for name in ("reviews.csv", "pairs.csv"):
        (project / name).write_text(header + "x,a good one,1,1,0,a,b\n" * 3 + "y,a bad one,0,0,1,c,d\n" * 3)
    changes = ["training.epochs=7", "training.thresholds=f1", 'adapter.targets=["query", "value"]']
    words = shlex.split(choice.as_command(chosen.arguments(changes)))
    assert words[:2] == ["lorafit", "train"]
    given: dict[str, list[str]] = {}
    for option, value in zip(words[3::2], words[4::2], strict=True):
        given.setdefault(option, []).append(value)
    columns = Columns(*((given.get(f"--{name}-column") or [None])[0] for name in ("text", "pair", "label")))
    made = chosen_recipe(Path(words[2]), columns, tuple(given["-s"]), small=False)
    assert made == chosen.recipe(changes)
    assert made.training.epochs == 7


def test_every_key_of_a_recipe_is_a_field_or_the_first_steps() -> None:
    import gradio as gr

    with gr.Blocks():
        fields = settings.main_fields() | settings.other_fields()
    keys = {key for key in recipes._PATHS if "." in key or key == "seed"} - {"data"}
    assert set(fields) | {"data.source", "data.text", "data.text_pair", "data.label"} == keys


def test_fields_that_nobody_touched_change_nothing_and_others_what_they_say() -> None:
    for shipped in choice.BUNDLED:
        made = choice.bundled(shipped).recipe()
        keys = [key for key in recipes._PATHS if "." in key]
        shown = dict(zip(keys, settings.shown_values(made, keys), strict=True))
        assert settings.changed(made, shown) == []
        touched = shown | {"adapter.rank": "4", "adapter.targets": "attention", "data.test_source": "x, y.csv"}
        again = choice.bundled(shipped).recipe(settings.changed(made, touched))
        assert (again.adapter.rank, again.adapter.targets, again.data.test_source) == (4, "attention", "x, y.csv")


def test_what_a_reload_finds_again_gives_way_to_what_was_chosen_meanwhile() -> None:
    found = ("found",) * 11
    assert data._if_nothing_chosen(found, None) == found
    for given, chosen in ((found, choice.bundled("demo")), (None, None)):
        assert data._if_nothing_chosen(given, chosen) == (gr.skip(),) * 11


# Uploads


def test_uploads_keep_their_names_and_never_take_anothers_place(project: Path) -> None:
    one, other = (project / name / "reviews.csv" for name in "ab")
    for file, text in ((one, "good"), (other, "bad")):
        file.parent.mkdir()
        file.write_text(f"text,label\n{text},1\n")
    first, table = uploads.keep(one)
    assert (str(first), len(table)) == ("uploads/reviews.csv", 1)
    second, _ = uploads.keep(other)
    assert str(second) == "uploads/reviews-2.csv"
    assert uploads.keep(one)[0] == first  # the same content is not kept twice
    assert [first.read_text(), second.read_text()] == [one.read_text(), other.read_text()]
    assert uploads.is_kept(first)
    assert not uploads.is_kept(Path("uploads/../a/reviews.csv"))
    assert not uploads.is_kept(Path("a/reviews.csv"))


def test_what_is_no_table_is_refused_and_not_kept(project: Path) -> None:
    for name, content in (("x.csv", b"text\n\xff"), ("x.txt", b"hello"), ("x.jsonl", b"[1]\n")):
        (project / name).write_bytes(content)
        with pytest.raises(DataError, match=r"uploads/x"):
            uploads.keep(project / name)
    assert list((project / "uploads").iterdir()) == []


def test_on_a_full_disk_an_upload_is_refused_and_no_half_of_it_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    if not mount_small_disk(disk, kilobytes=64):
        pytest.skip("needs the right to mount a small tmpfs")
    monkeypatch.chdir(disk)
    (tmp_path / "reviews.csv").write_text("text,label\n" + "good,1\n" * 20_000)
    try:
        with pytest.raises(StorageError, match=r"The disk is full: uploads/reviews\.csv could not be written\."):
            uploads.keep(tmp_path / "reviews.csv")
        assert list(uploads.FOLDER.iterdir()) == []
    finally:
        monkeypatch.undo()
        subprocess.run(["umount", str(disk)], check=True)


# Jobs


def test_a_job_trains_and_is_found_by_its_name(arguments: list[str]) -> None:
    jobs.begin("small", arguments, fresh=True)
    with pytest.raises(RunError, match="is being worked on already"):
        jobs.begin("small", arguments)
    assert watch.look("small").state in ("starting", "training")
    assert watch.names() == ["small"]
    wait(lambda: watch.look("small").state == "finished")
    watched = watch.look("small")
    assert watched.sentence.startswith("Trained in ")
    assert watched.step == watched.steps == 18
    assert len(watched.losses) == 18
    assert sorted(set(watched.scores["epoch"])) == [0, 1]
    assert jobs.free_name("small") == "small-2"
    with pytest.raises(RunError, match="is there already"):
        jobs.begin("small", arguments, fresh=True)
    assert watch.open_named("small").finished


@pytest.mark.slow
def test_a_refusal_is_the_command_lines_sentence_and_frees_the_name(arguments: list[str]) -> None:
    broken = [word.replace("max_tokens=64", "max_tokens=100000") for word in arguments]
    jobs.begin("small", broken, fresh=True)
    wait(lambda: watch.look("small").state == "failed")
    done = subprocess.run([sys.executable, "-m", "lorafit", *broken], capture_output=True, text=True)
    assert done.returncode == 2
    assert f"Error: {watch.look('small').sentence}" in done.stderr
    with pytest.raises(LorafitError) as error:
        jobs.estimate(broken)
    assert str(error.value) == watch.look("small").sentence
    assert jobs.free_name("small") == "small"


def test_an_estimate_says_what_a_dry_run_says(arguments: list[str]) -> None:
    said = jobs.estimate(arguments)
    assert said[-1].startswith("Training: ")
    assert "18 steps" in said[-1]
    assert not Path("runs/small/run.json").exists()


@pytest.mark.slow
def test_trainings_take_turns_and_one_that_waits_can_be_stopped(arguments: list[str]) -> None:
    long = [word.replace("epochs=1", "epochs=500") for word in arguments]
    first = jobs.begin("first", [*long, "-s", "name=first"])
    wait(lambda: watch.look("first").step > 2)
    second = jobs.begin("second", [*arguments, "-s", "name=second"])
    third = jobs.begin("third", [*arguments, "-s", "name=third"])
    wait(lambda: watch.look("second").state == "waiting")
    assert "runs/first is being worked on" in watch.look("second").sentence
    assert next(job.name for job in jobs.under_way()) == "first"
    third.stop()
    wait(lambda: third.state == "ended")
    assert (watch.look("third").state, watch.look("third").can_resume) == ("stopped", False)
    assert watch.look("third").sentence == "Stopped before the first step."
    first.stop()
    wait(lambda: watch.look("first").state == "stopped")
    assert watch.look("first").can_resume
    wait(lambda: watch.look("second").state == "finished")
    assert second.state == "ended"


@pytest.mark.slow
def test_a_killed_training_is_told_and_can_be_gone_on_with(arguments: list[str]) -> None:
    long = [word.replace("epochs=1", "epochs=500") for word in arguments]
    job = jobs.begin("small", long)
    wait(lambda: watch.look("small").step > 30)
    os.kill(job.pid, signal.SIGKILL)
    wait(lambda: job.state == "ended")
    watched = watch.look("small")
    assert watched.state == "failed"
    assert "The process broke off" in watched.sentence
    assert watched.can_resume
    before = watched.step
    jobs.begin("small", ["train", "--resume", "runs/small"])
    wait(lambda: watch.look("small").step > before)
    jobs.find("small").stop()  # type: ignore[union-attr]
    wait(lambda: watch.look("small").state == "stopped")


@pytest.mark.slow
def test_a_run_of_the_command_lines_own_is_watched_and_left_alone(arguments: list[str]) -> None:
    long = [word.replace("epochs=1", "epochs=500") for word in arguments]
    with subprocess.Popen([sys.executable, "-m", "lorafit", *long], stderr=subprocess.DEVNULL) as process:
        wait(lambda: Path("runs/small/history.jsonl").exists())
        watched = watch.look("small")
        assert watched.state == "elsewhere"
        assert not watched.can_stop
        assert not watched.can_resume
        process.terminate()
    assert watch.look("small").state == "stopped"
    assert watch.look("small").can_resume


def test_two_visitors_cannot_begin_the_same_at_once(arguments: list[str]) -> None:
    outcomes: list[str] = []

    def begin() -> None:
        try:
            jobs.begin("small", arguments)
            outcomes.append("begun")
        except RunError:
            outcomes.append("refused")

    threads = [threading.Thread(target=begin) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["begun", "refused", "refused", "refused"]
    found = jobs.find("small")
    assert found is not None
    found.stop()
    wait(lambda: found.state == "ended")


@pytest.mark.parametrize(
    ("name", "setting"), [("reviews-2", "name=reviews-2"), ("2024", 'name="2024"'), ("true", 'name="true"')]
)
def test_a_name_is_a_name_whatever_toml_takes_it_for(name: str, setting: str) -> None:
    chosen = choice.bundled("demo")
    (found,) = train._changes(chosen, name, {})
    assert found == setting
    assert chosen.recipe([found]).name == name


@pytest.mark.parametrize("name", ['"reviews"', '"a" # /../../b', "../x", "a/b", "", "x" * 300])
def test_a_name_that_is_no_folders_is_refused(name: str, project: Path) -> None:
    with pytest.raises(LorafitError):
        train._begun(choice.bundled("demo"), name, {})
    assert not (project / "runs").exists() or not list((project / "runs" / ".page").glob("*.json"))


def test_overlapping_looks_at_files_do_not_change_what_is_refused(project: Path) -> None:
    (project / "wide.csv").write_text("text,label\n" + "a,b,c\n" * 200)
    (project / "good.csv").write_text("text,label\n" + "a,b\n" * 50_000)
    refused: list[bool] = []

    def read(name: str) -> None:
        for _ in range(10):
            try:
                tables.read(project / name)
            except DataError:
                refused.append(name == "wide.csv")

    threads = [threading.Thread(target=read, args=(name,)) for name in ("wide.csv", "good.csv") * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused == [True] * 20


@pytest.mark.parametrize("name", ["../small", "/etc", "", None, "small/../small", "..", ".page"])
def test_names_that_a_browser_makes_up_open_nothing(name: str | None, project: Path) -> None:
    for folder in (project / "small", project / "runs" / "small"):
        folder.mkdir(parents=True)
        (folder / "run.json").write_text("{}")
    assert watch.is_known("small")
    assert not watch.is_known(name)
    with pytest.raises(RunError):
        watch.open_named(name)


def test_a_run_under_any_name_is_listed_and_opened(trained: Path, project: Path) -> None:
    (project / "runs").mkdir()
    (project / "runs" / "my run").symlink_to(trained)
    assert watch.names() == ["my run"]
    assert watch.look("my run").state == "finished"
    assert watch.is_known("my run")
    assert watch.open_named("my run").finished


def test_an_evaluation_that_breaks_off_says_so(trained: Path, project: Path) -> None:
    from lorafit.ui import compare

    shutil.copytree(trained, project / "runs" / "tiny")
    (project / "runs" / "tiny" / "scores.json").unlink()
    job = jobs.begin("tiny", ["evaluate", "runs/tiny"])
    wait(lambda: job.state == "working")
    os.kill(job.pid, signal.SIGKILL)
    wait(lambda: job.state == "ended")
    assert "The process broke off" in compare._why_not(runs.Run(Path("runs/tiny")))


@pytest.mark.parametrize(
    ("wanted", "found"),
    [("a", "a-3"), ("a-2", "a-3"), ("new", "new"), ("survey-2026", "survey-2026-2"), ("-1", "-1-2")],
)
def test_a_name_that_is_taken_counts_on(wanted: str, found: str, project: Path) -> None:
    for name in ("a", "a-2", "survey-2026", "-1"):
        (project / "runs" / name).mkdir(parents=True)
    assert jobs.free_name(wanted) == found


def test_the_same_settings_are_not_trained_twice_at_once() -> None:
    one = ["train", "a.csv", "-s", "training.epochs=2"]
    assert train._without_name([*one, "-s", "name=a-2"]) == train._without_name(["train", "a.csv", *one[2:]]) == one
    assert train._without_name(["train", "a.csv", "-s", "name=b", "-s", "training.epochs=3"]) != one
    assert train._without_name(["train", "name=a.csv"]) == ["train", "name=a.csv"]


def test_what_breaks_in_a_step_is_said_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> None:
        raise KeyError("accuracy")

    with pytest.raises(gr.Error, match=r"Something went wrong that should not \(KeyError\)\."):
        events.event(broken, None, None)["fn"]()
    assert "KeyError: 'accuracy'" in capsys.readouterr().err


def test_damaged_files_of_a_run_are_told(trained: Path, project: Path) -> None:
    folder = project / "runs" / "tiny"
    folder.mkdir(parents=True)
    for name in ("run.json", "recipe.toml", "history.jsonl"):
        (folder / name).write_bytes((trained / name).read_bytes())
    assert watch.look("tiny").state == "finished"
    (folder / "history.jsonl").write_text("{\n")
    assert watch.look("tiny").state == "failed"
    assert "history.jsonl can't be read" in watch.look("tiny").sentence


def test_what_others_wrote_is_text_on_the_page(trained: Path) -> None:
    evil = "<img src=x onerror=alert(1)>"
    watched = watch.Watched(evil, "training", evil, [evil])
    answer = {"label": evil, f"{evil}_prob": 1.0, "text": evil}
    for shown in (
        views.note(evil),
        views.refused(evil),
        views.sentences([evil]),
        views.status(watched),
        views.answer([evil], answer, answer),
    ):
        assert "<img" not in shown
        assert "&lt;img" in shown
    assert "\ufffd" in views.note("half a character: \ud83d")  # which no browser could be told
    shown = views.report(runs.Run(trained))
    assert "&lt;html" in shown  # all of it stands in the frame's own attribute
    assert "<html" not in shown


def test_answers_to_pairs_show_both_texts() -> None:
    answer = {"text": "one", "text_pair": "other", "a_prob": 0.25, "b_prob": 0.75, "labels": ["b"]}
    shown = views.answers(["a", "b"], [answer, answer | {"labels": []}])
    cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", shown)
    assert cells[:5] == ["label", "text", "second text", "a", "b"]
    assert cells[5:] == ["b", "one", "other", "25.0%", "75.0%", "no label", "one", "other", "25.0%", "75.0%"]


# The server


def ask(url: str, headers: dict[str, str] | None = None, data: bytes | None = None) -> tuple[int, str, Any]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers or {}), timeout=20) as answer:
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., tuple[str, Path]]]:
    """Start a page's server in a folder of its own; returns where it is, and the folder."""
    begun: list[subprocess.Popen[bytes]] = []

    def started(*options: str) -> tuple[str, Path]:
        folder, log = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("log") / "said"
        command = [sys.executable, "-m", "lorafit", "ui", "--port", "0", *options]
        with log.open("wb") as said:  # a pipe that nobody reads would stop it when it is full
            begun.append(subprocess.Popen(command, cwd=folder, stderr=said))
        wait(lambda: "Ctrl-C" in log.read_text() or begun[-1].poll() is not None)
        assert log.read_text().startswith("The page is at http://127.0.0.1:"), log.read_text()
        return log.read_text().split(";")[0].removeprefix("The page is at "), folder

    yield started
    for process in begun:
        process.terminate()
        assert process.wait(60) is not None


def test_only_this_machine_is_answered_and_nothing_comes_from_elsewhere(serve: Callable[..., Any]) -> None:
    url, folder = serve()
    status, page, headers = ask(url)
    assert status == 200
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    assert "lorafit" in page
    assert ask(url, {"Host": "evil.example"})[0] == 400  # a name that somebody lets point here
    (folder / "runs").mkdir()
    (folder / "runs" / "secret.txt").write_text("not for browsers")
    for path in ("runs/secret.txt", folder / "runs" / "secret.txt", "/etc/passwd", "uploads/../runs/secret.txt"):
        status, said, _ = ask(f"{url}/gradio_api/file={path}")
        assert status in (403, 404)
        assert "not for browsers" not in said
    assert 'analytics_enabled":false' in page.replace(" ", "")


def test_no_event_hands_out_a_file_of_the_machines(serve: Callable[..., Any]) -> None:
    """A browser may say of any value that it is an uploaded file."""
    url, folder = serve()
    (folder / "secret.txt").write_text("not for browsers")
    config = json.loads(ask(f"{url}/config")[1])
    forged = {"path": str(folder / "secret.txt"), "meta": {"_type": "gradio.FileData"}}
    asked = 0
    for dependency in config["dependencies"]:
        if dependency["backend_fn"] and dependency["inputs"]:
            data = [{"x": forged}] + [forged] * (len(dependency["inputs"]) - 1)
            body = json.dumps({"data": data, "fn_index": dependency["id"], "session_hash": "s"}).encode()
            asked += ask(f"{url}/gradio_api/queue/join", {"Content-Type": "application/json"}, body)[0] == 200
    assert asked > 10
    time.sleep(3)  # they are answered meanwhile
    assert list(folder.rglob("secret.txt")) == [folder / "secret.txt"]


def test_what_lies_elsewhere_is_not_handed_out_as_if_it_were_the_pages_own(serve: Callable[..., Any]) -> None:
    """Gradio would fetch it, and a page that it gets so could do here what we can."""
    url, _ = serve()
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.settimeout(1)
        there = f"127.0.0.1:{elsewhere.getsockname()[1]}/x.png"
        for asked in (f"file=http://{there}", f"file=https://{there}", f"file=http:/{there}", f"proxy=http://{there}"):
            for path in (asked, urllib.parse.quote(asked, safe="=")):
                assert ask(f"{url}/gradio_api/{path}")[0] in (403, 404), path
        with pytest.raises(TimeoutError):
            elsewhere.accept()  # nobody has asked there


def test_pages_of_other_sites_ask_nothing(serve: Callable[..., Any]) -> None:
    url, folder = serve()
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.csv"\r\n\r\na\r\n--x--'
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    for origin in ("https://evil.example", "null", url.replace("http", "https") + "0"):
        status, said, headers = ask(f"{url}/gradio_api/upload", kind | {"Origin": origin}, body)
        assert (status, said) == (403, "This page answers itself only.")
        assert headers["Access-Control-Allow-Origin"] is None
    assert list(folder.rglob("a.csv")) == []
    assert ask(f"{url}/gradio_api/upload", kind | {"Origin": url}, body)[0] == 200


def test_an_upload_that_is_too_large_is_refused(serve: Callable[..., Any]) -> None:
    url, folder = serve("--max-upload-mb", "1")
    body = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.csv"\r\n\r\n'
        + b"a" * 1_100_000
        + b"\r\n--x--"
    )
    status, said, _ = ask(f"{url}/gradio_api/upload", {"Content-Type": "multipart/form-data; boundary=x"}, body)
    assert status == 413
    assert "maximum allowed size" in said
    assert [file for file in folder.rglob("*") if file.is_file()] == []


def test_a_password_is_asked_for(serve: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "password").write_text("a long enough one\n")
    url, _ = serve("--password-file", str(tmp_path / "password"))
    assert ask(f"{url}/config")[0] == 401
    assert ask(f"{url}/gradio_api/upload", data=b"")[0] == 401

    def log_in(password: str, name: str = "me") -> tuple[int, str]:
        status, _, headers = ask(f"{url}/login", data=f"username={name}&password={password}".encode())
        return status, str(headers["Set-Cookie"])

    start = time.monotonic()
    assert log_in("a wrong one")[0] == 400
    assert time.monotonic() - start > 0.9
    with ThreadPoolExecutor(4) as many:  # at once they take as long as one by one
        start = time.monotonic()
        assert {status for status, _ in many.map(log_in, ["a wrong one"] * 4)} == {400}
        assert time.monotonic() - start > 3.9
    assert log_in("a+long+enough+one", name="")[0] == 400  # of which the form says that it is wrong
    status, cookie = log_in("a+long+enough+one")
    assert status == 200
    assert ask(f"{url}/config", {"Cookie": cookie.split(";")[0]})[0] == 200
    assert ask(f"{url}/config", {"Cookie": cookie.split("=")[0] + "=guessed"})[0] == 401


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--host", "0.0.0.0"], "0.0.0.0 can be reached from other machines, and there is no password"),
        (["--password-file", "none"], "none can't be read: no such file"),
        (["--password-file", "short"], "fewer than 8 characters"),
        (["--password-file", "bytes"], "bytes holds no password: it is not UTF-8."),
        (["--host", "192.0.2.1", "--password-file", "good"], "192.0.2.1:7860 can't be listened on"),
    ],
)
def test_unsafe_and_impossible_starts_are_refused(
    options: list[str], sentence: str, cli: Callable[..., Said], tmp_path: Path
) -> None:
    (tmp_path / "short").write_text("secret")
    (tmp_path / "good").write_text("a long enough one")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe long enough")
    said = cli("ui", *options)
    assert said.code == 2
    assert sentence in said.err
    assert len(said.err.strip().splitlines()) == 1


def test_without_the_extra_it_says_what_to_install(cli: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("lorafit.ui")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    said = cli("ui")
    assert (said.code, said.out) == (2, "")
    assert said.err.strip() == "Error: The page is not installed. Install it with: pip install 'lorafit[ui]'"
