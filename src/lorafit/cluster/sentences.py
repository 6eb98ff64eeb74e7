"""What workers say, said where the command was started."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lorafit import console


def sentences_of_workers() -> Any:
    """Return the queue into which workers put kind, sentence and style, as `console.hand_to` is given them."""
    from ray.util.queue import Queue

    return Queue(actor_options={"num_cpus": 0})


@contextmanager
def heard(sentences: Any) -> Iterator[None]:
    """Say here what the workers say."""
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
