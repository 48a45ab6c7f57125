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
from timm.utils.misc import natural_key

from lambdanets.files import read_json
from lambdanets.training.data.folders import PART_FOLDERS
from lambdanets.training.data.inspection import fingerprint_files
from lambdanets.training.data.listing import first, image_extensions

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
    """Gives the file and the label of a sample by its index, as timm's readers do.

    Args:
        shards: the shards, of which none is opened for it if their lengths are known.
        root: the data folder, to which names are relative.

    Attributes:
        lengths: samples in each shard.
    """

    def __init__(self, shards: Shards, root: Path) -> None:
        self.shards, self.root = shards, root
        self._tables: dict[int, np.ndarray] = {}
        self.lengths = shards.lengths or tuple(len(self._table(index)) for index in range(len(shards.paths)))
        self._ends = np.cumsum(self.lengths)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> tuple[io.BytesIO, int]:
        path, (image, image_bytes, label, label_bytes) = self._sample(index)
        with open(path, "rb") as file:
            file.seek(image)
            content = file.read(image_bytes)
            file.seek(label)
            text = file.read(min(label_bytes, _LABEL_BYTES))
        return io.BytesIO(content), self._label(text, index)

    def filename(self, index: int) -> str:
        """The shard and the name of the sample's image in it."""
        path, (image, _, _, _) = self._sample(index)
        with open(path, "rb") as file:
            file.seek(image - tarfile.BLOCKSIZE)
            name = file.read(100).split(b"\0", 1)[0].decode("utf-8", "replace")
        return f"{path.relative_to(self.root).as_posix()}/{name}"

    def fingerprint(self) -> bytes:
        """A digest of the shards' names, sizes and ends."""
        names = [path.relative_to(self.root).as_posix() for path in self.shards.paths]
        facts = json.dumps([names, fingerprint_files(self.shards.paths), self.lengths])
        return hashlib.blake2b(facts.encode(), digest_size=12).digest()

    def _sample(self, index: int) -> tuple[Path, Sequence[int]]:
        if not 0 <= index < len(self):
            raise IndexError(f"the index of an image is {index}, and there are {len(self)}")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        position = index - int(self._ends[shard]) + self.lengths[shard]
        return self.shards.paths[shard], self._table(shard)[position].tolist()

    def _table(self, shard: int) -> np.ndarray:
        """Where the samples of a shard lie; read once by each process that needs it."""
        if shard not in self._tables:
            path = self.shards.paths[shard]
            table = index_shard(path, self.shards.label)
            expected = None if self.shards.lengths is None else self.shards.lengths[shard]
            if expected is not None and len(table) != expected:
                raise ValueError(
                    f"the shard {path} holds {len(table):,} samples with image and label, and {_INFO[0]} says "
                    f"{expected:,}; bring the whole file back, or write {_INFO[0]} anew"
                )
            self._tables[shard] = table
        return self._tables[shard]

    def _label(self, text: bytes, index: int) -> int:
        try:
            if not self.shards.label:
                return int(text)
            return int(functools.reduce(lambda value, key: value[key], self.shards.label.split("."), json.loads(text)))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            what = f"no number in {self.shards.label!r} of its .json" if self.shards.label else "no number in its .cls"
            raise ValueError(f"the sample {self.filename(index)} has {what}; labels are class indices") from error


def index_shard(path: Path, label: str = "") -> np.ndarray:
    """Read where the samples of a tar file lie, without reading their content.

    Args:
        path: the shard.
        label: the field of the label; "" for labels in ``.cls`` files.

    Returns:
        A row for each sample that has an image and a label: offset and bytes of the image, then of the label's file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no tar file, compressed, damaged or cut off, or a sample lacks its image or its label.
    """
    if not path.is_file():
        raise FileNotFoundError(f"the shard {path} does not exist")
    size, images, wanted = path.stat().st_size, image_extensions(), ".json" if label else ".cls"
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"{member.name} is cut off")
                key, ending = _key(member.name)
                if not member.isreg() or ending is None:
                    continue
                kind = "image" if f".{ending.rpartition('.')[2]}" in images else f".{ending}"
                samples.setdefault(key, {}).setdefault(kind, (member.offset_data, member.size))
                archive.members = []  # type: ignore[attr-defined]  # else it keeps all of them
    except (tarfile.TarError, ValueError, OverflowError) as error:
        remedy = "; unpack it to a plain .tar" if path.suffix in (".gz", ".tgz", ".bz2", ".xz", ".zst") else ""
        raise ValueError(f"the shard {path} cannot be read: {error}{remedy}") from error
    for key, parts in samples.items():
        # Files of other kinds alone (a README) are no sample.
        if ("image" in parts) != (wanted in parts):
            missing = wanted if "image" in parts else "image"
            raise ValueError(f"the sample {key} of the shard {path} has no {missing}; write the shard anew")
    rows = [(*parts["image"], *parts[wanted]) for parts in samples.values() if "image" in parts]
    return np.array(rows, dtype=np.int64).reshape(-1, 4)


def _key(name: str) -> tuple[str, str | None]:
    """The name of a file's sample and the file's ending: all behind the first dot of its name, in lower case."""
    folder, slash, base = name.rpartition("/")
    stem, dot, ending = base.partition(".")
    return f"{folder}{slash}{stem}", ending.lower() if dot and stem else None


def find_shards(root: Path) -> dict[str, Shards]:
    """The parts of a folder of shards, by name; ``"all"`` where the names of the shards tell none.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it has no shards, or its ``_info.json`` cannot be read.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"the folder of shards {root} does not exist")
    for name in _INFO:
        if (root / name).exists():
            return _told_by_info(root, root / name)
    paths = sorted(root.rglob("*.tar"), key=lambda path: (natural_key(str(path)), str(path)))
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
        raise ValueError(f"the names of {first(names)} in {root} tell no part (train, val, test), as others do")
    return {part: Shards(tuple(paths)) for part, paths in found.items()}


def _told_by_info(root: Path, file: Path) -> dict[str, Shards]:
    info = read_json(file)
    splits = info.get("splits") if isinstance(info, Mapping) else None
    if not isinstance(splits, Mapping):
        raise ValueError(f"{file} has no object 'splits' with the shards of each part")
    parts = {}
    for part, known in PART_FOLDERS.items():
        name = next((name for name in known if name in splits), None)
        if name is not None:
            parts[part] = _told_split(root, file, name, splits[name])
    if not parts:
        raise ValueError(f"{file} has the splits {first(list(splits), 8)}, and none is train, validation or test")
    return parts


def _told_split(root: Path, file: Path, name: str, split: Any) -> Shards:
    where = f"{file}: splits.{name}"
    names = split.get("filenames") if isinstance(split, Mapping) else None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"{where}.filenames is no list of names of shards")
    for word in names:
        path = PurePosixPath(word)
        if path.is_absolute() or ".." in path.parts or "\0" in word:
            raise ValueError(f"{where}.filenames has {word!r}; shards lie inside of the folder")
    lengths = split.get("shard_lengths") or None
    is_list = isinstance(lengths, list) and len(lengths) == len(names)
    if lengths is not None and not (is_list and all(type(length) is int and 0 <= length < 2**40 for length in lengths)):
        raise ValueError(f"{where}.shard_lengths is no list of a number for each of the {len(names):,} shards")
    label = split.get("alt_label") or ""
    if not isinstance(label, str):
        raise ValueError(f"{where}.alt_label is no name of a field")
    return Shards(tuple(root / word for word in names), None if lengths is None else tuple(lengths), label)
