"""Compressed files: read whole, of however many members they are made; what we write can stand one behind another."""

import bz2
import gzip
import io
import lzma
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import pyarrow as pa

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CODECS = (".gz", ".bz2", ".xz", ".zst")
FAULTS = (OSError, EOFError, zlib.error, lzma.LZMAError)  # of a file that is cut short, or no such file at all

_BLOCK_BYTES = 1 << 16


def opened(file: Path, codec: str) -> IO[bytes]:
    """Return the bytes of a file as a stream, decompressed."""
    match codec:
        case ".gz":
            return cast(IO[bytes], gzip.open(file))
        case ".bz2":
            return cast(IO[bytes], pa.CompressedInputStream(pa.OSFile(str(file)), "bz2"))
        case ".xz":
            return io.BufferedReader(_Xz(file), _BLOCK_BYTES)
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


class _Xz(io.RawIOBase):
    """xz whose every member counts: `lzma.open`, as `bz2.open`, takes a broken one behind the first for the end."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("rb")
        self._decoder = lzma.LZMADecompressor()

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: "WriteableBuffer") -> int:
        room = memoryview(buffer).cast("B")
        content = b""
        while not content:
            read = self._input()
            if self._decoder.eof:
                if not read:
                    return 0
                self._decoder = lzma.LZMADecompressor()
            content = self._decoder.decompress(read, len(room))
        room[: len(content)] = content
        return len(content)

    def _input(self) -> bytes:
        """Return what the decoder waits for; behind a member that is the next one, without the zeros between them."""
        if not self._decoder.eof:
            read = self._file.read(_BLOCK_BYTES) if self._decoder.needs_input else b""
            if self._decoder.needs_input and not read:
                raise EOFError("it ends within its compressed data")
            return read
        read = self._decoder.unused_data.lstrip(b"\0")
        while not read and (block := self._file.read(_BLOCK_BYTES)):
            read = block.lstrip(b"\0")
        return read
