"""Files are written whole or not at all."""

import errno
import json
import os
import threading
from pathlib import Path

import pytest

from lambdanets.files import (
    check_file,
    check_folder,
    check_name,
    digest_file,
    flush,
    make_folder,
    read_csv,
    read_json,
    remove_folder,
    replacing,
    replacing_folder,
    write_csv,
    write_json,
    write_table,
    write_text,
)


def test_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_text("old")

    def fail():
        with replacing(path) as temporary:
            temporary.write_text("ha")
            raise OSError(errno.ENOSPC, "No space left on device")

    # The system's error names no file; ours names the one that was asked for.
    with pytest.raises(OSError, match=r"No space left on device: '.*/weights\.bin'"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("place", [os.symlink, os.link])
def test_what_lies_at_the_temporary_name_is_not_written_to(tmp_path, place):
    """It can be told in advance, and the folder may come from a stranger."""
    precious = tmp_path / "precious"
    precious.write_text("kept")
    place(precious, tmp_path / f".facts.{os.getpid()}.json")
    write_json(tmp_path / "facts.json", 1)
    assert precious.read_text() == "kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["facts.json", "precious"]


def test_a_file_system_that_refuses_to_remove_names_the_file_too(tmp_path, monkeypatch):
    """One that is read-only does, even where there is nothing."""

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system", "hidden")

    monkeypatch.setattr(Path, "unlink", refuse)
    with (
        pytest.raises(OSError, match=r"Read-only file system: '.*/weights\.bin'"),
        replacing(tmp_path / "weights.bin") as temporary,
    ):
        raise OSError(errno.EROFS, "Read-only file system", str(temporary))


def test_write_replaces_the_file_only_at_the_end(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with replacing(path) as temporary:
        assert temporary.suffix == ".json"
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_one(tmp_path):
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "weights.bin", tmp_path / "latest.bin"
    target.write_text("old")
    link.symlink_to(target)
    with replacing(link) as temporary:
        temporary.write_text("new")
    assert (link.is_symlink(), target.read_text()) == (True, "new")


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    """As /dev/stdout and every device: for root the move would succeed, and destroy it."""
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    with replacing(pipe) as given:
        assert given == pipe
        given.write_text("through")
    reader.join(timeout=1800)
    assert read == ["through"]
    assert pipe.is_fifo()


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="this system has no /dev/full")
def test_a_device_that_takes_nothing_more():
    path = Path("/dev/full")
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"), replacing(path) as given:
        given.write_text("new")
    assert path.is_char_device()


@pytest.mark.parametrize(
    ("name", "error"), [("no/folder.csv", FileNotFoundError), ("folder", IsADirectoryError)], ids=["missing", "folder"]
)
def test_errors_name_the_file_that_was_asked_for(tmp_path, name, error):
    (tmp_path / "folder").mkdir()
    path = tmp_path / name
    with pytest.raises(error) as told, replacing(path) as temporary:
        temporary.write_text("new")
    assert str(told.value).endswith(f"directory: {str(path)!r}")
    assert [each.name for each in tmp_path.iterdir()] == ["folder"]


def test_places_for_files(tmp_path):
    check_file(tmp_path / "new.csv", "--csv")
    with pytest.raises(ValueError, match=r"--csv .*no/new\.csv is in .*no, which is no folder; make it first"):
        check_file(tmp_path / "no" / "new.csv", "--csv")
    with pytest.raises(ValueError, match=r"--csv .* is a folder; name a file in it"):
        check_file(tmp_path, "--csv")


def test_places_that_the_system_refuses(tmp_path, monkeypatch):
    """As on a file system that is read-only, which root may not write to either."""
    (tmp_path / "old.csv").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: not (mode & os.W_OK and path == refused))
    for refused in (tmp_path, tmp_path / "old.csv"):
        with pytest.raises(ValueError, match=rf"old\.csv cannot be written: no permission for {refused}; give another"):
            check_file(tmp_path / "old.csv", "--csv")
    check_file(tmp_path / "new.csv", "--csv")
    # A link is followed, as what it leads to is replaced.
    (there := tmp_path / "there").mkdir()
    (there / "file.csv").touch()
    (tmp_path / "link.csv").symlink_to(there / "file.csv")
    refused = tmp_path
    check_file(tmp_path / "link.csv", "--csv")
    refused = there
    with pytest.raises(ValueError, match=rf"link\.csv cannot be written: no permission for {there}; give another"):
        check_file(tmp_path / "link.csv", "--csv")


def test_names_that_are_no_text(tmp_path):
    check_name(tmp_path / "名")
    with pytest.raises(ValueError, match=r"run\\xfe' is not valid UTF-8; rename it"):
        check_name(tmp_path / os.fsdecode(b"run\xfe"))


def test_places_for_folders(tmp_path):
    (tmp_path / "file").touch()
    check_folder(tmp_path)
    check_folder(tmp_path / "no" / "new")
    with pytest.raises(ValueError, match=r"the output .*file is a file; give a folder"):
        check_folder(tmp_path / "file")
    with pytest.raises(ValueError, match=r"the output .*file/new is inside .*file, which is a file; give a folder"):
        check_folder(tmp_path / "file" / "new")


def test_csv_reads_back(tmp_path):
    rows = [{"epoch": 1, "loss": 0.1 + 0.2}, {"epoch": 2, "loss": 1e-17}]
    write_csv(tmp_path / "a.csv", rows)
    assert read_csv(tmp_path / "a.csv") == rows
    written = (tmp_path / "a.csv").read_text()
    write_csv(tmp_path / "a.csv", read_csv(tmp_path / "a.csv"))
    assert (tmp_path / "a.csv").read_text() == written
    assert read_csv(tmp_path / "missing.csv") == []


def test_text_keeps_its_line_ends(tmp_path):
    write_text(tmp_path / "a", "x\r\ny\n")
    assert (tmp_path / "a").read_bytes() == b"x\r\ny\n"


def test_json_goes_through_a_pipe(tmp_path):
    """Which cannot be synced to a disk."""
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    write_json(pipe, {"a": 1})
    reader.join(timeout=1800)
    assert read == ['{\n  "a": 1\n}\n']


def test_names_that_are_no_text_come_back_from_json(tmp_path):
    """Python stands for a byte of a name that is not UTF-8 by half of a surrogate pair."""
    names = ["\udcff", "犬", "a\nb"]
    write_json(tmp_path / "a.json", names)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == names


def test_columns_of_a_table_may_have_one_name(tmp_path):
    write_table(tmp_path / "a.csv", ["x", "x"], [["1,2", 3]])
    assert (tmp_path / "a.csv").read_bytes() == b'x,x\n"1,2",3\n'


@pytest.fixture
def calls(monkeypatch):
    """The calls that decide what a power cut leaves, in their order, with the names that they are about."""
    found = []
    sync, replace, rename = os.fsync, os.replace, os.rename

    def fsync(descriptor):
        found.append(("flush", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    for name, call in (("replace", replace), ("rename", rename)):

        def moved(source, target, call=call, name=name):
            found.append((name, Path(target).name))
            call(source, target)

        monkeypatch.setattr(os, name, moved)
    return found


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, calls):
    write_text(tmp_path / "a.txt", "new")
    assert calls == [("flush", f".a.{os.getpid()}.txt"), ("replace", "a.txt"), ("flush", tmp_path.name)]


def test_a_folder_is_on_the_disk_before_it_has_its_name(tmp_path, calls):
    with replacing_folder(tmp_path / "a") as folder:
        for name in ("x", "y"):
            (folder / name).touch()
    temporary = f".a.{os.getpid()}"
    assert calls == [
        ("flush", "x"),
        ("flush", "y"),
        ("flush", temporary),
        ("rename", "a"),
        ("flush", tmp_path.name),
    ]
    calls.clear()
    remove_folder(tmp_path / "a")
    assert calls == [("rename", f"{temporary}.removed"), ("flush", tmp_path.name)]
    assert list(tmp_path.iterdir()) == []


def test_folders_that_are_made_are_kept(tmp_path, calls):
    make_folder(tmp_path / "a" / "b")
    assert sorted(calls) == sorted([("flush", tmp_path.name), ("flush", "a")])
    calls.clear()
    make_folder(tmp_path / "a" / "b")
    assert calls == []


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), ValueError()])
def test_a_folder_that_fails_leaves_nothing(tmp_path, error):
    def fail():
        with replacing_folder(tmp_path / "a") as folder:
            (folder / "x").touch()
            raise error

    with pytest.raises(type(error)) as told:
        fail()
    if isinstance(error, OSError):
        assert str(told.value).endswith(f"{str(tmp_path / 'a')!r}")
    assert list(tmp_path.iterdir()) == []


def test_errors_in_a_folder_name_the_file_under_its_name_to_be(tmp_path):
    with pytest.raises(OSError, match=r"directory: '.*/a/none/x'") as told, replacing_folder(tmp_path / "a") as folder:
        (folder / "none" / "x").write_text("new")
    assert str(os.getpid()) not in str(told.value).replace(str(tmp_path), "")


def test_permissions_are_those_of_the_users_settings(tmp_path):
    """Whatever the writer gives: safetensors writes for the user alone."""
    (tmp_path / "new").touch()
    mode = (tmp_path / "new").stat().st_mode
    with replacing(tmp_path / "a") as temporary:
        temporary.unlink()
        os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
    with replacing_folder(tmp_path / "b") as folder:
        os.close(os.open(folder / "x", os.O_CREAT | os.O_WRONLY, 0o600))
        (folder / "y").mkdir()
        (folder / "y" / "z").touch()
    assert (tmp_path / "a").stat().st_mode == mode
    assert (tmp_path / "b" / "x").stat().st_mode == mode
    assert (tmp_path / "b" / "y" / "z").exists()
    # What a user gave a file stays when it is written anew.
    (tmp_path / "a").chmod(0o600)
    write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


def test_digest_and_flush(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * (3 << 20))
    (tmp_path / "b").write_bytes(b"x" * (3 << 20) + b"y")
    assert digest_file(tmp_path / "a") == digest_file(tmp_path / "a") != digest_file(tmp_path / "b")
    with pytest.raises(FileNotFoundError):
        flush(tmp_path / "none")


def test_windows_flushes_what_is_open_for_writing(tmp_path, monkeypatch):
    (tmp_path / "a").touch()
    flags, original = [], os.open
    monkeypatch.setattr(os, "open", lambda path, flag: flags.append(flag) or original(path, flag))
    monkeypatch.setattr(os, "name", "nt")
    flush(tmp_path / "a")
    flush(tmp_path)  # folders cannot be opened there
    monkeypatch.undo()
    assert flags == [os.O_RDWR]


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "a") == {"a": 1}
