"""What workers say, said where the command was started."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from lorafit import console


def sentences_of_workers() -> Any:
    """Return the queue into which workers put kind, sentence and style; it lives and dies with this machine."""
    import ray
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})


def pass_on(sentences: Any, said: tuple[str, str, str]) -> None:
    """Put a sentence into the queue; a worker goes on where nobody listens any more."""
    from ray.exceptions import RayError

    with suppress(RayError):
        sentences.put(said)


@contextmanager
def heard(sentences: Any) -> Iterator[None]:
    """Say here what the workers say."""
    from ray.exceptions import RayError
    from ray.util.queue import Empty

    is_over = threading.Event()

    def listen() -> None:
        while True:
            try:
                kind, sentence, style = sentences.get(timeout=0.5)
            except Empty:
                if is_over.is_set():
                    return
                continue
            except RayError:  # the cluster is gone, and its command says so
                return
            if kind:
                console.complain(kind, sentence, style)
            else:
                console.say(sentence)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield
    finally:
        is_over.set()
        listener.join(timeout=5)
