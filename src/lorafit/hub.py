"""Snapshots from the Hub: from the local cache where it is there, from the network where it is not.

`huggingface_hub`'s own client does the work, so `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` mean
what they mean everywhere.
"""

import io
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import snapshot_download
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from tqdm import tqdm

from lorafit.console import byte_bar, say
from lorafit.errors import HubError, LorafitError
from lorafit.files import storing

Kind = Literal["model", "dataset"]
_KIND_WORDS = {"model": "encoder", "dataset": "data set"}
_BUNDLED = {"model": "bundled:minilm", "dataset": "bundled:imdb or bundled:rotten-tomatoes"}


@dataclass(frozen=True)
class Snapshot:
    """One revision of a repository, on disk."""

    folder: Path
    repo: str
    revision: str  # the commit, 40 hexadecimal digits


def snapshot(
    source: str,
    kind: Kind,
    patterns: list[str],
    *,
    complete: Callable[[Path], bool],
    refresh: bool = False,
) -> Snapshot:
    """Return `source` ("NAME" or "NAME@REVISION") on disk; the network is asked only for what is not cached.

    Args:
        source: the repository's name, with a branch, tag or commit after an "@" if it matters.
        kind: "model" or "dataset".
        patterns: the files to take.
        complete: tells whether a cached folder holds all that is needed; another program may have left half of it.
        refresh: ask the Hub even when a cached copy is there (`lorafit fetch`).

    Raises:
        HubError: no such repository or revision, no access, or no network and no cached copy.
    """
    repo, _, revision = source.partition("@")

    def take(local_files_only: bool, bar_class: Any = None) -> Snapshot:
        folder = Path(
            snapshot_download(
                repo,
                repo_type=kind,
                revision=revision or None,
                allow_patterns=patterns,
                local_files_only=local_files_only,
                tqdm_class=bar_class,
            )
        )
        return Snapshot(folder, repo, folder.name)

    cached = None
    try:
        with suppress(LocalEntryNotFoundError):  # not cached, or half of it: the network has the rest
            cached = take(local_files_only=True)
        if cached is not None and complete(cached.folder) and not refresh:
            return cached
        say(f"Fetching {_KIND_WORDS[kind]} hub:{source} ...")
        with storing(Path(HF_HUB_CACHE)), byte_bar("Downloading") as report:
            fetched = take(local_files_only=False, bar_class=_reporting_to(report))
    except Exception as error:
        raise _explained(error, source, kind) from error
    if not complete(fetched.folder):
        raise HubError(f"hub:{source} does not hold what an {_KIND_WORDS[kind]} needs: {', '.join(patterns[:3])} ...")
    if fetched == cached:
        say(f"hub:{source} is cached; nothing new was fetched.")
    return fetched


def cached_commit(repo: str, revision: str, sha256: str) -> str | None:
    """Return the commit in the cache that holds an encoder's weights: `revision`, or another with the same file.

    The Hub names large files by their SHA-256, and its client keeps them under that name.
    """
    snapshots = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model") / "snapshots"
    if (snapshots / revision / "model.safetensors").is_file():
        return revision
    same = [file for file in sorted(snapshots.glob("*/model.safetensors")) if file.resolve().name == sha256]
    return same[0].parent.name if same else None


def _reporting_to(report: Callable[[float, float | None], None]) -> type[Any]:
    """Return a bar for huggingface_hub's client that draws nothing and reports its bytes to ours."""

    class Reporting(tqdm):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options | {"file": io.StringIO(), "disable": False})

        def display(self, *_: Any, **__: Any) -> None:
            if self.unit == "B":
                report(self.n, self.total)

    return Reporting


def _explained(error: Exception, source: str, kind: Kind) -> Exception:
    """Say in one sentence what the Hub's client met."""
    words, (repo, _, revision) = _KIND_WORDS[kind], source.partition("@")
    from_the_network = isinstance(error, OSError) or type(error).__module__.startswith("httpx")
    if isinstance(error, LorafitError) or not (from_the_network or isinstance(error, HFValidationError)):
        return error
    if isinstance(error, GatedRepoError):
        return HubError(f"hub:{repo} asks for an agreement first: accept it on the Hub, then set HF_TOKEN.")
    if isinstance(error, RepositoryNotFoundError):
        return HubError(f"The Hub has no {words} {repo!r}, or it is private: check the name, or set HF_TOKEN.")
    if isinstance(error, RevisionNotFoundError):
        return HubError(f"hub:{repo} has no revision {revision!r}.")
    if isinstance(error, HFValidationError):
        return HubError(f"{repo!r} is no name of a repository on the Hub: it has the form NAME or ORGANISATION/NAME.")
    reason = "" if isinstance(error, LocalEntryNotFoundError) else f": {str(error).splitlines()[0]}"
    return HubError(
        f"hub:{source} is not in the cache, and the Hub can't be reached{reason}. "
        f"Run `lorafit fetch RECIPE` once where there is a network, or use {_BUNDLED[kind]}, which needs none."
    )
