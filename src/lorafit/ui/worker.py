"""A command of lorafit when its turn has come: ``python -m lorafit.ui.worker FOLDER NAME ARGUMENT...``.

Two trainings at once share the cores so badly that each takes fifteen times as long (docs/design/page.md).
"""

import os
import runpy
import sys
from pathlib import Path

from filelock import FileLock

from lorafit.files import write_text

LOCK, TURN = ".turn.lock", ".turn"
_NICE = 10  # whoever asks on the page comes first


def main() -> None:
    """Wait until no other worker of the folder works, say so there, and run the command."""
    folder, name, *arguments = sys.argv[1:]
    if hasattr(os, "nice"):
        os.nice(_NICE)
    with FileLock(Path(folder) / LOCK):
        write_text(Path(folder) / TURN, name)
        sys.argv = ["lorafit", *arguments]
        runpy.run_module("lorafit", run_name="__main__")


if __name__ == "__main__":
    main()
