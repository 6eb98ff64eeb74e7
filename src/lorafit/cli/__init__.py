"""The command line: a thin shell that parses, calls one function, prints, and leaves with an exit code.

Exit codes: 0 done, 2 refused (one sentence on standard error), 130 interrupted by Ctrl-C, 143 by SIGTERM. Torch and its
kin are imported inside the commands, so that `--help` answers at once.
"""

import io
import os
import sys
from typing import Annotated

import typer

from lorafit import __version__, console, interrupts, ranks
from lorafit.cli import flow, service, trained
from lorafit.cli.shell import app, with_ray_address
from lorafit.errors import LorafitError

__all__ = ["app", "flow", "main", "service", "trained"]

# Read by the libraries when they are imported: their bars, reports and advice stay off our users' terminals.
_LIBRARIES_QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_VERBOSITY": "critical",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "DATASETS_VERBOSITY": "critical",
    "TRANSFORMERS_VERBOSITY": "critical",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TOKENIZERS_PARALLELISM": "true",
}


def main() -> None:
    """Run the command line, and turn what we refuse into one sentence and exit code 2."""
    os.environ |= {key: value for key, value in _LIBRARIES_QUIET.items() if key not in os.environ}
    for stream in (sys.stdin, sys.stdout, sys.stderr):  # Windows pipes are not UTF-8 by themselves
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8")
    if not ranks.is_first():
        console.silence()
    with console.our_words_only(of_warnings=ranks.is_first()), interrupts.sigterm_exits():
        try:
            app(with_ray_address(sys.argv[1:]))
        except LorafitError as error:
            if ranks.is_first_here():  # the others of a machine have seen the same
                console.complain("Error", str(error), "red")
            sys.exit(2)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"lorafit {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")] = False,
) -> None:
    """Hold the options that come before a command; typer wants a function for them."""
