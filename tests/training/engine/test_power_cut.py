"""A power cut at any moment leaves a run that goes on.

A double of the disk follows a training: it keeps of each file what was flushed, and of each folder the names that were.
At each call that changes what would be left, two disks are looked at: one that lost all that was not flushed, and one
that has every new name at once, but of a file's content only what was flushed.
"""

import os
import shutil

import pytest

from lambdanets import files
from lambdanets.training import resume, train
from lambdanets.training.engine.checkpoint import find_checkpoint, list_checkpoints


class Disk:
    """What a power cut would leave of a folder.

    Attributes:
        cuts: of each moment, the two disks as {relative path: content}.
    """

    def __init__(self, root, monkeypatch):
        self.root, self.contents, self.names, self.cuts, self.open = root, {}, {}, [], []
        monkeypatch.setattr(files.os, "fsync", self._flush)
        for module, name in ((files.os, "replace"), (files.os, "rename"), (shutil, "rmtree"), (os, "unlink")):
            monkeypatch.setattr(module, name, self._watched(getattr(module, name)))

    def _flush(self, descriptor):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        self.open.append(os.dup(descriptor))  # so that no other file gets its number when it is removed
        if os.path.isdir(path):
            entries = [os.path.join(path, name) for name in os.listdir(path)]
            self.names[os.stat(path).st_ino] = {os.path.basename(entry): os.stat(entry).st_ino for entry in entries}
        else:
            with open(path, "rb") as file:
                self.contents[os.fstat(descriptor).st_ino] = file.read()
        self._look()

    def _watched(self, call):
        def watched(*args, **kwargs):
            result = call(*args, **kwargs)
            self._look()
            return result

        return watched

    def _look(self):
        self.cuts.append((self._flushed(), self._named()))

    def _named(self):
        found = {}
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = os.path.join(folder, name)
                inode = os.stat(path).st_ino
                found[os.path.relpath(path, self.root)] = self.contents.get(inode, b"")
        return found

    def _flushed(self):
        found = {}

        def walk(folder, inode):
            for name, child in self.names.get(inode, {}).items():
                path = os.path.join(folder, name)
                if child in self.contents:
                    found[path] = self.contents[child]
                elif child in self.names:
                    walk(path, child)
                elif "tensorboard" not in path:
                    found[path] = b""

        walk("", os.stat(self.root).st_ino)
        return found


def restore(disk, folder):
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in disk.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder / "run"


@pytest.fixture(scope="module")
def followed(recipe, tmp_path_factory):
    """The cuts of a training, and the run that it ended with."""
    root = tmp_path_factory.mktemp("disk")
    (root / "parent").mkdir()
    recipe = recipe.override(epochs=2)
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(root / "parent", patch)
        train(recipe, output=root / "parent" / "run", checkpoint_every="2")
    for descriptor in disk.open:
        os.close(descriptor)
    return disk.cuts, root / "parent" / "run"


def test_every_moment_leaves_a_whole_checkpoint(followed, tmp_path):
    cuts, _ = followed
    assert len(cuts) > 100
    positions, begun, seen = [], [False, False], set()
    for pair in cuts:
        for kind, disk in enumerate(pair):
            if not any("checkpoint/" in name for name in disk):
                # Before the first checkpoint, or after the end of the training.
                assert not begun[kind] or b'"finished"' in disk["run/result.json"]
                continue
            # The look itself costs more than the training; equal disks are looked at once.
            key = (kind, tuple(sorted((name, hash(content)) for name, content in disk.items() if "checkpoint" in name)))
            if key in seen:
                continue
            seen.add(key)
            run = restore({name: content for name, content in disk.items() if "checkpoint" in name}, tmp_path / "cut")
            if not (run / "checkpoint" / "latest.json").exists():
                assert not begun[kind]
                continue
            begun[kind] = True
            checkpoint = find_checkpoint(run)
            positions.append((checkpoint.epoch, checkpoint.batch))
            assert len(list_checkpoints(run)) <= 3
    assert all(begun)
    assert set(positions) == {(0, 0), (0, 2), (1, 0), (1, 1), (2, 0)}


@pytest.mark.parametrize("kind", [0, 1], ids=["nothing but what was flushed", "new names, old contents"])
def test_runs_go_on_to_the_same_end(followed, tmp_path, kind):
    cuts, finished = followed
    having = [pair[kind] for pair in cuts if "run/checkpoint/latest.json" in pair[kind]]
    for disk in (having[len(having) // 3], having[-1]):
        run = restore(disk, tmp_path / "cut")
        resume(run)
        for name in ("best.safetensors", "last.safetensors"):
            assert (run / name).read_bytes() == (finished / name).read_bytes()
