"""The wheel holds everything a helper needs, outside of the repository."""

from __future__ import annotations

import errno
import sys
import zipfile
from pathlib import Path

from target import Target

from tests.support.helper import HelperProcess
from tests.support.image import BlockImage, text
from tests.support.requests import ADDRESS


def test_contents(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    shared = {name.partition(".data/data/")[2] for name in names if ".data/data/" in name}
    assert shared == {
        "lib/systemd/system/helperd.service",
        "lib/systemd/system/helperd.socket",
        "lib/systemd/system/helperd-page-server.service",
        "lib/systemd/system/helperd-page-server.socket",
        "share/bash-completion/completions/helperd",
        "share/fish/vendor_completions.d/helperd.fish",
        "share/man/man1/helperd.1",
        "share/zsh/site-functions/_helperd",
    }
    scripts = {name.partition(".data/scripts/")[2] for name in names if ".data/scripts/" in name}
    assert scripts == {"helperd", "helperd-python"}
    assert "helperd/py.typed" in names
    assert "helperd/confined/worker_filter.py" in names
    assert "helperd/server/pb/session_pb2.py" in names
    assert not [name for name in names if name.startswith(("tests/", "scripts/"))]


def test_installed(wheel: Path, target: Target, tmp_path: Path) -> None:
    """Unpacked where nothing of the repository is, it restores."""
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    image = BlockImage()
    image.add_lz4(text(1))
    pages = image.write(tmp_path / "pages-1.img")
    target.map_anonymous(ADDRESS, len(image.memory))
    start = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "import helperd.__main__ as program\n"
        f"assert program.__file__.startswith({str(site)!r})\n"
        "sys.exit(program.main())"
    )
    command = (sys.executable, "-I", "-c", start)
    with HelperProcess(pages, command=command) as helper:
        assert helper.ask(image.request(target.pid, ADDRESS)) == image.answer
        assert helper.ask(image.request(target.pid, ADDRESS + 1)) == -errno.EPROTO
        helper.finish()
    assert target.read(ADDRESS, len(image.memory)) == image.memory
