"""The Dockerfile and docs/serve.md are true to the service; the Dockerfile's steps lead to one that answers."""

import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import textwrap
import urllib.request
from pathlib import Path

import pytest

from lorafit.cli import service
from lorafit.serve import Limits
from lorafit.serve.journal import Figures
from tests import dockerfile

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")


def test_the_dockerfile_has_no_faults() -> None:
    assert dockerfile.faults(dockerfile.read(TEXT), ROOT) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("FROM python:3.11-slim\n", "", "It does not begin with FROM."),
        ("python:3.11-slim", "python", "python names no version."),
        ("EXPOSE 8000", "EXPOSED 8000", "there is no instruction EXPOSED."),
        ("EXPOSE 8000", "EXPOSE 8080", "It listens on 8000, and EXPOSE says 8080."),
        ("ARG EXTRAS=serve\n", "", "EXTRAS is not declared."),
        ("COPY recipes recipes", "COPY recipe recipes", "there is no recipe to copy."),
        ("COPY recipes recipes", "COPY tests tests", ".dockerignore leaves tests out."),
        ("USER 10001:10001\n", "", "It runs as root."),
        ("USER 10001:10001", "USER root", "It runs as root."),
        ('ENTRYPOINT ["lorafit", "serve"]', "ENTRYPOINT lorafit serve", "is no list"),
        ('"serve"]', '"server"]', "There is no command lorafit server."),
        ("--api-key-file", "--api-keys", "--api-keys"),
        ('"/adapters/main"]', '"--port", "0"]', "bundles"),
        ("'/health'", "'/healthy'", "HEALTHCHECK does not ask /health"),
        ("'127.0.0.1', 8000", "'127.0.0.1', 9000", "HEALTHCHECK does not ask port 8000."),
    ],
)
def test_each_fault_of_a_dockerfile_is_found(old: str, new: str, said: str) -> None:
    assert old in TEXT
    assert said in "\n".join(dockerfile.faults(dockerfile.read(TEXT.replace(old, new)), ROOT))


def test_the_context_holds_no_runs_keys_or_environments(tmp_path: Path) -> None:
    shutil.copyfile(ROOT / ".dockerignore", tmp_path / ".dockerignore")
    kept = ("constraints.txt", "src/lorafit/serve/app.py", "recipes/demo.toml")
    for name in (*kept, "keys", ".git/config", ".venv/bin/python", "runs/demo/run.json", "src/x/__pycache__/y.pyc"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert {str(file) for file in dockerfile.in_context(tmp_path, ".")} == set(kept)


def test_what_the_service_is_installed_from_is_in_the_context() -> None:
    source = {str(file) for file in dockerfile.in_context(ROOT, "src")}
    assert {"src/lorafit/padfree/native/kernels.cpp", "src/lorafit/report/page.html"} <= source


def test_steps_are_run_as_they_would_be_in_an_image(tmp_path: Path) -> None:
    context = tmp_path / "context"
    (context / "code" / "deep").mkdir(parents=True)
    for name in ("one", "code/two", "code/deep/three", "secret"):
        (context / name).write_text(name)
    (context / ".dockerignore").write_text("secret\n")
    text = """
        FROM python:3.11
        ARG WHO=nobody
        ENV CACHE=/cache LEVEL="4"
        RUN apt-get install something
        WORKDIR /here
        COPY one code ./
        COPY code taken
        RUN mkdir $CACHE && echo "$WHO $LEVEL" > $CACHE/said ${NOTHING:+--never} && \\
            python -c "import sys; print(sys.prefix)" >> $CACHE/said
        ENTRYPOINT ["python", "-c", "1"]
    """
    steps = dockerfile.read(textwrap.dedent(text))
    image = dockerfile.build(steps, context, tmp_path / "image", {"WHO": "me"})
    assert image.skipped == ["apt-get install something"]
    assert image.inside("/cache/said").read_text().split() == ["me", "4", str(image.inside("/usr/local"))]
    found = {
        str(file.relative_to(image.inside("/here"))) for file in image.inside("/here").rglob("*") if file.is_file()
    }
    assert found == {"one", "two", "deep/three", "taken/two", "taken/deep/three"}
    assert image.program(image.entrypoint) == [str(image.inside("/usr/local/bin/python")), "-c", "1"]


def test_the_page_of_the_service_has_its_limits_as_they_are() -> None:
    limits = Limits()
    rows = dict(re.findall(r"^\| `--([a-z-]+)`.*?\| ([\d,]+)", PAGE, flags=re.MULTILINE))
    assert {name: int(default.replace(",", "")) for name, default in rows.items()} == {
        "max-body-bytes": limits.body_bytes,
        "max-texts": limits.texts,
        "max-tokens": limits.tokens,
        "max-queue": limits.queue_texts,
        "timeout": limits.seconds,
    }
    offered = inspect.signature(service.serve).parameters
    assert {name: offered[name.replace("-", "_")].default for name in rows} == {
        name: float(default.replace(",", "")) for name, default in rows.items()
    }
    assert re.findall(r"client_max_body_size (\d+);", PAGE) == [str(limits.body_bytes)]
    assert [int(seconds) > limits.seconds for seconds in re.findall(r"proxy_read_timeout (\d+)s", PAGE)] == [True]
    grace, sleep = re.search(r"GracePeriodSeconds: (\d+)", PAGE), re.search(r'\[sleep, "(\d+)"\]', PAGE)
    assert grace
    assert sleep
    assert int(grace[1]) > int(sleep[1]) + limits.seconds + 5


def test_the_page_of_the_service_names_figures_that_there_are() -> None:
    exposed = Figures().exposition()[0].decode()
    there = set(re.findall(r"^# TYPE (lorafit_\w+)", exposed, flags=re.MULTILINE))
    promql = re.findall(r"```promql\n(.*?)```", PAGE, flags=re.DOTALL)[0]
    named = {name.removesuffix("_bucket") for name in re.findall(r"lorafit_\w+", promql)}
    assert len(named) == 4
    assert named <= there


def test_the_page_of_the_service_gives_options_that_there_are() -> None:
    """In its commands, and as Kubernetes hands them over."""
    listed = re.findall(r"^ +args: \[(.*)\]$", PAGE, flags=re.MULTILINE)
    commands = [line.replace(",", " ").replace('"', "") for line in listed]
    commands += re.findall(r"(?:^\$ |`)lorafit serve ([^`\n]+)", PAGE, flags=re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        assert dockerfile.asked_of_the_service(command.split())["bundles"]


@pytest.mark.soak
def test_the_steps_of_the_dockerfile_lead_to_a_service_that_answers(tmp_path: Path, tiny: Path) -> None:
    """Its pip lines are run in a fresh environment, from the index that pip is set to; TORCH_INDEX names another."""
    from untrained import write_bundle

    from lorafit import encoders

    steps = dockerfile.read(TEXT)
    arguments = {"TORCH_INDEX": os.environ.get("TORCH_INDEX", "")}
    image = dockerfile.build(steps, ROOT, tmp_path / "image", arguments)
    assert [re.findall("apt-get|useradd", step)[0] for step in image.skipped] == ["apt-get", "useradd"]

    main = write_bundle(tmp_path / "adapters" / "main", encoders.locate(str(tiny)), ["no", "yes"])
    keys = tmp_path / "keys"
    keys.write_text("a-key-of-the-test-alone\n")
    # As CMD has it, and an encoder that this machine does not know.
    options = ["--host", "0.0.0.0", "--api-key-file", keys, "--adapters-dir", main.parent, main]
    service = subprocess.Popen(
        [*image.program(image.entrypoint), *map(str, options), "--port", "0", "--encoder", str(tiny)],
        cwd=image.inside("/cache"),
        env=image.environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert service.stderr is not None
        said = []
        while '"listening"' not in (line := service.stderr.readline()):
            said.append(line)
            assert line, "".join(said)
        port = json.loads(line)["url"].rpartition(":")[2]
        health = [word.replace("8000", port) for word in image.program(image.health)]
        assert subprocess.run(health, env=image.environment).returncode == 0
        asked = urllib.request.Request(
            f"http://127.0.0.1:{port}/predict",
            json.dumps({"texts": ["the film was good"]}).encode(),
            {"Authorization": "Bearer a-key-of-the-test-alone", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(asked, timeout=60) as answer:
            assert json.load(answer)["predictions"][0]["label"] in ("no", "yes")
        service.send_signal(signal.SIGTERM)
        service.stderr.read()
        assert service.wait(60) == 0
        assert subprocess.run(health, env=image.environment, stderr=subprocess.DEVNULL).returncode != 0
    finally:
        service.kill()
