"""Folders are answered on Ray: on this machine, and on a cluster of four nodes one of which is killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lorafit.bulk import shards
from lorafit.predict import Classifier
from tests.conftest import STARTED, Said, texts_and_labels

ROWS = 16_000  # in 32 shards


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of short texts, every thousandth of them none."""
    folder = tmp_path_factory.mktemp("ray") / "in"
    folder.mkdir()
    texts, _ = texts_and_labels(3_000, 1)
    table = pd.DataFrame({"id": range(ROWS), "text": [f"{texts[row % 3_000]} {row}" for row in range(ROWS)]})
    table.loc[table["id"] % 1000 == 7, "text"] = ""
    for place, part in enumerate(np.array_split(table.index, 2)):
        table.loc[part].to_parquet(folder / f"{place}.parquet", index=False)
    return folder


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Ray's own test cluster: four nodes of one core each, on loopback."""
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(3):
        found.add_node(num_cpus=1)
    found.wait_for_nodes()
    yield found
    found.shutdown()


def predict(run: Path, source: Path, target: Path, *more: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "lorafit", "predict", run, "--input", source, "--output", target, *more]
    with target.with_suffix(".log").open("ab") as log:
        return subprocess.Popen([*map(str, command)], stdout=log, stderr=log, stdin=subprocess.DEVNULL)


def wait_for_parts(target: Path, process: subprocess.Popen[bytes], count: int) -> None:
    """Wait until so many shards are done, and the process still runs."""
    deadline = time.monotonic() + 120
    while len(list(target.glob("part-*.parquet"))) < count:
        assert process.poll() is None, target.with_suffix(".log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert process.poll() is None


def assert_each_row_is_there_once(target: Path, run: Path, source: Path) -> None:
    scored = pd.read_parquet(target)
    bad = [row for row in range(ROWS) if row % 1000 == 7]
    assert scored["id"].tolist() == sorted({*range(ROWS)} - {*bad})
    lines = [pd.read_json(file, lines=True) for file in sorted((target / shards.REJECTED).iterdir())]
    assert [content["id"] for content in pd.concat(lines)["content"]] == bad
    some = scored.sample(50, random_state=0)
    job = shards.begun(target)
    assert job is not None
    expected = Classifier.load(run, precision=job.precision, threads=1).probabilities(some["text"].tolist())
    np.testing.assert_allclose(some[["neg_prob", "pos_prob"]], expected, atol=2e-3)  # bf16, perhaps


@pytest.mark.slow
def test_a_cluster_of_four_survives_the_kill_of_a_node(
    cluster: Any, trained: Path, source: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    process = predict(trained, source, target, "--ray", cluster.address)
    STARTED.append(process)
    wait_for_parts(target, process, 5)
    raylet = cluster.list_all_nodes()[-1].all_processes["raylet"][0].process
    os.kill(raylet.pid, signal.SIGKILL)
    assert process.wait(timeout=200) == 0, target.with_suffix(".log").read_text()
    said = target.with_suffix(".log").read_text()
    assert "Ray: 4 workers" in said
    assert "Wrote 15,984 rows" in said
    assert_each_row_is_there_once(target, trained, source)


@pytest.mark.soak
def test_on_this_machine_a_killed_command_goes_on_where_it_was(
    trained: Path, source: Path, tmp_path: Path, cli: Callable[..., Said]
) -> None:
    """The command dies and one of its workers, each by SIGKILL; what was done stays as it is."""
    import psutil

    target = tmp_path / "out"
    process = predict(trained, source, target, "--ray", "--workers", 2)
    STARTED.append(process)
    wait_for_parts(target, process, 3)
    workers = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "MapWorker" in child.name() or "MapWorker" in " ".join(child.cmdline())
    ]
    assert len(workers) == 2
    workers[0].kill()
    wait_for_parts(target, process, 10)
    process.kill()
    process.wait()
    before = {file: file.stat().st_mtime_ns for file in target.glob("part-*.parquet")}
    found = cli("predict", trained, "--ray", "--input", source, "--output", target)
    assert found.code == 0, found.err
    assert "Going on after" in found.err
    assert all(file.stat().st_mtime_ns == then for file, then in before.items())
    assert_each_row_is_there_once(target, trained, source)
