"""The Dockerfile where there is no container engine: read by BuildKit's parser, checked, its steps run in a folder."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import dockerfile as buildkit
import typer

from lorafit.cli.shell import app

_WORDS = {
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "ONBUILD", "RUN",
    "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
}  # fmt: skip
_GIVEN = {"HOME", "PATH"}  # variables of every container
_OF_A_SYSTEM = ("apt-get", "useradd")  # steps that only an image of its own can take


@dataclass(frozen=True)
class Step:
    """One instruction: `values` are its arguments without flags, `as_list` whether they were written as JSON."""

    word: str
    values: tuple[str, ...]
    flags: tuple[str, ...] = ()
    as_list: bool = False
    line: int = 0

    @property
    def pairs(self) -> dict[str, str]:
        """Return what ENV or ARG sets; of an ARG without a value ""."""
        if self.word == "ENV":
            return {key: value.strip("\"'") for key, value in zip(self.values[::2], self.values[1::2], strict=True)}
        return {key: value.strip("\"'") for key, _, value in (text.partition("=") for text in self.values)}


def read(text: str) -> list[Step]:
    """Return the steps of a Dockerfile.

    Raises:
        dockerfile.GoParseError: it is none.
    """
    return [
        Step(found.cmd.upper(), tuple(found.value), tuple(found.flags), found.json, found.start_line)
        for found in buildkit.parse_string(text)
    ]


def faults(steps: Sequence[Step], root: Path) -> list[str]:
    """Return what is wrong with a Dockerfile, in sentences.

    Args:
        steps: of a file with one stage.
        root: the folder of its context, with pyproject.toml and .dockerignore.
    """
    first = next((step for step in steps if step.word != "ARG"), None)
    if first is None or first.word != "FROM":
        return ["It does not begin with FROM."]
    found = [f"Line {step.line}: there is no instruction {step.word}." for step in steps if step.word not in _WORDS]
    if re.search(r"[:@]", first.values[0]) is None:
        found.append(f"{first.values[0]} names no version.")
    return [
        *found,
        *_undeclared(steps),
        *_not_copied(steps, root),
        *_as_root(steps),
        *_not_run(steps, root),
        *_not_asked(steps),
    ]


def _undeclared(steps: Sequence[Step]) -> list[str]:
    known, found = set(_GIVEN), []
    for step in steps:
        if step.word == "FROM":
            known = set(_GIVEN)  # an ARG before it is of its own line only
        if step.word in ("ARG", "ENV"):
            known |= set(step.pairs)
        used = [] if step.as_list else re.findall(r"\$\{?([A-Za-z_]\w*)", " ".join(step.values))
        found += [f"Line {step.line}: {name} is not declared." for name in used if name not in known]
    return found


def _not_copied(steps: Sequence[Step], root: Path) -> list[str]:
    found = []
    for step in steps:
        if step.word != "COPY" or any(flag.startswith("--from") for flag in step.flags):
            continue
        for source in step.values[:-1]:
            if not (root / source).exists():
                found.append(f"Line {step.line}: there is no {source} to copy.")
            elif not any(True for _ in in_context(root, source)):
                found.append(f"Line {step.line}: .dockerignore leaves {source} out.")
    return found


def _as_root(steps: Sequence[Step]) -> list[str]:
    users = [step.values[0] for step in steps if step.word == "USER"]
    if not users or users[-1].partition(":")[0] in ("0", "root"):
        return ["It runs as root."]
    return []


def _not_run(steps: Sequence[Step], root: Path) -> list[str]:
    """Return what is wrong with ENTRYPOINT and CMD, and with the port."""
    entry, given = _last(steps, "ENTRYPOINT"), _last(steps, "CMD")
    if entry is None or given is None:
        return ["It has no ENTRYPOINT, or no CMD."]
    if not (entry.as_list and given.as_list):
        return ["ENTRYPOINT or CMD is no list: a shell would keep SIGTERM to itself."]
    program, command, *options = [*entry.values, *given.values]
    scripts = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    if program not in scripts or command != "serve":
        return [f"There is no command {program} {command}."]
    try:
        asked = asked_of_the_service(options)
    except Exception as error:  # noqa: BLE001 - typer's own click has no public name
        return [str(error)]
    open_ports = [port for step in steps if step.word == "EXPOSE" for port in step.values]
    if open_ports != [str(asked["port"])]:
        return [f"It listens on {asked['port']}, and EXPOSE says {', '.join(open_ports) or 'nothing'}."]
    return []


def asked_of_the_service(options: Sequence[str]) -> dict[str, Any]:
    """Return what `lorafit serve` is asked with these arguments, by the names of its parameters.

    Raises:
        typer's UsageError: an option that there is not, or a value that is none.
    """
    serve = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    return serve.make_context("serve", list(options)).params


def _not_asked(steps: Sequence[Step]) -> list[str]:
    check = _last(steps, "HEALTHCHECK")
    if check is None or not check.as_list:
        return ["HEALTHCHECK is missing, or no list."]
    _, program, option, code = check.values
    if (program, option) != ("python", "-c") or "'/health'" not in code:
        return ["HEALTHCHECK does not ask /health by Python."]
    compile(code, "HEALTHCHECK", "exec")
    port = next((port for step in steps if step.word == "EXPOSE" for port in step.values), "")
    return [] if re.search(rf"\b{port}\b", code) else [f"HEALTHCHECK does not ask port {port}."]


def _last(steps: Sequence[Step], word: str) -> Step | None:
    return next((step for step in reversed(steps) if step.word == word), None)


def in_context(root: Path, source: str) -> list[Path]:
    """Return the files that a COPY of `source` takes, below root, without those that .dockerignore leaves out."""
    ignore = root / ".dockerignore"
    lines = ignore.read_text(encoding="utf-8").splitlines() if ignore.is_file() else []
    rules = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    start = root / source
    files = [start] if start.is_file() else sorted(file for file in start.rglob("*") if file.is_file())
    return [below for below in (file.relative_to(root) for file in files) if not _is_ignored(below, rules)]


def _is_ignored(file: Path, rules: Sequence[str]) -> bool:
    """Tell whether the last rule that matches a file, or a folder above it, leaves it out."""
    names = [str(PurePosixPath(name)) for name in (file, *file.parents) if name.parts]
    ignored = False
    for rule in rules:
        pattern = _pattern(rule.removeprefix("!").strip("/"))
        if any(pattern.fullmatch(name) for name in names):
            ignored = not rule.startswith("!")
    return ignored


def _pattern(rule: str) -> re.Pattern[str]:
    """Return a rule of .dockerignore as a regular expression of paths from the context's root."""
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile(
        "".join(parts.get(part, re.escape(part)) for part in re.findall(r"\*\*/|\*\*|\*|\?|[^*?]+", rule))
    )


@dataclass
class Image:
    """A folder that stands for an image's file system, and an environment of its own for the image's Python."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    entrypoint: tuple[str, ...] = ()
    health: tuple[str, ...] = ()

    def inside(self, path: str) -> Path:
        """Return where a path of the image lies here."""
        return self.folder / path.lstrip("/")

    def program(self, words: Sequence[str]) -> list[str]:
        """Return a command with its program as the image would find it."""
        return [shutil.which(words[0], path=self.environment["PATH"]) or words[0], *words[1:]]


def build(steps: Sequence[Step], root: Path, folder: Path, arguments: Mapping[str, str]) -> Image:
    """Run the steps and return what came of them; those that need a system of their own are in `skipped`.

    Args:
        steps: of a file with one stage and without faults.
        root: the context.
        folder: to build in.
        arguments: as --build-arg gives them.

    Raises:
        subprocess.CalledProcessError: a RUN failed.
    """
    image = Image(folder)
    python = image.inside("/usr/local")
    subprocess.run([sys.executable, "-m", "venv", str(python)], check=True)
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "LORAFIT", "HF_"))}
    image.environment = inherited | {"PATH": f"{python / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    here, asked = image.inside("/"), dict[str, str]()
    for step in steps:
        if step.word == "ARG":
            asked |= {key: arguments.get(key, value) for key, value in step.pairs.items()}
        elif step.word == "ENV":
            # A folder of the image is one of this folder's.
            places = {key: str(image.inside(v)) if v.startswith("/") else v for key, v in step.pairs.items()}
            image.environment |= places
        elif step.word == "WORKDIR":
            here = image.inside(step.values[0])
            here.mkdir(parents=True, exist_ok=True)
        elif step.word == "COPY":
            _copy(step.values[:-1], step.values[-1], root, here)
        elif step.word == "RUN" and any(word in step.values[0] for word in _OF_A_SYSTEM):
            image.skipped.append(step.values[0])
        elif step.word == "RUN":
            command = list(step.values) if step.as_list else ["sh", "-c", step.values[0]]
            subprocess.run(command, cwd=here, env=image.environment | asked, check=True)
        elif step.word == "ENTRYPOINT":
            image.entrypoint = step.values
        elif step.word == "HEALTHCHECK":
            image.health = step.values[1:]
    return image


def _copy(sources: Sequence[str], target: str, root: Path, here: Path) -> None:
    """Copy as COPY does: files into a folder, and of a folder what is in it."""
    for source in sources:
        base = root / source
        into = here / target.lstrip("/")
        for file in in_context(root, source):
            there = into / (root / file).relative_to(base) if base.is_dir() else into / file.name
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / file, there)
