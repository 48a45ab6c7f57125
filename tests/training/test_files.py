import pytest

from lambdanets.training.files import read_csv, replacing, write_csv, write_json, write_text


def test_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_text("old")

    def fail():
        with replacing(path) as temporary:
            temporary.write_text("ha")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_write_replaces_the_file_only_at_the_end(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == '{\n  "a": 1\n}\n'
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


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
