"""Files and folders are whole or absent, and JSON is strict."""

import json
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from jaxrec import files
from jaxrec.types import CheckpointError


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "deep" / "x.json"
    files.write_json(path, {"a": 1})

    def fail(beside):
        beside.write_text("half")
        raise OSError

    with pytest.raises(OSError):
        files.write_atomic(path, fail)
    assert json.loads(path.read_text()) == {"a": 1}


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "cache" / "table"

    def fail(part):
        (part / "0").write_text("half")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        files.write_folder(folder, fail)
    assert list(folder.parent.iterdir()) == []
    files.write_folder(folder, lambda part: (part / "0").write_text("ours"))
    files.write_folder(folder, lambda part: (part / "0").write_text("theirs"))  # came too late
    assert (folder / "0").read_text() == "ours"
    assert list(folder.parent.iterdir()) == [folder]


KILLED = """
import sys, time
from pathlib import Path
from jaxrec import files

def write(part):
    part.write_text("half")
    print("writing", flush=True)
    time.sleep(600)

files.write_atomic(Path(sys.argv[1]), write)
"""


def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(tmp_path):
    words = [sys.executable, "-c", KILLED]
    writers = [
        subprocess.Popen([*words, tmp_path / name], stdout=subprocess.PIPE, text=True)
        for name in ("dead", "alive")
    ]
    try:
        assert [writer.stdout.readline() for writer in writers] == ["writing\n"] * 2
        writers[0].kill()
        writers[0].wait()
        files.write_text(tmp_path / "new", "whole")
        left = [path for path in tmp_path.iterdir() if path.name != "new"]
        assert [path.name for folder in left for path in folder.iterdir()] == ["alive"]
        assert all(folder.name.endswith(files.PART) for folder in left)
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
            writer.stdout.close()


def test_many_writers_of_one_file_leave_one_of_their_files(tmp_path):
    path, pages = tmp_path / "page", [f"{n}" * 10_000 for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda page: files.write_text(path, page), pages * 20))
    assert path.read_text() in pages
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_strict_and_exact(tmp_path):
    value = {"pi": math.pi, "none": float("nan"), "list": (np.float64(0.1), np.int32(3), math.inf)}
    files.write_json(tmp_path / "x.json", value)
    read = json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail)
    assert read == {"pi": math.pi, "none": None, "list": [0.1, 3, None]}


def test_rows_are_read_and_a_cut_line_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"round": n, "loss": n / 3, "seconds": 0.1} for n in (5, 10, 15)]
    for row in rows:
        files.append_row(path, row)
    with path.open("a") as file:
        file.write('{"round": 20, "lo')
    assert files.read_rows(path) == rows
    files.write_rows(path, rows[:2])
    assert files.read_rows(path) == rows[:2]
    assert files.read_rows(tmp_path / "absent.jsonl") == []


@pytest.mark.parametrize("bad", ['{"round": 2, "sec', '{"round": 2}', "[2, 0.1]", "2", '""'])
def test_a_damaged_line_is_refused_by_number(tmp_path, bad):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"round": 1, "seconds": 0.1}}\n{bad}\n{{"round": 3, "seconds": 0.1}}\n')
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl, line 2: damaged, lacks "):
        files.read_rows(path)
