"""WebDataset shards: tar files in which files of one name, side by side, are a sample (``0001.jpg``, ``0001.cls``).

Shards are read where they lie, an image at a time, and never as a whole. What a part consists of is told by
``_info.json`` (or ``info.json``) in the folder, as timm writes it; without it by the names of the tar files
(``train-0000.tar``, ``val/0000.tar``). Labels are numbers in ``.cls`` files, or in a field of ``.json`` files that
``_info.json`` names as ``alt_label``.

timm's own reader is not used for them: it passes over images that it cannot decode, and repeats or leaves out images
where they do not divide by workers and processes. Here every image has an index, so an epoch has each of them once, in
an order that depends on the seed alone.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from lambdanets.files import read_json
from lambdanets.names import count, first_of
from lambdanets.training.data.folders import PART_FOLDERS
from lambdanets.training.data.inspection import fingerprint_files
from lambdanets.training.data.listing import describe_skipped, image_extensions, is_litter, list_files
from lambdanets.training.rules import is_inside

# The file of the class names, one a line.
CLASSES = "classes.txt"
_INFO = ("_info.json", "info.json")
# The bytes of a label's file, which is a number or a few fields.
_LABEL_BYTES = 1 << 20


@dataclass(frozen=True)
class Shards:
    """The shards of one part.

    Attributes:
        paths: the tar files.
        lengths: the samples in each, None where they must be counted.
        label: the field of a sample's ``.json`` that is its label; "" for its ``.cls``.
    """

    paths: tuple[Path, ...]
    lengths: tuple[int, ...] | None = None
    label: str = ""


class ShardReader:
    """Reader that gives the file and the label of a sample by its index, as timm's readers do.

    Args:
        shards: the shards, of which none is opened for it if their lengths are known.
        root: the data folder, to which names are relative.

    Attributes:
        lengths: samples in each shard.
        left_out: files of the shards read so far that are no part of a sample, as ``SHARD/NAME``.
    """

    def __init__(self, shards: Shards, root: Path) -> None:
        self.shards, self.root = shards, root
        self.left_out: list[str] = []
        self._tables: dict[int, np.ndarray] = {}
        self.lengths = shards.lengths or tuple(len(self._table(index)) for index in range(len(shards.paths)))
        self._ends = np.cumsum(self.lengths)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> tuple[io.BytesIO, int]:
        path, (image, image_bytes, label) = self._sample(index)
        with open(path, "rb") as file:
            file.seek(image)
            return io.BytesIO(file.read(image_bytes)), label

    def filename(self, index: int) -> str:
        """The shard and the name of the sample's image in it."""
        path, (image, _, _) = self._sample(index)
        with open(path, "rb") as file:
            file.seek(image - tarfile.BLOCKSIZE)
            name = file.read(100).split(b"\0", 1)[0].decode("utf-8", "replace")
        return f"{self._name(path)}/{name}"

    def known_labels(self) -> list[int] | None:
        """The labels of all samples; None where the lengths are told, so that not every shard has been read."""
        if self.shards.lengths is not None:
            return None
        return [label for index in range(len(self.lengths)) for label in self._table(index)[:, 2].tolist()]

    def fingerprint(self) -> bytes:
        """A digest of the shards' names, sizes and ends."""
        names = [self._name(path) for path in self.shards.paths]
        facts = json.dumps([names, fingerprint_files(self.shards.paths), self.lengths])
        return hashlib.blake2b(facts.encode(), digest_size=12).digest()

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _sample(self, index: int) -> tuple[Path, Sequence[int]]:
        if not 0 <= index < len(self):
            raise IndexError(f"the index of an image is {index}, and there are {len(self)}")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        position = index - int(self._ends[shard]) + self.lengths[shard]
        return self.shards.paths[shard], self._table(shard)[position].tolist()

    def _table(self, shard: int) -> np.ndarray:
        """The samples of a shard; read once by each process that needs it."""
        if shard not in self._tables:
            path = self.shards.paths[shard]
            table, left_out = index_shard(path, self.shards.label)
            expected = None if self.shards.lengths is None else self.shards.lengths[shard]
            if expected is not None and len(table) != expected:
                raise ValueError(
                    f"the shard {path} holds {len(table):,} samples with image and label, and {_INFO[0]} says "
                    f"{expected:,}; bring the whole file back, or write {_INFO[0]} anew"
                )
            self._tables[shard] = table
            self.left_out += [f"{self._name(path)}/{name}" for name in left_out]
        return self._tables[shard]


def index_shard(path: Path, label: str = "") -> tuple[np.ndarray, list[str]]:
    """Read where the images of a tar file lie, and their labels.

    Args:
        path: the shard.
        label: the field of the label; "" for labels in ``.cls`` files.

    Returns:
        A row for each sample that has an image and a label: offset and bytes of the image, and the class index. And the
        names of the files that are left out: a sample's images but the first, and what belongs to no sample.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no tar file, compressed, damaged or cut off, a sample lacks its image or its label or has it
            twice, or a label is no number.
    """
    if not path.is_file():
        raise FileNotFoundError(f"the shard {path} does not exist")
    size, images, wanted = path.stat().st_size, image_extensions(), ".json" if label else ".cls"
    samples: dict[str, dict[str, tuple[int, int, str]]] = {}
    others: list[tuple[str, str]] = []
    left_out: list[str] = []
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"{member.name} is cut off")
                archive.members = []  # type: ignore[attr-defined]  # else it keeps all of them
                if member.isdir() or any(map(is_litter, PurePosixPath(member.name).parts)):
                    continue
                key, ending = _key(member.name)
                if not member.isreg() or ending is None:
                    left_out.append(member.name)
                    continue
                kind = "image" if f".{ending.rpartition('.')[2]}" in images else f".{ending}"
                if kind not in ("image", wanted):
                    others.append((key, member.name))
                    continue
                parts = samples.setdefault(key, {})
                if kind not in parts:
                    parts[kind] = (member.offset_data, member.size, member.name)
                elif kind == "image" and member.name != parts[kind][2]:
                    left_out.append(member.name)
                else:
                    raise ValueError(f"it holds {member.name} twice; each sample has a name of its own")
    except (tarfile.TarError, ValueError, OverflowError) as error:
        remedy = "; unpack it to a plain .tar" if _is_compressed(path) else ""
        raise ValueError(f"the shard {path} cannot be read: {error}{remedy}") from error
    rows = []
    with open(path, "rb") as file:
        for key, parts in samples.items():
            if len(parts) < 2:
                missing = wanted if "image" in parts else "image"
                raise ValueError(f"the sample {key} of the shard {path} has no {missing}; write the shard anew")
            offset, length, _ = parts[wanted]
            file.seek(offset)
            rows.append((*parts["image"][:2], _label(file.read(min(length, _LABEL_BYTES)), label, key, path)))
    # Files of other kinds beside an image, as its text, are no images that are left out.
    left_out += [name for key, name in others if key not in samples]
    return np.array(rows, dtype=np.int64).reshape(-1, 3), left_out


def _label(text: bytes, field: str, key: str, path: Path) -> int:
    try:
        value: Any = text
        if field:
            value = functools.reduce(lambda value, name: value[name], field.split("."), json.loads(text))
        number = int(value)
        if not -1 <= number < 2**31 or (isinstance(value, float) and number != value):
            raise ValueError(f"{value!r} is no index")
    except (ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError) as error:
        what = f"no number in {field!r} of its .json" if field else "no number in its .cls"
        raise ValueError(f"the sample {key} of the shard {path} has {what}; labels are class indices") from error
    return number


def _key(name: str) -> tuple[str, str | None]:
    """The name of a file's sample and the file's ending: all behind the first dot of its name, in lower case."""
    folder, slash, base = name.rpartition("/")
    stem, dot, ending = base.partition(".")
    return f"{folder}{slash}{stem}", ending.lower() if dot and stem else None


def _is_compressed(path: Path) -> bool:
    """True for the name of a compressed tar file."""
    return bool(re.search(r"\.(tar\.(gz|bz2|xz|zst|lz4|lzma)|tgz|tbz2?|txz|tzst)$", path.name.lower()))


def find_shards(root: Path) -> tuple[dict[str, Shards], tuple[str, ...]]:
    """The parts of a folder of shards, by name; ``"all"`` where the names of the shards tell none.

    Returns:
        The parts, and sentences about shards, splits and files that are left out.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it has no shards, or compressed ones where names tell the parts; or its ``_info.json`` cannot be
            read.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"the folder of shards {root} does not exist")
    listing = list_files(root, (".tar",))
    info = next((root / name for name in _INFO if (root / name).exists()), None)
    others = [path for path in listing.skipped if path not in (info, root / CLASSES)]
    compressed = [path for path in others if _is_compressed(path)]
    if info is None:
        if compressed:
            names = [path.relative_to(root).as_posix() for path in compressed]
            raise ValueError(
                f"the folder {root} holds {count(len(names), 'shard that is', 'shards that are')} compressed, "
                f"{first_of(names)}; unpack to plain .tar, of which an image can be read by itself"
            )
        return _told_by_names(root, listing.files), describe_skipped(others, root)
    parts, notes = _told_by_info(root, info)
    listed = {path for shards in parts.values() for path in shards.paths}
    unlisted = [path.relative_to(root).as_posix() for path in (*listing.files, *compressed) if path not in listed]
    if unlisted:
        what = count(len(unlisted), "shard", "shards")
        notes += (f"Left out of {root}: {what} that no part of {info.name} lists, {first_of(unlisted)}.",)
    return parts, notes + describe_skipped([path for path in others if path not in compressed], root)


def _told_by_names(root: Path, paths: Sequence[Path]) -> dict[str, Shards]:
    if not paths:
        raise ValueError(f"the folder {root} holds no shards (.tar), nor {_INFO[0]} that names them")
    found: dict[str, list[Path]] = {}
    for path in paths:
        words = re.split(r"[^a-z]+", path.relative_to(root).as_posix().lower())
        parts = [part for part, known in PART_FOLDERS.items() if set(words) & set(known)]
        if len(parts) > 1:
            raise ValueError(f"the name of the shard {path} tells two parts, {' and '.join(parts)}; rename it")
        found.setdefault(parts[0] if parts else "all", []).append(path)
    if "all" in found and len(found) > 1:
        names = [path.relative_to(root).as_posix() for path in found["all"]]
        raise ValueError(f"the names of {first_of(names)} in {root} tell no part (train, val, test), as others do")
    return {part: Shards(tuple(paths)) for part, paths in found.items()}


def _told_by_info(root: Path, file: Path) -> tuple[dict[str, Shards], tuple[str, ...]]:
    info = read_json(file)
    splits = info.get("splits") if isinstance(info, Mapping) else None
    if not isinstance(splits, Mapping):
        raise ValueError(f"{file} has no object 'splits' with the shards of each part")
    parts, used = {}, []
    for part, known in PART_FOLDERS.items():
        names = [name for name in splits if name.lower() in known]
        if len(names) > 1:
            raise ValueError(f"{file} has the splits {' and '.join(names)} for the {part} images; keep one of them")
        for name in names:
            parts[part] = _told_split(root, file, name, splits[name])
            used.append(name)
    if not parts:
        raise ValueError(f"{file} has the splits {first_of(splits, 8)}, and none is train, validation or test")
    seen: set[Path] = set()
    for path in (path for shards in parts.values() for path in shards.paths):
        if path in seen:
            raise ValueError(f"{file} lists the shard {path.relative_to(root).as_posix()} twice; each has one part")
        seen.add(path)
    unknown = [name for name in splits if name not in used]
    if not unknown:
        return parts, ()
    what = count(len(unknown), "split that is", "splits that are")
    return parts, (f"Left out of {file}: {what} none of train, validation and test, {first_of(unknown)}.",)


def _told_split(root: Path, file: Path, name: str, split: Any) -> Shards:
    where = f"{file}: splits.{name}"
    names = split.get("filenames") if isinstance(split, Mapping) else None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"{where}.filenames is no list of names of shards")
    for word in names:
        if not is_inside(word):
            raise ValueError(f"{where}.filenames has {word!r}; shards lie inside of the folder")
    lengths = split.get("shard_lengths") or None
    is_list = isinstance(lengths, list) and len(lengths) == len(names)
    if lengths is not None and not (is_list and all(type(length) is int and 0 <= length < 2**40 for length in lengths)):
        raise ValueError(f"{where}.shard_lengths is no list of a number for each of the {len(names):,} shards")
    label = split.get("alt_label") or ""
    if not isinstance(label, str):
        raise ValueError(f"{where}.alt_label is no name of a field")
    return Shards(tuple(root / word for word in names), None if lengths is None else tuple(lengths), label)
