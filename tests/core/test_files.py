"""Files appear whole or not at all."""

import errno
import os
import subprocess
import sys

import pytest

from must.core import files


def test_a_failed_write_leaves_the_old_content_and_no_rest(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    files.write_text(path, "old\r\n")
    with pytest.raises(RuntimeError), files.replacing(path) as file:
        file.write("half")
        raise RuntimeError
    assert path.read_bytes() == b"old\r\n" and os.listdir(path.parent) == ["a.txt"]
    files.write_json(path, {"é": [1]})
    assert path.read_text(encoding="utf-8") == '{\n "é": [\n  1\n ]\n}\n'
    assert path.stat().st_mode & 0o777 == 0o666 & ~files._umask()


def test_a_killed_writer_leaves_the_old_content(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    code = f"""
import os, signal
from must.core import files
with files.replacing({str(path)!r}) as file:
    file.write("new")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert path.read_text() == "old"


def test_a_directory_appears_whole(tmp_path):
    target = tmp_path / "d"
    with pytest.raises(RuntimeError), files.whole_directory(target) as partial:
        files.write_text(os.path.join(partial, "a"), "x")
        raise RuntimeError
    assert os.listdir(tmp_path) == []
    for content in ("one", "two"):
        with files.whole_directory(target, replace=True) as partial:
            files.write_text(os.path.join(partial, "a"), content)
        assert (target / "a").read_text() == content
    with (
        pytest.raises(OSError),
        files.whole_directory(target) as partial,
    ):  # it has content, and nobody asked to replace it
        files.write_text(os.path.join(partial, "a"), "three")
    assert (target / "a").read_text() == "two" and os.listdir(tmp_path) == ["d"]
    os.replace(target, tmp_path / "d.replaced")  # killed while it replaced the old content
    with pytest.raises(RuntimeError), files.whole_directory(target, replace=True):
        raise RuntimeError
    assert (target / "a").read_text() == "two" and os.listdir(tmp_path) == ["d"]


def test_the_first_of_two_writers_wins(tmp_path):
    for content in ("first", "second"):
        files.write_once(tmp_path / "claim.json", content, str(tmp_path))
    assert (tmp_path / "claim.json").read_text() == "first" and os.listdir(tmp_path) == ["claim.json"]
    with pytest.raises(FileExistsError):
        files.create_empty(tmp_path / "claim.json")


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK])
def test_the_first_writer_wins_without_hard_links(tmp_path, monkeypatch, code):
    def refused(*paths):
        raise OSError(code, os.strerror(code), *paths)

    monkeypatch.setattr(os, "link", refused)
    for content in ("first", "second"):
        files.write_once(tmp_path / "a", content, tmp_path)
    assert (tmp_path / "a").read_text() == "first" and sorted(os.listdir(tmp_path)) == ["a", "a.lock"]


def test_a_full_disk_is_recognized_in_errors_of_native_code():
    try:
        try:
            raise ValueError("RESOURCE_EXHAUSTED: Failed to write: No space left on device [os_error_code='28']")
        except ValueError as error:
            raise RuntimeError("save failed") from error
    except RuntimeError as error:
        assert files.out_of_space(error)
    assert files.out_of_space(OSError(errno.EDQUOT, "quota"))
    assert not files.out_of_space(OSError(errno.EACCES, "denied")) and not files.out_of_space(ValueError("space"))


def test_a_copy_that_does_not_fit_is_refused_before_it_is_written(tmp_path):
    files.check_space(tmp_path, 1)
    with pytest.raises(OSError) as caught:
        files.check_space(tmp_path, 1 << 60)
    assert files.out_of_space(caught.value)


def test_links_permissions_and_long_names_survive_a_replacement(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    target.chmod(0o600)
    link.symlink_to(target)
    files.write_text(link, "new")
    assert link.is_symlink() and target.read_text() == "new" and target.stat().st_mode & 0o777 == 0o600
    files.write_text(tmp_path / ("é" * 120), "x")
