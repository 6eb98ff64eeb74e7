"""Compressed files: read whole, of however many members they are made; what we write can stand one behind another."""

import bz2
import gzip
import lzma
import zlib
from pathlib import Path
from typing import IO, cast

import pyarrow as pa

CODECS = (".gz", ".bz2", ".xz", ".zst")
FAULTS = (OSError, EOFError, zlib.error, lzma.LZMAError)  # of a file that is cut short, or no such file at all


def opened(file: Path, codec: str) -> IO[bytes]:
    """Return the bytes of a file as a stream, decompressed."""
    match codec:
        case ".gz":
            return cast(IO[bytes], gzip.open(file))
        case ".bz2":
            return cast(IO[bytes], bz2.open(file))
        case ".xz":
            return cast(IO[bytes], lzma.open(file))
        case ".zst":
            return cast(IO[bytes], pa.CompressedInputStream(pa.OSFile(str(file)), "zstd"))
    return file.open("rb")


def compressed(content: bytes, codec: str) -> bytes:
    """Return a member of a compressed file, the same bytes each time."""
    match codec:
        case ".gz":
            return gzip.compress(content, compresslevel=6, mtime=0)
        case ".bz2":
            return bz2.compress(content)
        case ".xz":
            return lzma.compress(content)
        case ".zst":
            return cast(bytes, pa.Codec("zstd").compress(content, asbytes=True))
    return content
