"""The processes that train one model together: those of torchrun, accelerate or Ray, told apart by their rank.

A process that is alone is rank 0 of 1, and nothing here does anything then. Ranks take the same steps in the same
order, each on its share of a batch; what is written, rank 0 writes.
"""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

Value = TypeVar("Value")

_LONGEST_WAIT = timedelta(minutes=30)  # for another rank, such as one that tokenizes
_OUR_STORE = "lorafit/store"
# What tells a process its rank; a process that it starts has none.
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def rank() -> int:
    """Return which of the processes this is, from 0."""
    return int(os.environ.get("RANK", 0)) if count() > 1 else 0


def count() -> int:
    """Return how many processes there are."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_first() -> bool:
    """Tell whether this is the process that writes and speaks."""
    return rank() == 0


def local_count() -> int:
    """Return how many of the processes share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if count() > 1 else 1


def is_first_here() -> bool:
    """Tell whether this is the first process of this machine."""
    return count() == 1 or int(os.environ.get("LOCAL_RANK", 0)) == 0


def launch() -> str | None:
    """Return what tells one call of torchrun from another, also when it starts the ranks anew; None of other ways."""
    return os.environ.get("TORCHELASTIC_RUN_ID") if count() > 1 else None


def begin() -> None:
    """Let the ranks find each other; a process that is alone, or has begun already, goes on at once."""
    import torch
    from torch import distributed

    if count() == 1 or distributed.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(
        backend, store=_fresh_store(), rank=rank(), world_size=count(), timeout=_LONGEST_WAIT
    )


def _fresh_store() -> Any:
    """Return a store of rank 0's own, in which the ranks find each other's addresses.

    torchrun keeps its store from one start of the workers to the next, and in it the addresses of the dead. Only that
    of our own store is read there: one that nobody answers at any more is read again.
    """
    from torch._C._distributed_c10d import TCPStore
    from torch.distributed.rendezvous import rendezvous

    launchers, *_ = next(rendezvous("env://", timeout=_LONGEST_WAIT))
    if is_first():
        with socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))) as known:
            host = known.getsockname()[0]  # by which other machines reach this one, if they reach the launcher so
        store = TCPStore(host, 0, count(), is_master=True, timeout=_LONGEST_WAIT, wait_for_workers=False)
        launchers.set(_OUR_STORE, f"{host} {store.port}")
        return store
    deadline = time.monotonic() + _LONGEST_WAIT.total_seconds()
    while True:
        host, port = launchers.get(_OUR_STORE).decode().split()
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            return TCPStore(host, int(port), count(), is_master=False, timeout=_LONGEST_WAIT)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def of_first(value: Value) -> Value:
    """Return rank 0's value, on every rank.

    >>> of_first(Path("run.json").is_file())
    False
    """
    if count() == 1:
        return value
    from torch import distributed

    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def of_all(value: Value) -> list[Value]:
    """Return every rank's value, by rank, on every rank."""
    if count() == 1:
        return [value]
    from torch import distributed

    values: list[Value] = [value] * count()
    distributed.all_gather_object(values, value)
    return values


def any_of(flag: bool) -> bool:
    """Tell whether some rank says so; in a tenth of a millisecond, so that it can be asked at every step."""
    if count() == 1:
        return flag
    import torch
    from torch import distributed

    said = torch.tensor([flag], dtype=torch.uint8, device="cuda" if torch.cuda.is_available() else "cpu")
    distributed.all_reduce(said, distributed.ReduceOp.MAX)
    return bool(said.item())


@contextmanager
def first_here_first() -> Iterator[None]:
    """Let the first process of each machine go first, so that the others find in the cache what it has made."""
    if count() == 1:
        yield
        return
    if not is_first_here():
        of_all(None)
    yield
    if is_first_here():
        of_all(None)


def end() -> None:
    """Let the ranks part."""
    from torch import distributed

    if count() > 1 and distributed.is_initialized():
        distributed.destroy_process_group()
