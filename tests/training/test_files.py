import os
import threading

from lambdanets.training.files import read_csv, write_csv, write_json, write_text


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
    reader.join(timeout=10)
    assert read == ['{\n  "a": 1\n}\n']
