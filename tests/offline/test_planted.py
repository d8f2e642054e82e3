"""A directory from somebody else: what lies in it makes no command touch anything outside of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from helperd import errors, tools
from helperd.blocks import PAGE_SIZE
from helperd.images.arrivals import recover
from helperd.images.leftovers import NotOurs
from helperd.kernel import hints
from helperd.offline.switch import STAGING_NAME
from tests.images.checkpoints import Builder, content_of

OTHER_USER = 12345
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="to be several users needs root")

Plant = Callable[[Path, Path], None]


def content(byte: int) -> bytes:
    """Return a few pages without zeros, so that there is something to punch."""
    return bytes((byte + at) % 255 + 1 for at in range(8 * PAGE_SIZE))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Return a chain's last dump; dedup looks through it, and the others change it."""
    (tmp_path / "images").mkdir()
    Builder(tmp_path / "images" / "1").add(1, content(1)).write()
    return Builder(tmp_path / "images" / "2").add(1, content(2)).write(parent="../1")


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """Return a directory outside that nothing may happen to."""
    folder = tmp_path / "victim"
    folder.mkdir()
    for name in ("pages-1.img", "pagemap-7.img", "inventory.img", "shadow"):
        (folder / name).write_text("precious")
    return folder


def _folder_is_a_link(staging: Path, victim: Path) -> None:
    staging.rmdir()
    staging.symlink_to(victim)


def _new_is_a_link(staging: Path, victim: Path) -> None:
    (staging / "new").symlink_to(victim)
    (staging / "current").symlink_to("new")


def _old_is_a_link(staging: Path, victim: Path) -> None:
    (staging / "old").symlink_to(victim)
    (staging / "current").symlink_to("old")


def _nothing_but_a_link_to_new(staging: Path, victim: Path) -> None:
    (staging / "new").symlink_to(victim)


def _current_leads_outside(staging: Path, victim: Path) -> None:
    (staging / "current").symlink_to(victim)


def _current_leads_up(staging: Path, victim: Path) -> None:
    (staging / "new").mkdir()
    (staging / "current").symlink_to("../new")


def _a_link_among_the_files(staging: Path, victim: Path) -> None:
    (staging / "new").mkdir()
    (staging / "new" / "pages-1.img").symlink_to(victim / "pages-1.img")
    (staging / "current").symlink_to("new")


def _a_folder_among_the_files(staging: Path, victim: Path) -> None:
    (staging / "new" / "pages-1.img").mkdir(parents=True)
    (staging / "current").symlink_to("new")


def _a_name_that_is_none_of_ours(staging: Path, victim: Path) -> None:
    (staging / "new").mkdir()
    (staging / "new" / "core-7.img").write_text("evil")
    (staging / "current").symlink_to("new")


def _something_else_beside(staging: Path, victim: Path) -> None:
    (staging / "more").mkdir()


def _current_is_a_file(staging: Path, victim: Path) -> None:
    (staging / "current").write_text("new")


PLANTS = (
    *(_folder_is_a_link, _new_is_a_link, _old_is_a_link, _nothing_but_a_link_to_new),
    *(_current_leads_outside, _current_leads_up, _a_link_among_the_files),
    *(_a_folder_among_the_files, _a_name_that_is_none_of_ours, _something_else_beside),
    _current_is_a_file,
)

COMMANDS: dict[str, Callable[[str], object]] = {
    "compress": lambda path: tools.compress(path, in_place=True),
    "compress-copy": lambda path: tools.compress(path, output=f"{path}.copy"),
    "decompress": lambda path: tools.decompress(path, in_place=True),
    "dedup": tools.dedup,
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__.strip("_"))
def test_a_planted_staging_folder(images: Path, victim: Path, plant: Plant, command: str) -> None:
    staging = images / STAGING_NAME
    staging.mkdir()
    plant(staging, victim)
    before = content_of(images.parent), content_of(victim)
    with pytest.raises(NotOurs, match="move it away"):
        COMMANDS[command](str(images))
    assert (content_of(images.parent), content_of(victim)) == before


@needs_root
@pytest.mark.parametrize("command", COMMANDS)
def test_another_users_staging_folder(images: Path, victim: Path, command: str) -> None:
    """Even one that looks like ours: its owner can change it while it is looked at."""
    staging = images / STAGING_NAME
    (staging / "new").mkdir(parents=True)
    os.chown(staging, OTHER_USER, OTHER_USER)
    before = content_of(images.parent)
    with pytest.raises(NotOurs, match=f"belongs to user {OTHER_USER}"):
        COMMANDS[command](str(images))
    assert content_of(images.parent) == before


@needs_root
def test_a_staging_folder_is_for_others_to_read_at_most(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may write to the directory is kept from the files that come into effect."""
    images.chmod(0o777)
    modes = []
    rename = os.rename

    def look(source: str, target: str, **folders: int) -> None:
        modes.append(os.stat(images / STAGING_NAME).st_mode & 0o777)
        rename(source, target, **folders)

    monkeypatch.setattr(os, "rename", look)
    tools.compress(str(images), in_place=True)
    assert modes
    assert not any(mode & 0o022 for mode in modes)


# What a page server's sessions leave.


def _arrived_is_a_link(folder: Path, victim: Path) -> None:
    folder.rmdir()
    folder.symlink_to(victim)


def _arrived_holds_a_link(folder: Path, victim: Path) -> None:
    (folder / "pages-1.img").symlink_to(victim / "pages-1.img")


def _arrived_holds_a_folder(folder: Path, victim: Path) -> None:
    (folder / "pages-1.img").mkdir()


def _arrived_holds_a_hidden_file(folder: Path, victim: Path) -> None:
    (folder / ".bashrc").write_text("evil")


def _the_parent_is_a_file(folder: Path, victim: Path) -> None:
    (folder / "parent").write_text("evil")


@pytest.mark.parametrize("state", ["arrived", "incoming"])
@pytest.mark.parametrize(
    "plant",
    [
        *(_arrived_holds_a_link, _arrived_holds_a_folder, _arrived_holds_a_hidden_file),
        _the_parent_is_a_file,
    ],
    ids=lambda plant: plant.__name__.strip("_"),
)
def test_planted_arrivals(images: Path, victim: Path, plant: Plant, state: str) -> None:
    folder = images / f".helperd-{state}.0123"
    folder.mkdir()
    plant(folder, victim)
    before = content_of(images.parent), content_of(victim)
    with pytest.raises(NotOurs, match="move it away"):
        recover(str(images))
    assert (content_of(images.parent), content_of(victim)) == before


@pytest.mark.parametrize("state", ["arrived", "incoming"])
def test_an_arrival_that_is_a_link_is_nobodys(images: Path, victim: Path, state: str) -> None:
    (images / f".helperd-{state}.0123").symlink_to(victim)
    before = content_of(images.parent), content_of(victim)
    recover(str(images))
    assert (content_of(images.parent), content_of(victim)) == before


@needs_root
@pytest.mark.parametrize("state", ["arrived", "incoming"])
def test_another_users_arrivals(images: Path, state: str) -> None:
    """Who may make files in a directory, but not replace others' files, does not so through us."""
    folder = images / f".helperd-{state}.0123"
    folder.mkdir()
    (folder / "pages-1.img").write_text("evil")
    os.chown(folder, OTHER_USER, OTHER_USER)
    before = content_of(images.parent)
    recover(str(images))
    assert content_of(images.parent) == before


# What dedup punches.


@pytest.fixture
def linked(images: Path, tmp_path: Path) -> Path:
    """Return the last dump of a copy of the chain whose files are links, as people make them."""
    for level in "12":
        (tmp_path / "copy" / level).mkdir(parents=True)
        for file in (images.parent / level).iterdir():
            if file.name != "parent":
                (tmp_path / "copy" / level / file.name).symlink_to(file)
    (tmp_path / "copy" / "2" / "parent").symlink_to("../1")
    return tmp_path / "copy" / "2"


def test_dedup_follows_no_link(images: Path, linked: Path) -> None:
    before = content_of(images.parent)
    with pytest.raises(errors.ImageError, match="a symbolic link, so what would be punched out"):
        tools.dedup(str(linked))
    assert content_of(images.parent) == before


@needs_root
def test_dedup_of_somebody_elses_dump_over_a_third_ones_images(images: Path) -> None:
    """Whoever makes a dump chooses where its parent link leads."""
    for path in (images, *images.iterdir()):
        os.chown(path, OTHER_USER, OTHER_USER, follow_symlinks=False)
    before = content_of(images.parent)
    with pytest.raises(errors.ImageError, match="somebody else's images"):
        tools.dedup(str(images))
    assert content_of(images.parent) == before


def test_all_files_are_looked_at_before_the_first_is_punched(tmp_path: Path) -> None:
    """The second pages file has another name elsewhere."""
    for pid in (7, 8):
        Builder(tmp_path / "1", pid=pid, pages_id=pid).add(1, content(pid)).write()
        top = Builder(tmp_path / "2", pid=pid, pages_id=pid).add(1, content(pid + 9))
        top.write(parent="../1" if pid == 7 else None)
    os.link(tmp_path / "1" / "pages-8.img", tmp_path / "elsewhere")
    before = content_of(tmp_path)
    with pytest.raises(errors.ImageError, match="hard links"):
        tools.dedup(str(tmp_path / "2"))
    assert content_of(tmp_path) == before


def test_times_that_cannot_be_set_are_no_reason_to_fail(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may write to a file, and does not own it, cannot; the holes are made by then."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(hints.os, "utime", refuse)
    assert tools.dedup(str(images)).freed_bytes
    assert tools.compress(str(images), in_place=True).changed
