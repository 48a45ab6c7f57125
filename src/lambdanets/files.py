"""Files and folders: refused early where they cannot be written, and written whole or not at all.

What is written is flushed to the disk before it gets its name, and its folder afterwards, so that a power cut leaves
the file or folder from before or the new one, never a part.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from safetensors import SafetensorError

__all__ = [
    "check_entry",
    "check_file",
    "check_folder",
    "check_name",
    "check_writable",
    "digest_file",
    "flush",
    "make_folder",
    "naming_failed_writes",
    "open_lock",
    "read_csv",
    "read_json",
    "read_rows",
    "read_text",
    "remove_folder",
    "replacing",
    "replacing_folder",
    "write_csv",
    "write_json",
    "write_table",
    "write_text",
]

# The largest text that is read whole, and the largest table: that of a run's split has a line for each image.
_TEXT_BYTES = 64 * 1024**2
_TABLE_BYTES = 4 * 1024**3


def check_file(path: Path, name: str) -> None:
    """Refuse a path where no file can be written, before work is done for it.

    Args:
        path: the file to write.
        name: what gave it, for messages: "--csv".

    Raises:
        ValueError: its folder does not exist, or it is a folder itself, or may not be written.
    """
    if not path.parent.is_dir():
        raise ValueError(f"{name} {path} is in {path.parent}, which is no folder; make it first")
    if path.is_dir():
        raise ValueError(f"{name} {path} is a folder; name a file in it")
    check_writable(path)


def check_writable(path: Path) -> None:
    """Refuse a file that the system will not let us write, as on a file system that is read-only.

    Raises:
        ValueError: no permission for the file, or for its folder, where a new one takes its place.
    """
    real = Path(os.path.realpath(path))  # a link stays, and what it leads to is replaced
    for place in [real, real.parent] if real.is_file() else [real if real.exists() else real.parent]:
        if not os.access(place, os.W_OK):
            raise ValueError(f"the output {path} cannot be written: no permission for {place}; give another file")


def check_name(path: Path) -> None:
    """Raise a ValueError for a path whose bytes are no UTF-8: it could be neither stored nor shown."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"the name {os.fsencode(path)!r} is not valid UTF-8; rename it") from None


def check_folder(path: Path) -> None:
    """Refuse a path where no folder is or can be made, before work is done for it.

    Raises:
        ValueError: it is a file, or inside of one, or may not be written to.
    """
    for part in (path, *path.parents):
        if part.exists() and not part.is_dir():
            inside = "" if part == path else f"inside {part}, which is "
            raise ValueError(f"the output {path} is {inside}a file; give a folder")
    nearest = next((part for part in (path, *path.absolute().parents) if part.exists()), path)
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f"the output {path} cannot be written: no permission for {nearest}; give another folder")


def check_entry(path: Path, *, folder: bool = False) -> None:
    """Refuse what lies at a name of ours in a folder that may come from a stranger: a link would lead elsewhere.

    Args:
        path: a name that we choose, of which nothing needs to be there; the folders above it may be links.
        folder: True for one where a folder belongs, not a file.

    Raises:
        ValueError: there is a link, or no regular file, or no folder.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode) if folder else stat.S_ISREG(mode):
        return
    kinds = ((stat.S_ISLNK, "link"), (stat.S_ISDIR, "folder"), (stat.S_ISREG, "file"))
    found = next((kind for test, kind in kinds if test(mode)), "pipe, a socket or a device")
    raise ValueError(f"{path} is a {found}, where a {'folder' if folder else 'regular file'} belongs; remove it")


def open_lock(path: Path) -> int:
    """Open a file for locks, which may be there, to read and write; never one that lies elsewhere.

    Returns:
        Its descriptor.

    Raises:
        ValueError: there is a link, or no regular file.
    """
    check_entry(path)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    if os.fstat(descriptor).st_nlink > 1:
        os.close(descriptor)
        raise ValueError(f"{path} is a file that has other names too (a hard link); remove it")
    return descriptor


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder, and move it onto ``path`` when the block ends well.

    A link stays, and what it leads to is replaced. A device or a pipe, as ``/dev/stdout``, cannot be replaced: it is
    written to itself.

    Args:
        path: the file to write or to overwrite.

    Yields:
        The path to write to. It keeps the suffix of ``path``, by which some writers choose the format.

    Raises:
        OSError: what the machine refused, about ``path`` and not about the temporary name.
    """
    replaceable = path.is_file() or path.is_dir() or not path.exists()
    target = Path(os.path.realpath(path)) if replaceable else path
    temporary = target.with_name(f".{target.stem}.{os.getpid()}{target.suffix}") if replaceable else target
    try:
        mode = _create(temporary) if replaceable else 0
        if replaceable and target.is_file():
            mode = target.stat().st_mode & 0o777
        yield temporary
        if replaceable:
            # Some writers, safetensors among them, give their files to the user alone.
            os.chmod(temporary, mode)
            flush(temporary)
            os.replace(temporary, target)
            flush(target.parent)
    except OSError as error:
        # A full disk names no file at all.
        if error.errno is None or error.filename not in (None, str(temporary), temporary):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        if replaceable:
            with suppress(OSError):  # a file system that is read-only refuses even what is not there
                temporary.unlink(missing_ok=True)


def _create(path: Path) -> int:
    """Make an empty file in place of a link or a file, and return the permissions that the user's settings give it."""
    with suppress(FileNotFoundError):
        os.remove(path)
    with open(path, "xb") as file:
        return os.fstat(file.fileno()).st_mode & 0o777


def flush(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk and outlast a power cut.

    Raises:
        OSError: the disk is full or broken.
    """
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":  # where folders cannot be opened
        return
    # Windows flushes only what is open for writing.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems keep names without being asked, and know no flush of folders.
        if not (is_folder and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, so that a power cut does not lose them again; it may exist."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        flush(folder.parent)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``path`` to fill, which gets that name when the block ends well.

    Args:
        path: the folder to make; must not exist.

    Yields:
        The empty folder to write files into.

    Raises:
        OSError: what the machine refused, about ``path`` and not about the temporary name.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        mode = temporary.stat().st_mode & 0o666
        yield temporary
        for file in sorted(temporary.rglob("*")):
            if file.is_file():
                # Some writers, safetensors among them, give their files to the user alone.
                os.chmod(file, mode)
            flush(file)
        flush(temporary)
        os.rename(temporary, path)
        flush(path.parent)
    except OSError as error:
        if error.errno is None or not str(error.filename or temporary).startswith(str(temporary)):
            raise
        name = str(error.filename or temporary).replace(str(temporary), str(path), 1)
        raise OSError(error.errno, error.strerror, name) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder and all in it: under its name it is whole until it is gone."""
    doomed = path.with_name(f".{path.name}.{os.getpid()}.removed")
    shutil.rmtree(doomed, ignore_errors=True)
    os.rename(path, doomed)
    # Else a power cut could bring the name back, with what is left in it.
    flush(path.parent)
    shutil.rmtree(doomed, ignore_errors=True)


def digest_file(path: Path) -> str:
    """A digest of a file's content, in hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def naming_failed_writes(path: Path) -> Iterator[None]:
    """Turn the error that safetensors raises when it cannot write into an OSError naming ``path``."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}. Is the disk full?") from error


def _open_text(path: Path) -> TextIO:
    # A file's name that is not UTF-8 holds lone surrogates, which have no encoding; JSON reads their escapes back.
    return open(path, "w", encoding="utf-8", errors="backslashreplace", newline="")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, all of it or nothing."""
    with replacing(path) as temporary, _open_text(temporary) as file:
        file.write(text)


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON, all of it or nothing."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of one shape as CSV with a header line, all of them or nothing."""
    header = list(rows[0]) if rows else []
    write_table(path, header, [[row[name] for name in header] for row in rows])


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a header line and rows as CSV, all of them or nothing; two columns may have one name."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([header, *rows] if header else rows)
    write_text(path, text.getvalue())


def read_json(path: Path) -> Any:
    """Read a JSON file that this package wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no regular file, too large, not UTF-8 or not JSON, holds NaN, infinity or the same key twice,
            or is nested too deeply; the message names the file.
    """
    text = read_text(path)
    try:
        return json.loads(text, parse_constant=_no_number, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError(f"{path} is damaged: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def read_text(path: Path, most: int = _TEXT_BYTES) -> str:
    """Read a UTF-8 text file of at most ``most`` bytes, without a byte-order mark; errors as of ``read_json``."""
    if not path.exists():
        raise FileNotFoundError(f"the file {path} does not exist")
    if not path.is_file():
        raise ValueError(f"{path} is a folder, a pipe or a device, and must be a file")
    if path.stat().st_size > most:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes, more than such a file can have")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: it is not UTF-8 ({error})") from error


def _no_number(word: str) -> None:
    raise ValueError(f"it holds {word}, which is no number of JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} occurs twice in one object")
    return content


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read a CSV file with a header line, every value as text; errors as of ``read_text``, with the line."""
    reader = csv.reader(io.StringIO(read_text(path, _TABLE_BYTES), newline=""), strict=True)
    try:
        header = next(reader, [])
        rows = []
        for row in reader:
            if len(row) != len(header):
                raise ValueError(f"line {reader.line_num} has {len(row)} values, the header {len(header)}")
            rows.append(dict(zip(header, row, strict=True)))
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return rows


def read_csv(path: Path) -> list[dict[str, float]]:
    """Read back the numbers that ``write_csv`` wrote; a missing file has no rows.

    Raises:
        ValueError: the file is damaged; the message names it, and the row where there is one.
    """
    if not path.exists():
        return []
    rows = []
    for index, row in enumerate(read_rows(path), start=1):
        try:
            rows.append({name: _number(value) for name, value in row.items()})
        except ValueError as error:
            raise ValueError(f"{path} is damaged: row {index}: {error}") from error
    return rows


def _number(text: str) -> float:
    """Whole numbers stay whole, so that written again they look the same."""
    try:
        return int(text)
    except ValueError:
        return float(text)
