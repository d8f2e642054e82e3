"""How an archive is compressed as a whole: not at all, with gzip, or with zstd."""

from __future__ import annotations

import gzip
import tarfile
from typing import IO, Any, BinaryIO, cast

from helperd.errors import ImageFormatError, UsageError, from_errno

#: How the tar itself is compressed.
NONE, GZIP, ZSTD = OUTERS = ("none", "gz", "zst")

#: Of zstd's window, as a power of two: what engines use, and what bounds the memory.
_MAX_WINDOW_LOG = 27
#: What is written: pages that are compressed already want no more than that.
_LEVEL = 1
#: Each has some MiB of what it compresses.
_MOST_THREADS = 4
_GZIP_MAGIC, _ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_TAR_MAGIC, _TAR_MAGIC_AT = b"ustar", 257
_BLOCK = tarfile.BLOCKSIZE


def outer_of(path: str) -> str:
    """Return how an archive is compressed, one of OUTERS.

    Raises:
        ImageError: it cannot be read.
        ImageFormatError: it is no tar, compressed or not.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(_BLOCK)
    except OSError as error:
        raise from_errno(error.errno or 0, f"cannot read {path}") from error
    if start.startswith(_GZIP_MAGIC):
        return GZIP
    if start.startswith(_ZSTD_MAGIC):
        return ZSTD
    if start[_TAR_MAGIC_AT : _TAR_MAGIC_AT + len(_TAR_MAGIC)] == _TAR_MAGIC:
        return NONE
    raise ImageFormatError(f"{path}: not a tar archive, and none compressed with gzip or zstd")


def open_outer(raw: BinaryIO, outer: str, path: str) -> IO[bytes]:
    """Return the tar in an open archive.

    Raises:
        UsageError: there is no library for zstd.
    """
    if outer == GZIP:
        return cast("IO[bytes]", gzip.GzipFile(fileobj=raw, mode="rb"))
    if outer == ZSTD:
        return cast("IO[bytes]", _zstd_reader(raw, path))
    return raw


def open_outer_writer(raw: BinaryIO, outer: str, path: str, threads: int = 1) -> IO[bytes]:
    """Return what a tar is to be written to, and closed, for an archive compressed as ``outer``.

    Args:
        raw: where the archive goes.
        outer: one of OUTERS.
        path: for messages.
        threads: that zstd may use.

    Raises:
        UsageError: there is no library for zstd.
    """
    if outer == GZIP:
        return cast("IO[bytes]", gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=1, mtime=0))
    if outer == ZSTD:
        return cast("IO[bytes]", _zstd_writer(raw, path, min(threads, _MOST_THREADS)))
    return raw


def _zstd_reader(raw: BinaryIO, path: str) -> Any:
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        pass
    else:
        options = {zstd.DecompressionParameter.window_log_max: _MAX_WINDOW_LOG}
        return zstd.ZstdFile(raw, "rb", options=options)
    decompressor = _zstandard(path).ZstdDecompressor(max_window_size=1 << _MAX_WINDOW_LOG)
    return decompressor.stream_reader(raw, read_across_frames=True, closefd=False)


def _zstd_writer(raw: BinaryIO, path: str, threads: int) -> Any:
    # With one worker it would do so beside us, and take memory for that: 0 is without any.
    workers = threads if threads > 1 else 0
    try:
        from compression import zstd
    except ImportError:
        compressor = _zstandard(path).ZstdCompressor(level=_LEVEL, threads=workers)
        return compressor.stream_writer(raw, closefd=False)
    level, number = (
        zstd.CompressionParameter.compression_level,
        zstd.CompressionParameter.nb_workers,
    )
    workers = min(workers, number.bounds()[1])  # None in a library without threads.
    return zstd.ZstdFile(raw, "wb", options={level: _LEVEL, number: workers})


def _zstandard(path: str) -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise UsageError(
            f"{path}: is compressed with zstd, which needs a library: pip install 'helperd[zstd]'"
        ) from error
    return zstandard
