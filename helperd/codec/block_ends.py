"""Which LZ4 blocks only the reference decoder can judge, by how they end.

LZ4 has rules for the end of a block: the last five bytes are literals, and the last match begins
at least twelve bytes before the end. ``LZ4_decompress_safe``, which CRIU calls, refuses whatever
breaks them - if it is told the exact size of the output. In a frame it has room for 64 KiB, and
does not notice. What a frame has let pass is told here by the last bytes of its blocks.

With L literals at the end, a last match of M bytes, and E bytes that extend the match's length
(E = 0: M < 19, the first E - 1 of them 0xff), a block breaks the rules if L < 5 or M + L < 12. Then
it ends with

=====  =============  ==============================================================
L      E              last bytes, the token's high four bits being L
=====  =============  ==============================================================
5..7   0, as M < 7    offset below 4096, token, L literals
0..4   0              the same
0..4   1              offset below 4096, one byte, token, L literals
0..4   2 or more      0xff, one byte, token, L literals
=====  =============  ==============================================================

Most sound blocks have L = 5. What stands before the offset tells nearly all of them apart: with
M < 12 - L that is either the token of the last match, which then has no literals and the low four
bits M - 4, or the last literal before the match, which is the byte of the page before its last
M + L. The few that are left have to be decoded again, one by one.

Source: LZ4's block format description and lz4.c.
"""

from __future__ import annotations

from helperd.blocks import PAGE_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: So many last bytes of each block are looked at; no block of a page is shorter.
TAIL_BYTES = 16

_MIN_MATCH, _MIN_END = 4, 12
_TOO_FEW, _FEW = (0, 1, 2, 3, 4), (5, 6, 7)
_HIGH = [bytes(value >> 4 == n for value in range(256)) for n in range(8)]
_BELOW = {n: bytes(value < n for value in range(256)) for n in (1, 2, 3, 16)}
_SET = bytes(value != 0 for value in range(256))
_FULL = bytes(value == 255 for value in range(256))


def doubtful_ends(tails: bytes, column: Callable[[int], bytes]) -> bytes:
    """Return for each block of a page whether it has to be decoded by itself: 1, or 0.

    Args:
        tails: the last TAIL_BYTES bytes of each block, one after the other.
        column: returns the byte at an offset in the page of each block.
    """
    count = len(tails) // TAIL_BYTES

    def behind(n_bytes: int) -> bytes:
        """Return of each block the byte that has so many behind it."""
        return tails[TAIL_BYTES - 1 - n_bytes :: TAIL_BYTES]

    def are(values: bytes, table: bytes) -> int:
        return int.from_bytes(values.translate(table), "little")

    doubtful = 0
    for literals in _TOO_FEW:
        token = are(behind(literals), _HIGH[literals])
        if token:
            first, second, third = (behind(literals + n) for n in (1, 2, 3))
            # An offset is not 0.
            middle = are(second, _SET)
            plain = are(first, _BELOW[16]) & (are(first, _SET) | middle)
            extended = are(second, _BELOW[16]) & (middle | are(third, _SET))
            doubtful |= token & (plain | extended | are(second, _FULL))
    columns: dict[int, int] = {}
    for literals in _FEW:
        short = are(behind(literals), _HIGH[literals]) & are(behind(literals + 1), _BELOW[16])
        if not short:
            continue
        before = behind(literals + 3)
        lengths = range(_MIN_MATCH, _MIN_END - literals)
        ends = are(before, _BELOW[len(lengths)])
        number = int.from_bytes(before, "little")
        for at in (PAGE_SIZE - literals - length - 1 for length in lengths):
            if at not in columns:
                columns[at] = int.from_bytes(column(at), "little")
            ends |= are((number ^ columns[at]).to_bytes(count, "little"), _BELOW[1])
        doubtful |= short & ends
    return doubtful.to_bytes(count, "little")
