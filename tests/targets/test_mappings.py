"""What /proc/PID/maps says about untouched pages."""

from __future__ import annotations

import pytest

from helperd.targets.mappings import Mappings

MAPS = """\
00400000-00401000 r-xp 00000000 fe:00 260131                             /usr/bin/cat
00401000-00403000 rw-p 00000000 00:00 0                                  [heap]
00403000-00404000 rw-p 00000000 00:00 0
00405000-00406000 rw-s 00000000 00:01 1059                               /dev/zero (deleted)
00406000-00407000 rw-p 00000000 00:06 5                                  /dev/zero
00407000-00408000 rw-p 00000000 00:00 0                                  [anon:my arena]
00408000-00409000 r--p 00000000 00:00 0                                  [vvar]
00409000-0040a000 r-xp 00000000 00:00 0                                  [vdso]
0040a000-0040b000 rw-p 00000000 00:10 77                                 /anon_hugepage (deleted)
0040b000-0040c000 rw-p 00000000 00:00 0                                  [stack]
0040c000-0040d000 rw-s 00000000 00:01 9                                  [anon_shmem:x]
"""


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0x400000, 0x401000, False),
        (0x401000, 0x403000, True),
        (0x401000, 0x404000, True),
        (0x402000, 0x404000, True),
        (0x400000, 0x402000, False),
        (0x403000, 0x405000, False),
        (0x404000, 0x405000, False),
        (0x405000, 0x406000, False),
        (0x406000, 0x407000, False),
        (0x407000, 0x408000, True),
        (0x408000, 0x409000, False),
        (0x409000, 0x40A000, False),
        (0x40A000, 0x40B000, False),
        (0x40B000, 0x40C000, True),
        (0x40C000, 0x40D000, False),
        (0x1000, 0x2000, False),
        (0x40D000, 0x40E000, False),
    ],
)
def test_private_anonymous(start: int, end: int, expected: bool) -> None:
    assert Mappings(MAPS.splitlines()).is_private_anonymous(start, end) is expected


def test_nothing_mapped() -> None:
    assert not Mappings([]).is_private_anonymous(0, 4096)
