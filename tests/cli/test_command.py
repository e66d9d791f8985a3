"""A command ends with a status and one line, whatever ends it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jaxrec import files
from jaxrec.cli.command import exit_status
from jaxrec.types import DataError


def test_a_full_disk_says_how_to_go_on_and_what_is_wrong_does_not(capsys):
    said = []

    def fail(error):
        raise error

    full = OSError("x: cannot be written: No space left on device")
    assert exit_status(lambda: fail(full), lambda: said.append("go on")) == 2
    assert exit_status(lambda: fail(DataError("bad\nrows")), lambda: said.append("go on")) == 2
    assert said == ["go on"]
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["error: x: cannot be written: No space left on device", "error: bad rows"]


def test_sigterm_leaves_no_half_written_file(tmp_path):
    def write(part):
        part.write_text("half")
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("it goes on")

    before = signal.getsignal(signal.SIGTERM)
    assert exit_status(lambda: files.write_atomic(tmp_path / "x", write)) == 130
    assert signal.getsignal(signal.SIGTERM) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_standard_output_is_one_line():
    code = "from jaxrec.cli.command import exit_status; exit(exit_status(lambda: print(9)))"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert done.stderr == "error: [Errno 28] No space left on device\n"
