"""Ray itself: the cluster at an address, what its workers need to know, and what they have refused."""

import importlib.util
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from lorafit.errors import LorafitError, RecipeError

LOCAL = "local"  # a cluster of this machine alone, for as long as it is needed
SECONDS_TO_CONNECT = 15
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# What a worker needs of the environment in which the command was started; a token would stand in Ray's own records.
_HANDED_ON = ("LORAFIT_CACHE", "HF_HOME", "HF_ENDPOINT", "HF_HUB_OFFLINE")


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Be a driver of the Ray cluster at an address.

    Raises:
        LorafitError: Ray is not installed, or does not answer there within 20 seconds.
    """
    os.environ |= {name: value for name, value in _QUIET.items() if name not in os.environ}
    if importlib.util.find_spec("ray") is None:
        raise LorafitError("Ray is not installed. Install it with: pip install 'lorafit[cluster]'")
    if address != LOCAL:
        _refuse_unreachable(address)
    import ray

    options: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
    # Before a worker imports anything, for some of it is read only then. What a Ray job hands on, Ray takes from there.
    of_job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env") or {}
    handed = {
        name: os.environ[name] for name in _HANDED_ON if name in os.environ and name not in of_job.get("env_vars", {})
    }
    environment = {"env_vars": handed} if handed else None
    at_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        with _without_native_words():
            ray.init(address=address, logging_level="ERROR", log_to_driver=False, runtime_env=environment, **options)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise _unreachable(address, " ".join(str(error).split())[:300]) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, at_sigterm)  # Ray has put its own in its place
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):  # Ray tells there what it will try again
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _without_native_words() -> Iterator[None]:
    """Keep off the terminal what native code writes there: Ray's says that its log level was set."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def cores_a_worker(cores_of_nodes: Sequence[int], workers: int) -> int:
    """Return how many cores each worker gets, so that all of them have room on the nodes.

    Raises:
        RecipeError: there are more workers than cores.

    >>> cores_a_worker([8, 4], workers=3)
    4
    """
    if workers < 1:
        raise RecipeError(f"--workers is {workers}; it takes at least one.")
    there = sum(cores_of_nodes)
    if workers > there:
        raise RecipeError(f"--workers is {workers}, and the cluster has {there} cores, one a worker at the least.")
    return next(each for each in range(there, 0, -1) if sum(cores // each for cores in cores_of_nodes) >= workers)


def enter(folder: Path) -> None:
    """Go to the folder in which the command was started, on a worker's machine.

    Raises:
        LorafitError: it is not there.
    """
    try:
        os.chdir(folder)
    except OSError as error:
        raise LorafitError(
            f"{platform.node()} has no folder {folder} ({error.strerror}), in which the command was started. "
            "All machines of the cluster need it, as the same files."
        ) from None


def cores_of_nodes() -> list[int]:
    """Return how many cores each node of the cluster has."""
    import ray

    return [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]


def described(nodes: Sequence[int], workers: int, cores: int) -> str:
    """Return in words who works where.

    >>> described([8, 4], workers=3, cores=4)
    '3 workers of 4 cores each, on 2 nodes with 12 cores'
    """
    each = "one core each" if cores == 1 else f"{cores} cores each"
    machines = f"{len(nodes)} nodes" if len(nodes) > 1 else "1 node"
    who = "one worker" if workers == 1 else f"{workers} workers"
    return f"{who} of {each}, on {machines} with {sum(nodes)} cores"


def _refuse_unreachable(address: str) -> None:
    """Refuse an address at which no Ray cluster lets us in; a process of its own asks, for it can be ended.

    Raises:
        LorafitError: says what to check.
    """
    if address.startswith("ray://"):
        raise LorafitError(
            f"{address} is one of Ray's client, which sees none of the cluster's folders. Start the command on a "
            "machine of the cluster, with --ray auto, such as by ray job submit of ray[default]."
        )
    host, _, port = address.rpartition(":")
    if address != "auto":
        try:
            socket.create_connection((host, int(port)), timeout=SECONDS_TO_CONNECT / 3).close()
        except (OSError, ValueError) as error:
            raise _unreachable(address, str(error)) from None
    found = _health(address)
    if "AuthenticationError" in found.stderr:
        # Ray takes a token that lies on this machine by itself only where the address is left to it.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        if _health(address).returncode:
            raise _unreachable(address, "it asks for a token; see RAY_AUTH_TOKEN in Ray's manual")
    elif found.returncode:
        versions = "Ray's or Python's version is another there" if "Version mismatch" in found.stderr else ""
        raise _unreachable(address, versions or "no Ray answers there")


def _health(address: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check"]
    command += [] if address == "auto" else ["--address", address]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_CONNECT)
    except subprocess.TimeoutExpired:
        raise _unreachable(address, f"no answer within {SECONDS_TO_CONNECT} s") from None


def _unreachable(address: str, reason: str) -> LorafitError:
    return LorafitError(
        f"No Ray cluster at {address} ({reason}). Check that its head runs, by `ray start --head`, and the address, "
        "which that has printed; this machine has to be part of it. Without an address Ray starts here."
    )
