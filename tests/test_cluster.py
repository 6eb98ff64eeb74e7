"""What is said before any worker is started: an address, a number of workers, an extra that is not there."""

import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorafit import recipe as recipes
from lorafit.cli.shell import with_ray_address
from lorafit.cluster import connection, training
from lorafit.errors import LorafitError, RecipeError
from tests.conftest import Said


@pytest.fixture
def recipe_file(tiny_recipe: Callable[..., Any], tmp_path: Path) -> Path:
    file = tmp_path / "tiny.toml"
    file.write_text(recipes.to_toml(tiny_recipe()))
    return file


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("train a.toml --ray", "train a.toml --ray local"),
        ("train a.toml --ray --workers 2", "train a.toml --ray local --workers 2"),
        ("train --ray a.toml", "train --ray local a.toml"),
        ("train a.toml --ray auto", "train a.toml --ray auto"),
        ("train a.toml --ray head:6379 --workers 2", "train a.toml --ray head:6379 --workers 2"),
        ("train a.toml --ray ray://10.0.0.1:10001", "train a.toml --ray ray://10.0.0.1:10001"),
        ("train --ray C:\\data\\a.toml", "train --ray local C:\\data\\a.toml"),
        ("predict run a --quiet", "predict run a --quiet"),
    ],
)
def test_an_address_behind_ray_may_be_left_out(words: str, meant: str) -> None:
    assert with_ray_address(words.split()) == meant.split()


def test_workers_get_as_many_cores_as_there_is_room_for() -> None:
    assert connection.cores_a_worker([8, 4], 3) == 4
    assert connection.cores_a_worker([8, 4], 4) == 2
    assert connection.cores_a_worker([2], 2) == 1
    assert connection.cores_a_worker([16], 1) == 16
    for workers, said in ((13, "--workers is 13, and the cluster has 12 cores"), (0, "it takes at least one")):
        with pytest.raises(RecipeError, match=said):
            connection.cores_a_worker([8, 4], workers)


def test_an_address_where_nobody_answers_is_given_up_soon(
    recipe_file: Path, cli: Callable[..., Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = time.monotonic()
    refused = cli("train", recipe_file, "--ray", "127.0.0.1:9")
    assert refused.code == 2
    assert "No Ray cluster at 127.0.0.1:9" in refused.err
    assert "ray start --head" in refused.err
    assert time.monotonic() - start < 20
    assert not (tmp_path / "runs").exists()
    refused = cli("train", recipe_file, "--ray", "ray://127.0.0.1:10001")
    assert refused.code == 2
    assert "with --ray auto" in refused.err
    monkeypatch.setattr(connection, "SECONDS_TO_CONNECT", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and says nothing
        refused = cli("train", recipe_file, "--ray", f"127.0.0.1:{silent.getsockname()[1]}")
    assert refused.code == 2
    assert "no answer within 2 s" in refused.err
    assert len(refused.err.splitlines()) == 1


def test_without_the_extra_one_line_says_what_to_install(
    recipe_file: Path, cli: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    refused = cli("train", recipe_file, "--ray")
    assert refused.code == 2
    assert "pip install 'lorafit[cluster]'" in refused.err
    assert len(refused.err.splitlines()) == 1


def test_options_that_do_not_go_together_are_refused(recipe_file: Path, cli: Callable[..., Said]) -> None:
    for arguments, said in (
        (("--workers", 2), "--workers goes with --ray"),
        (("--ray", "--resume", "runs/a"), "name the recipe, not --resume"),
        (("--ray", "--seeds", 2), "without torchrun and --ray"),
    ):
        refused = cli("train", recipe_file, *arguments)
        assert refused.code == 2
        assert said in refused.err


def test_what_a_worker_refused_is_said_in_its_own_words() -> None:
    class Failed(Exception):  # noqa: N818
        worker_failures: dict[int, Exception]

    class Wrapped(Exception):  # noqa: N818
        cause: Exception

    failed, wrapped = Failed("two workers"), Wrapped("a long trace")
    wrapped.cause = LorafitError("The disk is full.")
    failed.worker_failures = {0: wrapped}
    assert str(training._said_by_worker(failed)) == "The disk is full."
    failed.worker_failures = {1: RuntimeError("trace\nlast line")}
    assert str(training._said_by_worker(failed)) == "Training on Ray has failed: last line"
