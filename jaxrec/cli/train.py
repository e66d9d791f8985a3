"""The command: python -m jaxrec.train METHOD [--config FILE] [--setting value ...] [--out DIR].

Exit status: 0, done; 2, refused or ended by what is wrong, in one line on stderr; 130, interrupted.
The first Ctrl-C or SIGTERM finishes the rounds up to the next evaluation, saves and says how to go
on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxrec import files
from jaxrec.cli.command import console, exit_status, folder_for, say_how_to_go_on, wants_help
from jaxrec.cli.help import Files, Output, print_help
from jaxrec.cli.programs import keep_no_programs
from jaxrec.methods import method_module
from jaxrec.report import bytes_to_quality, result_tables
from jaxrec.settings.words import take_options
from jaxrec.training import every_method, launch
from jaxrec.training.result import seconds_of
from jaxrec.training.run import Result, train
from jaxrec.training.run_folder import read_record
from jaxrec.training.settings import read_toml, read_words
from jaxrec.training.trackers import tracking
from jaxrec.types import SettingError

PROGRAM = "python -m jaxrec.train"


def main(words: Sequence[str]) -> int:
    """Train as the words say and print the table of results; returns the exit status."""
    begun: list[Path] = []  # the run's folder, once there is one
    stopped = lambda: say_how_to_go_on(PROGRAM, begun, "config.json")
    return exit_status(lambda: _train(words, begun), stopped)


def _train(words: Sequence[str], begun: list[Path]) -> None:
    named = words and not words[0].startswith("-")
    method, words = (words[0], words[1:]) if named else (None, words)
    if method and method != every_method.NAME:
        method_module(method)
    if wants_help(words):
        print_help(None if method == every_method.NAME else method, PROGRAM)
    short = lambda word: word == "--from" or word.startswith("--from=")  # `from` is Python's own
    words = [word.replace("--from", "--from-run", 1) if short(word) else word for word in words]
    paths, words = take_options(Files, words)
    output, words = take_options(Output, words)
    if output.distributed:
        keep_no_programs()
        launch.join(output.distributed)
        if not (paths.out or paths.resume):
            raise SettingError("--distributed: the processes share a folder; give --out")
    settings: dict[str, Any] = {}
    if before := paths.resume or paths.from_run:
        method = method or read_record(before)["method"]
    if paths.config:
        method, settings = read_toml(paths.config, method)
    method = method or "fedcia"
    every = method == every_method.NAME
    settings |= read_words(every_method.FLOOR if every else method, words)
    stem = f"{method}-{Path(settings.get('data', 'synthetic')).stem}"
    data, trackers = settings.pop("data", None), ",".join(output.track).split(",")
    trackers = [name for name in trackers if name]
    with folder_for(stem, paths.resume or paths.out) as out, tracking(trackers, out) as track:
        begun.append(out)
        given = {"out": paths.out if paths.resume else out}
        given |= {"track": track, "progress": not output.quiet}
        given |= {"resume": paths.resume, "from_run": paths.from_run}
        result = train(method, data, **given, **settings)
    if launch.is_main_process():
        tell(method, result, out, json=output.json)


def tell(method: str, result: Result, out: Path, *, json: bool) -> None:
    """Print what a run and its baselines ended with."""
    every = method in (every_method.NAME, every_method.FLOOR) and result.baselines
    found = {every_method.FLOOR if every else method: result} | result.baselines
    results = {name: one.values for name, one in found.items()}
    if json:
        print(files.json_line({"run": str(out), "values": results}))
        return
    if every:
        results = dict(sorted(results.items(), key=lambda pair: seconds_of(pair[1])))
    shown = console()
    shown.print(result_tables.metrics_table(results, protocol=result.protocol))
    evaluated = {name: (one.values, one.rows) for name, one in found.items()}
    sent = bytes_to_quality.sent(evaluated, result.run.monitor)
    shown.print(result_tables.traffic_table(results, sent))
    shown.print(f"run folder: {out}", soft_wrap=True, markup=False)
