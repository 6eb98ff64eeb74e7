"""Encoders and data sets from a Hub: a small HTTP server on loopback, through huggingface_hub's own client."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from lorafit import data, encoders
from lorafit.errors import DataError, HubError
from tests.conftest import Said, make_tiny_encoder, texts_and_labels
from tests.hub_server import HubServer

Cli = Callable[..., Said]
ROOT = Path(__file__).parents[1]

_CARD = """---
configs:
- config_name: plain_text
  default: true
  data_files:
  - split: train
    path: plain_text/train-*
  - split: test
    path: plain_text/test-*
dataset_info:
  config_name: plain_text
  features:
  - name: text
    dtype: string
  - name: label
    dtype:
      class_label:
        names:
          '0': neg
          '1': pos
---
"""


def publish_imdb(hub: HubServer, train: int, test: int) -> None:
    """Publish a data set in the very shape of stanfordnlp/imdb."""
    folder = hub.folder("datasets", "stanfordnlp/imdb")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "plain_text").mkdir(parents=True)
    (folder / "README.md").write_text(_CARD)
    texts, labels = texts_and_labels(train + test)
    for name, part in (("train", slice(0, train)), ("test", slice(train, None))):
        table = pd.DataFrame({"text": texts[part], "label": labels[part]})
        table.to_parquet(folder / "plain_text" / f"{name}-00000-of-00001.parquet", index=False)


@pytest.fixture(scope="module")
def published(hub: HubServer) -> HubServer:
    for name in ("bert-base-cased", "bert-base-uncased", "acme/tiny"):
        make_tiny_encoder(hub.folder("models", name))
    (hub.folder("models", "acme/tiny") / "pytorch_model.bin").write_bytes(b"a pickle that must not travel")
    publish_imdb(hub, 300, 200)
    return hub


def test_an_encoder_is_fetched_once_and_then_nothing_is_asked(
    published: HubServer, capfd: pytest.CaptureFixture[str]
) -> None:
    files = encoders.locate("hub:acme/tiny")
    assert (files.hub_id, files.revision) == ("acme/tiny", published.revision("models", "acme/tiny"))
    assert not (files.folder / "pytorch_model.bin").exists()
    asked = len(published.requests)
    assert encoders.locate("hub:acme/tiny") == files
    assert encoders.locate(f"hub:acme/tiny@{files.revision}").folder == files.folder
    assert len(published.requests) == asked
    encoders.locate("hub:acme/tiny", refresh=True)
    assert len(published.requests) > asked
    assert "hub:acme/tiny is cached; nothing new was fetched." in capfd.readouterr().err


_REFUSING = """
import os, sys

def refuse(event, arguments):
    if event in {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg"}:
        with open(os.environ["ATTEMPTS"], "a") as file:
            print(event, arguments[1:], file=file)
        raise OSError("the network is refused")

sys.addaudithook(refuse)
"""
_FLOW = """
import sys
from lorafit.cli import main

recipe, *settings = sys.argv[1:]
flow = ["prepare", recipe], ["train", recipe, "--out", "run"], ["evaluate", "run"], ["predict", "run", "a good film"]
for command in flow:
    sys.argv = ["lorafit", *command, *(settings if recipe in command else [])]
    try:
        main()
    except SystemExit as left:
        assert not left.code, command
"""


def _with_the_network_refused(folder: Path, arguments: list[str]) -> list[str]:
    """Run Python in a process whose every attempt at the network fails; returns the attempts."""
    (folder / "sitecustomize.py").write_text(_REFUSING)  # child processes have it too
    attempts = folder / "attempts.txt"
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "ATTEMPTS": str(attempts), "HF_HUB_DISABLE_TELEMETRY": ""}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return attempts.read_text().splitlines() if attempts.exists() else []


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["bundled:minilm", "hub:acme/tiny"])
def test_with_the_network_refused_what_is_bundled_or_cached_runs_and_nothing_tries_to_connect(
    encoder: str, published: HubServer, tmp_path: Path
) -> None:
    if encoder.startswith("hub:"):
        encoders.locate(encoder)
    sizes = {"train_size": 40, "validation_size": 20, "test_size": 20, "max_tokens": 64}
    settings = [f"data.{key}={value}" for key, value in sizes.items()] + ["training.epochs=1", "encoder.precision=fp32"]
    flags = [flag for setting in (*settings, f"encoder.name={encoder}") for flag in ("-s", setting)]
    recipe = str(ROOT / "recipes" / "demo.toml")
    assert _with_the_network_refused(tmp_path, ["-c", _FLOW, recipe, *flags]) == []
    assert (tmp_path / "run" / "report.md").is_file()


def test_an_attempt_to_connect_would_be_seen(tmp_path: Path) -> None:
    connect = "import socket\ntry: socket.create_connection(('127.0.0.1', 9))\nexcept OSError as error: print(error)"
    assert _with_the_network_refused(tmp_path, ["-c", connect])


def test_half_an_encoder_in_the_cache_is_completed(published: HubServer) -> None:
    files = encoders.locate("hub:acme/tiny")
    (files.folder / "model.safetensors").unlink()
    assert (encoders.locate("hub:acme/tiny").folder / "model.safetensors").is_file()


def test_what_the_hub_does_not_have_is_said(published: HubServer) -> None:
    with pytest.raises(HubError, match="The Hub has no encoder 'acme/none', or it is private"):
        encoders.locate("hub:acme/none")
    with pytest.raises(HubError, match="hub:acme/tiny has no revision 'v9'"):
        encoders.locate("hub:acme/tiny@v9")
    with pytest.raises(HubError, match="is no name of a repository on the Hub"):
        encoders.locate("hub:a/b/c")


def test_an_encoder_without_safetensors_is_refused(published: HubServer) -> None:
    folder = make_tiny_encoder(published.folder("models", "acme/pickled"))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(HubError, match="hub:acme/pickled does not hold what an encoder needs"):
        encoders.locate("hub:acme/pickled")


def test_a_data_set_keeps_its_splits_and_its_label_names(published: HubServer) -> None:
    train = data.open_source("hub:stanfordnlp/imdb")
    assert (len(train.table), train.label_names) == (300, {"label": ["neg", "pos"]})
    test = data.clean(data.open_source("hub:stanfordnlp/imdb", split="test"))
    assert (len(test), test.labels) == (200, ["neg", "pos"])
    with pytest.raises(DataError, match="has no split 'tset'; its splits are train, test. Did you mean 'test'"):
        data.open_source("hub:stanfordnlp/imdb", split="tset")


def test_a_data_set_of_several_labels_a_text_keeps_their_names(published: HubServer) -> None:
    """In the shape of go_emotions: a list of label numbers a text."""
    folder = published.folder("datasets", "acme/emotions")
    folder.mkdir(parents=True, exist_ok=True)
    one_label = "    dtype:\n      class_label:\n        names:\n          '0': neg\n          '1': pos\n"
    list_of_labels = "    list:\n      class_label:\n        names:\n          '0': neg\n          '1': pos\n"
    (folder / "README.md").write_text(_CARD.replace(one_label, list_of_labels).replace("plain_text/train", "train"))
    table = pd.DataFrame({"text": ["a", "b", "c"], "label": [[0], [0, 1], []]})
    table.to_parquet(folder / "train-00000-of-00001.parquet", index=False)
    (folder / "plain_text").mkdir(exist_ok=True)
    table.to_parquet(folder / "plain_text" / "test-00000-of-00001.parquet", index=False)
    read = data.clean(data.open_source("hub:acme/emotions"))
    assert (read.labels, read.label_ids.tolist()) == (["neg", "pos"], [[1, 0], [1, 1], [0, 0]])


def publish_labels(hub: HubServer, repo: str, names: list[str], label_ids: list[object]) -> None:
    """Publish the texts a, b, c, ... with labels that are numbers, and these names for them."""
    folder = hub.folder("datasets", repo)
    (folder / "plain_text").mkdir(parents=True, exist_ok=True)
    listed = "".join(f"          '{number}': '{name}'\n" for number, name in enumerate(names))
    card = _CARD.replace("          '0': neg\n          '1': pos\n", listed)
    (folder / "README.md").write_text(card)
    table = pd.DataFrame({"text": list("abcdefgh")[: len(label_ids)], "label": label_ids})
    for split in ("train", "test"):
        table.to_parquet(folder / "plain_text" / f"{split}-00000-of-00001.parquet", index=False)


def test_numbers_of_a_data_set_are_its_own_names_whatever_the_training_or_the_names_say(published: HubServer) -> None:
    publish_labels(published, "acme/swapped", ["pos", "neg"], [0, 1])
    swapped = data.open_source("hub:acme/swapped")
    for given in ({"known": ["neg", "pos"]}, {"labels": ["neg", "pos"]}):
        assert data.clean(swapped, **given).label_ids.tolist() == [1, 0]
    publish_labels(published, "acme/stars", ["1", "0"], [0, 1, 1])
    stars = data.clean(data.open_source("hub:acme/stars"))
    assert [stars.labels[label_id] for label_id in stars.label_ids] == ["1", "0", "0"]
    publish_labels(published, "acme/unknown", ["1", "2"], [0, 1, -1])
    with pytest.raises(DataError, match=r"1 of 3 rows have no label in column 'label' .row 3,"):
        data.clean(data.open_source("hub:acme/unknown"))


def _offline(tmp_path: Path, arguments: list[str], hf_home: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process whose Hub does not answer."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    environment = os.environ | {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": hf_home, "COLUMNS": "200"}
    command = [sys.executable, "-m", "lorafit", *arguments]
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)


def test_without_a_network_what_was_fetched_runs_and_the_rest_says_what_to_do(
    published: HubServer, cli: Cli, tmp_path: Path
) -> None:
    made = tmp_path / "offline.toml"
    made.write_text(
        '[data]\nsource = "hub:stanfordnlp/imdb"\ntest_source = "split:test"\nmax_tokens = 64\ntest_size = 50\n'
        'train_size = 100\nvalidation_size = 50\n[encoder]\nname = "hub:acme/tiny"\n[training]\nepochs = 1\n'
    )
    fetched = cli("fetch", made)
    assert fetched.code == 0, fetched.err
    assert _offline(tmp_path, ["train", str(made)], os.environ["HF_HOME"]).returncode == 0
    for source in ("data.source=hub:acme/other", "encoder.name=hub:acme/other"):
        said = _offline(tmp_path, ["train", str(made), "-s", source, "--out", "runs/other"], os.environ["HF_HOME"])
        assert said.returncode == 2, said.stderr
        assert "hub:acme/other is not in the cache, and the Hub can't be reached. Run" in said.stderr
        assert "`lorafit fetch RECIPE` once" in said.stderr
        assert "bundled:" in said.stderr
        assert "Traceback" not in said.stderr


def test_the_official_splits_of_a_data_set_are_used_as_they_are(
    published: HubServer, cli: Cli, tmp_path: Path, tiny: Path
) -> None:
    """Train, validation and test on the Hub, and a text of each in the one before."""
    folder = published.folder("datasets", "acme/official")
    (folder / "plain_text").mkdir(parents=True)
    of_validation = "  - split: test\n", "  - split: validation\n    path: plain_text/validation-*\n  - split: test\n"
    (folder / "README.md").write_text(_CARD.replace(*of_validation))
    texts, labels = texts_and_labels(120)
    for name, rows in (("train", slice(0, 81)), ("validation", slice(80, 101)), ("test", slice(100, 120))):
        table = pd.DataFrame({"text": texts[rows], "label": labels[rows]})
        table.to_parquet(folder / "plain_text" / f"{name}-00000-of-00001.parquet", index=False)
    made = tmp_path / "official.toml"
    made.write_text(
        '[data]\nsource = "hub:acme/official"\nvalidation_source = "split:validation"\ntest_source = "split:test"\n'
        f'max_tokens = 64\n[encoder]\nname = "{tiny}"\n'
    )
    fetched = cli("fetch", made)
    assert "Validation data: hub:acme/official, split validation, 21 rows" in fetched.err
    said = cli("prepare", made, "--quiet")
    assert [line.split()[:2] for line in said.out.splitlines()] == [
        ["train", "80"],
        ["validation", "20"],
        ["test", "20"],
    ]
    assert "Texts of the training source that stand in validation or test too: 1." in said.err
    assert "Texts of the validation source that stand in the test too: 1. They are left out of validation" in said.err


@pytest.fixture
def large_imdb(published: HubServer) -> Iterator[None]:
    """More of it for a while; the cache goes back to what other tests expect too, whichever comes next."""
    publish_imdb(published, 4600, 2100)
    yield
    publish_imdb(published, 300, 200)
    data.open_source("hub:stanfordnlp/imdb", refresh=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "flags"),
    [
        pytest.param("imdb-bert-base-cased", [], marks=pytest.mark.soak),
        ("imdb-bert-base-uncased", ["--small"]),
    ],
)
def test_the_two_bert_recipes_run_whole_on_a_stand_in_encoder(
    name: str, flags: list[str], large_imdb: None, cli: Cli
) -> None:
    """The recipes as they are shipped; only the window is the stand-in's."""
    recipe = [ROOT / "recipes" / f"{name}.toml", *flags, "-s", "data.max_tokens=64"]
    for step in ("fetch", "train"):  # an older revision may be cached; fetch asks for the newest
        said = cli(step, *recipe)
        assert said.code == 0, said.err
    run = Path("runs") / f"{name}{'-small' if flags else ''}"
    assert cli("evaluate", run).code == 0
    scores = json.loads((run / "scores.json").read_text())
    assert scores["test"]["n"] == (2000 if flags else 300)
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == name.removeprefix("imdb-")
    assert len(cli("predict", run, "A film to remember.", "--json").out) > 0
