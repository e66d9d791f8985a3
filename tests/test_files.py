"""Files and folders are whole or absent, and JSON is strict."""

import errno
import json
import math
import os
import platform
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


HOLDING = """
import sys, time
from pathlib import Path
from jaxrec import files

with files.in_use(Path(sys.argv[1])):
    (Path(sys.argv[1]) / "deep" / f"x{files.PART}").mkdir(parents=True)
    print("holding", flush=True)
    time.sleep(600)
"""


def test_a_folder_is_of_one_process_until_that_ends_and_it_says_whose(tmp_path):
    folder = tmp_path / "run"
    words = [sys.executable, "-c", HOLDING, folder]
    owner = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout.readline() == "holding\n"
        named = rf"run: is in use by process {owner.pid} on {platform.node()} since \d{{4}}-.* \+"
        with pytest.raises(CheckpointError, match=named), files.in_use(folder):
            pytest.fail("two processes have it")
    finally:
        owner.kill()
        owner.wait()
        owner.stdout.close()
    left = {path.name for path in folder.rglob("*")}
    assert left == {"deep", f"x{files.PART}", files.LOCK}
    with files.in_use(folder):  # what the killed process left is gone
        assert {path.name for path in folder.rglob("*")} == {"deep", files.LOCK}
        with pytest.raises(CheckpointError, match="in use"), files.in_use(folder):
            pytest.fail("one process has it twice")
    assert [path.name for path in folder.rglob("*")] == ["deep"]


def test_a_new_folder_in_which_nothing_was_written_goes(tmp_path):
    with pytest.raises(ValueError), files.in_use(tmp_path / "new"):
        raise ValueError
    assert list(tmp_path.iterdir()) == []


def test_many_writers_of_one_file_leave_one_of_their_files(tmp_path):
    path, pages = tmp_path / "page", [f"{n}" * 10_000 for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda page: files.write_text(path, page), pages * 20))
    assert path.read_text() in pages
    assert list(tmp_path.iterdir()) == [path]


class RustError(Exception):
    """As safetensors has one, which is nothing else."""


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Error in fwrite\nat io.cpp:74: 12 != 200 (No space left on device)"),
        ValueError("RESOURCE_EXHAUSTED: writing: No space left on device\n[source locations...]"),
        RustError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_whatever_a_foreign_writer_raises_is_one_line_that_names_the_file(tmp_path, error):
    def fail(part):
        raise error

    path = tmp_path / "x.bin"
    with pytest.raises(OSError) as told, files.writing(path):
        files.write_atomic(path, fail)
    said = f"{path}: cannot be written: {os.strerror(errno.ENOSPC)}; make room, or choose"
    assert str(told.value).startswith(said) and "\n" not in str(told.value)
    assert told.value.errno == errno.ENOSPC


def test_what_is_no_error_of_a_writer_is_left_as_it_is(tmp_path):
    with pytest.raises(CheckpointError, match=r"^of another$"), files.writing(tmp_path):
        raise CheckpointError("of another")
    with pytest.raises(OSError, match=r"no such index at all$"), files.writing(tmp_path / "x"):
        raise RustError("no such index at all\nthe whole story")


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
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl, line 2: damaged, "):
        files.read_rows(path)
