"""Many LZ4 blocks of a page each, decoded by one call of liblz4 that judges each of them.

``LZ4F_decompress`` decodes the blocks of a *frame* one after the other, each as LZ4_decompress_safe
does, whose verdict depends on the size of the output that it is told. In a frame this is the size
of the frame's largest block, 64 KiB at least: then a block may decode to more or less than a page,
or end against LZ4's rules, and nobody notices. Told PAGE_SIZE instead, it refuses all that is more
than a page or ends wrongly; and pages that are together as long as they should be, none of them
too long, are all whole.

That size is a word in liblz4's context. Its place is no part of liblz4's interface, so it is not
taken for granted: two frames that differ in nothing else show which word it is, and before pages
are decoded in that way at all, blocks that are wrong in each way have to be refused. So they are
by liblz4 1.8.0 to 1.10.0. With any that does otherwise, :func:`usable` says no.

Source: LZ4's descriptions of frames and blocks, lz4frame.c and lz4.c.
"""

from __future__ import annotations

from array import array

from helperd.blocks import PAGE_SIZE
from helperd.codec import liblz4
from helperd.errors import ResourceError
from helperd.kernel import native

#: A block's size stands in front of it, u32, with this flag if the block is stored as it is.
SIZE_BYTES = 4
RAW_FLAG = 1 << 31

#: The start of a frame, by the size of its largest block: magic, FLG (version 1, independent
#: blocks, no checksums), BD (that size), header checksum.
_HEADERS = {
    256 << 10: bytes.fromhex("04224d186050fb"),
    64 << 10: bytes.fromhex("04224d18604082"),
}
#: So much of a context is looked at; it is larger in every known version.
_CONTEXT_WORDS = 16

_usable: bool | None = None


def usable() -> bool:
    """Return whether the liblz4 in use lets itself be told the size of a page."""
    global _usable
    if _usable is None:
        try:
            _usable = _judges_rightly(PageFrame())
        except _UnknownContextError:
            _usable = False
    return _usable


class PageFrame:
    """A frame of pages that never ends; to be used by one thread at a time, if :func:`usable`.

    Raises:
        ResourceError: there is no memory for it.
    """

    def __init__(self) -> None:
        self._context = context = native.c_void_p()
        if liblz4.frame_create(native.byref(context), liblz4.FRAME_VERSION) or not context.value:
            raise ResourceError("no memory for an LZ4 frame context")
        self._produced = native.c_size_t()
        self._consumed = native.c_size_t()
        self._produced_at = native.addressof(self._produced)
        self._consumed_at = native.addressof(self._consumed)
        self._largest = self._find_largest(context.value)
        self._begin()

    def __del__(self) -> None:
        """Give the context back; Python knows nothing of its memory."""
        liblz4.frame_free(self._context)

    def decompress(self, source: int, size: int, destination: int, n_pages: int) -> bool:
        """Decode ``n_pages`` blocks, ``size`` bytes at ``source``, to ``destination``.

        Returns:
            Whether each is right and decodes to a page. If not, one of them does not, or is larger
            than a page, which is allowed; then what is at ``destination`` means nothing.
        """
        n_bytes = n_pages * PAGE_SIZE
        hint = self._run(source, size, destination, n_bytes)
        if (
            hint == SIZE_BYTES  # What it wants next: it stands behind a whole block.
            and self._consumed.value == size
            and self._produced.value == n_bytes
            and self._largest.value == PAGE_SIZE
        ):
            return True
        self._begin()
        return False

    def _run(self, source: int, size: int, destination: int, capacity: int) -> int:
        self._produced.value = capacity
        self._consumed.value = size
        hint: int = liblz4.frame_decompress(
            self._context, destination, self._produced_at, source, self._consumed_at, None
        )
        return hint

    def _begin(self) -> None:
        """Begin the frame, afresh if need be, and say how large its largest block is."""
        self._read_header(64 << 10)
        if self._largest.value != 64 << 10:
            raise _UnknownContextError
        self._largest.value = PAGE_SIZE

    def _read_header(self, largest: int) -> None:
        liblz4.frame_reset(self._context)
        header = array("B", _HEADERS[largest])
        self._run(header.buffer_info()[0], len(header), 0, 0)

    def _find_largest(self, context: int) -> native.c_size_t:
        """Return the one word of the context that is the size of a frame's largest block."""
        words = [
            native.c_size_t.from_address(context + at * native.WORD_BYTES)
            for at in range(_CONTEXT_WORDS)
        ]
        seen = []
        for largest in _HEADERS:
            self._read_header(largest)
            seen.append([word.value for word in words])
        found = [at for at, values in enumerate(zip(*seen, strict=True)) if values == (*_HEADERS,)]
        if len(found) != 1:
            raise _UnknownContextError
        return words[found[0]]


class _UnknownContextError(Exception):
    """There is no such word in this liblz4's context, or not in its place."""


def _judges_rightly(frame: PageFrame) -> bool:
    """Return whether a frame tells good blocks from bad ones, as LZ4_decompress_safe does."""
    page = b"\1" * PAGE_SIZE
    output = array("B", bytes(3 * PAGE_SIZE))

    def decodes(*blocks: bytes) -> bool:
        parts = [
            (len(block) | RAW_FLAG * (block is page)).to_bytes(SIZE_BYTES, "little") + block
            for block in blocks
        ]
        source = array("B", b"".join(parts))
        arguments = (source.buffer_info()[0], len(source), output.buffer_info()[0], len(blocks))
        return frame.decompress(*arguments)

    good, close = _block(PAGE_SIZE - 6, 5), _two_matches(PAGE_SIZE, 7, 5)
    bad = [
        # Of other lengths.
        *(_block(PAGE_SIZE - 5, 5), _block(PAGE_SIZE - 7, 5), _block(2 * PAGE_SIZE - 6, 5)),
        # With less than five literals at the end, or a match that begins too close to it.
        *(_block(PAGE_SIZE - 1 - last, last) for last in range(5)),
        *(_two_matches(PAGE_SIZE, 11 - last, last) for last in (5, 6, 7)),
        good[:-1],
    ]
    if any(decodes(good, block) for block in bad):
        return False
    return decodes(good, page, close) and output.tobytes() == 3 * page


def _block(match: int, last: int) -> bytes:
    """Return a block of ones: a literal, ``match`` bytes copied, ``last`` literals."""
    return _sequence(1, match) + bytes([last << 4]) + b"\1" * last


def _two_matches(n_bytes: int, match: int, last: int) -> bytes:
    """Return a block of ``n_bytes`` ones: a match before the last, short one, and literals."""
    return _sequence(1, n_bytes - match - last - 2) + _block(match, last)


def _sequence(literals: int, match: int) -> bytes:
    """Return an LZ4 sequence: ``literals`` ones, and ``match`` bytes copied from one byte before.

    The match is at least 4 bytes long.
    """
    token = literals << 4 | min(match - 4, 15)
    more = match - 19
    lengths = b"" if more < 0 else b"\xff" * (more // 255) + bytes([more % 255])
    return bytes([token]) + b"\1" * literals + b"\1\0" + lengths
