"""Torch and its kin, imported once the page is there, by one thread: transformers' modules don't stand two at once."""

import threading

_lock = threading.Lock()


def ready() -> None:
    """Return once what answers, looks and reports are made with is imported."""
    with _lock:
        import lorafit.comparison
        import lorafit.doctor
        import lorafit.explain
        import lorafit.predict
        import lorafit.report  # noqa: F401
