"""Killed or out of space at any moment, a directory holds all old or all new files."""

from __future__ import annotations

import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helperd import errors, tools
from helperd.blocks import PAGE_SIZE
from helperd.images.directory import ImageDirectory
from helperd.offline import switch
from tests.conftest import ROOT, ImageArchive
from tests.images.checkpoints import (
    Builder,
    Content,
    assert_is_truth,
    clone,
    content_of,
    load_dumps,
    memory_of,
)

Convert = Callable[..., object]


def small_checkpoint(folder: Path) -> Path:
    """Make a checkpoint of three processes with a few pages each."""
    for pid in (7, 8, 9):
        builder = Builder(folder, pid=pid, pages_id=pid)
        builder.add(16, bytes(range(256)) * 16 * pid).add(64, bytes(5 * PAGE_SIZE)).refer(
            80, flags=2
        )
        builder.entries.pop()
        builder.write()
    return folder


def visible(folder: Path) -> Content:
    """Return what whoever opens the files of a directory finds, links followed."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def in_child(action: Callable[[], object]) -> int:
    """Run ``action`` in a forked process; return its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
        finally:
            os._exit(0)
    return pid


class Versions:
    """A checkpoint in both its forms, and what has to hold of a directory at all times."""

    def __init__(self, scratch: Path) -> None:
        self.plain = small_checkpoint(scratch / "plain")
        self.compressed = scratch / "compressed"
        tools.compress(str(self.plain), output=str(self.compressed), threads=1)
        self.contents = [visible(self.plain), visible(self.compressed)]
        self.memory = {pid: memory_of(self.plain, pid=pid) for pid in (7, 8, 9)}

    def assert_one_of_them(self, folder: Path, *, ignore: str = "\0") -> int:
        """Check that a directory is one of the two and restores; return which."""
        found = {n: c for n, c in visible(folder).items() if not n.endswith(ignore)}
        assert found in self.contents
        report = tools.check([str(folder)], threads=1)
        assert report.ok, report.problems
        for pid, memory in self.memory.items():
            assert memory_of(folder, pid=pid) == memory
        return self.contents.index(found)


@pytest.fixture
def versions(tmp_path: Path) -> Versions:
    scratch = tmp_path / "versions"
    scratch.mkdir()
    return Versions(scratch)


def dying_after(n_steps: int) -> None:
    """Let this process die before the next change to a directory after ``n_steps`` of them."""
    steps = iter(range(n_steps))

    def dying(call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            if next(steps, None) is None:
                os._exit(99)
            return call(*arguments, **options)

        return step

    for name in ("rename", "link", "symlink", "unlink", "mkdir", "rmdir", "fchmod"):
        setattr(os, name, dying(getattr(os, name)))


@pytest.mark.parametrize("backups", [False, True])
@pytest.mark.parametrize("forward", [True, False])
def test_dying_at_every_step(
    tmp_path: Path, versions: Versions, forward: bool, backups: bool
) -> None:
    source = versions.plain if forward else versions.compressed
    convert = tools.compress if forward else tools.decompress
    seen = []
    for n_steps in range(200):
        folder = clone(source, tmp_path / str(n_steps))

        def convert_and_die(folder: Path = folder, n_steps: int = n_steps) -> None:
            dying_after(n_steps)
            convert(str(folder), in_place=not backups, threads=1)

        status = os.waitstatus_to_exitcode(os.waitpid(in_child(convert_and_die), 0)[1])
        which = versions.assert_one_of_them(folder, ignore=".bak")
        seen.append(which)
        assert any("interrupted" in f.message for f in tools.check([str(folder)]).findings) == (
            (folder / switch.STAGING_NAME).exists()
        )
        # A run again finishes or undoes it, and does what it was asked for.
        convert(str(folder), in_place=not backups, threads=1)
        assert versions.assert_one_of_them(folder, ignore=".bak") == forward
        assert not (folder / switch.STAGING_NAME).exists()
        kept = {n: c for n, c in visible(folder).items() if n.endswith(".bak")}
        old = versions.contents[not forward]
        assert kept == ({f"{n}.bak": old[n] for n in old} if backups else {})
        shutil.rmtree(folder)
        if status == 0:
            break
    else:
        pytest.fail("it never came to its end")
    # Old up to one step, new from there on.
    assert seen == sorted(seen, reverse=not forward)
    assert {0, 1} == set(seen)
    assert len(seen) > 40


def test_dying_while_cleaning_up_after_a_death(tmp_path: Path, versions: Versions) -> None:
    n_both = 0
    for n_steps in range(0, 64, 7):
        for n_more in range(0, 40, 4):
            folder = clone(versions.plain, tmp_path / f"{n_steps}-{n_more}")
            statuses = []
            for n in (n_steps, n_more):

                def convert_and_die(folder: Path = folder, n: int = n) -> None:
                    dying_after(n)
                    tools.compress(str(folder), threads=1)

                pid = in_child(convert_and_die)
                statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                found = {n: c for n, c in visible(folder).items() if not n.endswith(".bak")}
                assert found in versions.contents
            n_both += statuses == [99, 99]
            tools.compress(str(folder), threads=1)
            assert versions.assert_one_of_them(folder, ignore=".bak") == 1
            assert not (folder / switch.STAGING_NAME).exists()
            shutil.rmtree(folder)
    assert n_both > 20


def test_killed_at_200_random_moments(tmp_path: Path, versions: Versions) -> None:
    """SIGKILL falls wherever it falls; whatever the outcome, it has to be one of the two."""
    moments = random.Random(4)
    folder = clone(versions.plain, tmp_path / "victim")

    def convert() -> None:
        tools.compress(str(folder), in_place=True)
        tools.decompress(str(folder), in_place=True)

    started = time.monotonic()
    os.waitpid(in_child(convert), 0)
    lasts = time.monotonic() - started
    assert versions.assert_one_of_them(folder) == 0
    n_interrupted = 0
    for _ in range(200):
        pid = in_child(convert)
        time.sleep(moments.random() * lasts)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        n_interrupted += (folder / switch.STAGING_NAME).exists()
        versions.assert_one_of_them(folder)
        # The next run starts on what this one has left.
    assert n_interrupted
    tools.compress(str(folder), in_place=True)
    assert versions.assert_one_of_them(folder) == 1
    assert sorted(os.listdir(folder)) == sorted(os.listdir(versions.plain))


FULL_DISK = textwrap.dedent(
    """
    import os, sys
    sys.path.insert(0, sys.argv[3])
    from tests.images.checkpoints import content_of, clone
    from pathlib import Path
    from helperd import errors, tools

    source, mount, n_free = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[4])
    convert = getattr(tools, sys.argv[5])
    folder = clone(source, mount / "images")
    before = content_of(folder)
    room = os.statvfs(mount)
    with open(mount / "filler", "wb") as filler:
        filler.write(bytes((room.f_bavail - n_free) * room.f_bsize))
    try:
        convert(str(folder), in_place=True, threads=1)
    except errors.ResourceError as error:
        assert "ENOSPC" in str(error), error
        assert content_of(folder) == before
        assert tools.check([str(folder)]).findings == []
        print("full")
    else:
        assert tools.check([str(folder)]).findings == []
        print("fits")
    """
)


def run_on_small_disk(source: Path, mount: Path, n_free: int, command: str) -> str:
    """Convert on a tmpfs with ``n_free`` free blocks; return "full" or "fits"."""
    mount.mkdir(exist_ok=True)
    inner = f'mount -t tmpfs -o size=4m none {mount} && exec "$@"'
    done = subprocess.run(
        [
            *("unshare", "--map-root-user", "--mount", "sh", "-c", inner, "sh", sys.executable),
            *("-c", FULL_DISK, str(source), str(mount), str(ROOT), str(n_free), command),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no tmpfs of our own: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_full_disk(tmp_path: Path, versions: Versions) -> None:
    for command, source in (("compress", versions.plain), ("decompress", versions.compressed)):
        outcomes = [
            run_on_small_disk(source, tmp_path / "mount", n_free, command)
            for n_free in (0, 3, 9, 200)
        ]
        assert outcomes == sorted(outcomes, reverse=True)
        assert (outcomes[0], outcomes[-1]) == ("full", "fits")


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "1")
    (folder / switch.STAGING_NAME).symlink_to("elsewhere")
    before = content_of(folder)
    for output in (None, str(tmp_path / "2")):
        with pytest.raises(errors.ImageError, match="not a folder that helperd made"):
            tools.compress(str(folder), output=output)
    assert content_of(folder) == before


def test_a_backup_that_exists_is_told_of_before_anything_is_written(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "images")
    (folder / "pages-8.img.bak").write_bytes(b"kept")
    names = ["pagemap-8.img", "pages-8.img"]
    with switch.locked(str(folder)) as directory:
        directory.check_replaceable(names, backups=False)
        with pytest.raises(errors.UsageError, match=r"pages-8\.img\.bak: exists"):
            directory.check_replaceable(names, backups=True)


def test_a_backup_that_is_a_link_to_nowhere_exists(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "images")
    (folder / "pages-8.img.bak").symlink_to("nowhere")
    with (
        switch.locked(str(folder)) as directory,
        pytest.raises(errors.UsageError, match=r"pages-8\.img\.bak: exists"),
    ):
        directory.check_replaceable(["pages-8.img"], backups=True)


def staged(new: switch.Switch, name: str, content: bytes) -> None:
    """Write the new content of a file."""
    with os.fdopen(new.stage(name).make(os.O_WRONLY), "wb") as file:
        file.write(content)


def test_a_backup_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "images")
    before = content_of(folder)
    with switch.locked(str(folder)) as directory, directory.replacing() as new:
        staged(new, "pages-8.img", b"new")
        (folder / "pages-8.img.bak").write_bytes(b"kept")
        with pytest.raises(errors.UsageError, match=r"pages-8\.img\.bak: exists"):
            new.commit(backups=True)
    assert content_of(folder) == before | {"pages-8.img.bak": b"kept"}


def test_who_may_enter_what_is_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = small_checkpoint(tmp_path / "images")
    folder.chmod(0o755)
    staging = folder / switch.STAGING_NAME
    seen: list[list[int]] = []

    def modes(*names: str) -> list[int]:
        return [stat.S_IMODE((staging / name).stat().st_mode) for name in names]

    recover = switch.Directory.recover

    def look(directory: switch.Directory) -> None:
        if staging.exists():
            seen.append(modes("", "old", "new"))
        recover(directory)

    monkeypatch.setattr(switch.Directory, "recover", look)
    with switch.locked(str(folder)) as directory, directory.replacing() as new:
        staged(new, "pages-8.img", b"new")
        # Nobody else before it is complete; then all who may read the files, through the links.
        assert modes("", "new") == [0o700, 0o700]
        new.commit(backups=False)
    assert seen == [[0o755] * 3]


def test_a_link_in_the_place_of_a_backup_is_not_ours(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "images")
    before = content_of(folder)
    staging = folder / switch.STAGING_NAME
    for path in (staging, staging / "old", staging / "new"):
        path.mkdir(mode=0o700)
    for name in ("pages-7.img", "pages-8.img"):
        os.link(folder / name, staging / "old" / name)
    os.link(folder / "pages-7.img", folder / "pages-7.img.bak")
    (folder / "pages-8.img.bak").symlink_to("pages-8.img")
    (staging / "current").symlink_to("old")
    with switch.locked(str(folder)) as directory:
        directory.recover()
    assert content_of(folder) == before | {"pages-8.img.bak": "pages-8.img"}


def test_a_file_that_becomes_a_link_is_not_followed(tmp_path: Path) -> None:
    """Else its target would be taken for the old file, and get another name."""
    folder = small_checkpoint(tmp_path / "images")
    victim = tmp_path / "victim"
    victim.write_bytes(b"somebody else's")

    def replace() -> None:
        with switch.locked(str(folder)) as directory, directory.replacing() as new:
            staged(new, "pages-8.img", b"new")
            (folder / "pages-8.img").unlink()
            (folder / "pages-8.img").symlink_to(victim)
            new.commit(backups=True)

    with pytest.raises(errors.ImageError):
        replace()
    assert victim.stat().st_nlink == 1
    assert victim.read_bytes() == b"somebody else's"


def test_one_changes_a_directory_at_a_time(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "images")
    others = switch.locked(str(folder))
    with (
        switch.locked(str(folder)),
        pytest.raises(errors.UsageError, match="another process is changing"),
    ):
        others.__enter__()
    with switch.locked(str(folder)):
        pass
    with pytest.raises(NotADirectoryError):
        switch.locked(str(folder / "pages-8.img")).__enter__()


def test_no_descriptor_stays_open(tmp_path: Path, versions: Versions) -> None:
    folder = clone(versions.plain, tmp_path / "images")
    before = os.listdir("/proc/self/fd")
    tools.compress(str(folder), in_place=True, threads=1)
    assert os.listdir("/proc/self/fd") == before
    # Nor when there is something to clean up.
    for path in (switch.STAGING_NAME, f"{switch.STAGING_NAME}/new", f"{switch.STAGING_NAME}/old"):
        (folder / path).mkdir(mode=0o700)
    with switch.locked(str(folder)) as directory:
        directory.recover()
    assert os.listdir("/proc/self/fd") == before
    assert not (folder / switch.STAGING_NAME).exists()


def test_a_linked_file_is_not_replaced(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "1")
    (folder / "pages-8.img").rename(tmp_path / "elsewhere")
    (folder / "pages-8.img").symlink_to(tmp_path / "elsewhere")
    before = content_of(folder)
    with pytest.raises(errors.ImageError, match=r"pages-8\.img: not a file itself"):
        tools.compress(str(folder), in_place=True)
    assert content_of(folder) == before
    tools.compress(str(folder), output=str(tmp_path / "2"))
    assert tools.check([str(tmp_path / "2")]).findings == []


def test_a_copy_of_an_interrupted_directory_is_whole(tmp_path: Path, versions: Versions) -> None:
    def die_in_the_middle() -> None:
        dying_after(30)
        tools.compress(str(versions.plain), in_place=True, threads=1)

    os.waitpid(in_child(die_in_the_middle), 0)
    assert (versions.plain / switch.STAGING_NAME).exists()
    tools.compress(str(versions.plain), output=str(tmp_path / "2"), threads=1)
    assert visible(tmp_path / "2") == versions.contents[1]
    assert sorted(os.listdir(tmp_path / "2")) == sorted(versions.contents[1])


def test_every_step_is_on_disk_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = small_checkpoint(tmp_path / "1")
    steps: list[str] = []

    def watch(name: str, describe: Callable[..., str]) -> None:
        call = getattr(os, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            steps.append(describe(*arguments))
            return call(*arguments, **options)

        monkeypatch.setattr(os, name, watched)

    def name_of(path: str) -> str:
        return os.path.basename(path).split("-")[0]

    watch("rename", lambda source, target: f"{name_of(source)} to {name_of(target)}")
    watch("symlink", lambda text, path: f"link to {text if '/' not in text else 'current'}")
    real_sync = os.fsync

    def sync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            steps.append(f"sync {os.path.basename(os.readlink(f'/proc/self/fd/{fd}'))}")
        real_sync(fd)

    monkeypatch.setattr(os, "fsync", sync)
    tools.compress(str(folder), in_place=True)
    files = ["inventory.img", *["pagemap"] * 3, *["pages"] * 3]
    assert steps == [
        "sync new",
        "link to old",
        *("sync old", "sync .helperd", "sync 1"),
        *(step for file in files for step in ("link to current", f"link to {file}")),
        "sync 1",
        *("link to new", "link to current", "sync .helperd"),
        *(f"{file} to {file}" for file in files),
        "sync 1",
        "sync 1",
    ]


def test_owner_mode_times_and_attributes_are_kept(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "1")
    attributed = []
    for number, path in enumerate(sorted(folder.iterdir())):
        path.chmod(0o604)
        try:
            os.setxattr(path, "user.note", b"%d" % number)
            attributed.append(path)
        except OSError:
            pass  # a file system without them
        os.utime(path, ns=(10**18 + number, 10**18 + number))
    before = {path: path.stat() for path in folder.iterdir()}
    notes = {path: os.getxattr(path, "user.note") for path in attributed}
    tools.compress(str(folder), in_place=True)
    for path, status in before.items():
        after = path.stat()
        assert (after.st_mode, after.st_uid, after.st_gid, after.st_mtime_ns) == (
            *(status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns),
        )
    assert {path: os.getxattr(path, "user.note") for path in attributed} == notes


def test_real_images_die_too(image_archive: ImageArchive, tmp_path: Path) -> None:
    archive = clone(image_archive("tree"), tmp_path / "tree")
    (dump,) = load_dumps(archive)
    folder = archive / "images"
    for n_steps in (5, 15, 30, 36, 40, 48, 60):

        def convert_and_die(n_steps: int = n_steps) -> None:
            dying_after(n_steps)
            tools.compress(str(folder), in_place=True)
            tools.decompress(str(folder), in_place=True)

        os.waitpid(in_child(convert_and_die), 0)
        assert_is_truth(folder, dump)
    tools.decompress(str(folder), in_place=True)
    assert content_of(archive) == content_of(image_archive("tree"))
    assert ImageDirectory(str(folder)).names
