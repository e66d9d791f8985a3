"""The command: python -m jaxrec.train METHOD [--config FILE] [--setting value ...] [--out DIR].

Exit status: 0, done; 2, refused or ended by what is wrong, in one line on stderr; 130, interrupted.
The first Ctrl-C or SIGTERM finishes the rounds up to the next evaluation, saves and says how to go
on.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from jaxrec import mesh, report
from jaxrec.commands import REFUSALS, callable_module, folder_for
from jaxrec.config import (
    Files,
    Output,
    method_module,
    print_help,
    read_toml,
    read_words,
    take_options,
)
from jaxrec.job import read_record
from jaxrec.llm import LLMError
from jaxrec.run import train
from jaxrec.track import tracking
from jaxrec.types import SettingError

PROGRAM = "python -m jaxrec.train"


def main(words: Sequence[str]) -> int:
    """Train as the words say and print the table of results; returns the exit status."""
    named = words and not words[0].startswith("-")
    method, words = (words[0], words[1:]) if named else (None, words)
    warnings.showwarning = lambda message, *_: report.say(f"warning: {message}")
    out = None
    try:
        if method:
            method_module(method)
        if {"-h", "--help"} & set(words):
            print_help(method, PROGRAM)
            return 0
        files, words = take_options(Files, words)
        output, words = take_options(Output, words)
        if output.distributed:
            mesh.join(output.distributed)
            if not (files.out or files.resume):
                raise SettingError("--distributed: the processes share a folder; give --out")
        settings = {}
        if files.config:
            method, settings = read_toml(files.config, method)
        if files.resume:
            method = method or read_record(files.resume)["method"]
        settings |= read_words(method or "fedcia", words)
        stem = _stem(method or "fedcia", settings)
        data, trackers = settings.pop("data", None), ",".join(output.track).split(",")
        trackers = [name for name in trackers if name]
        with folder_for(stem, files.resume or files.out) as out, tracking(trackers, out) as track:
            given = {"out": files.out if files.resume else out}
            given |= {"track": track, "progress": not output.quiet}
            result = train(method, data, resume=files.resume, **given, **settings)
        if not mesh.first():
            return 0
    except (*REFUSALS, OSError) as error:
        report.say(f"error: {error}")
        return 2
    except LLMError as error:
        report.say(f"error: {error}")
        _leave(out)
        return 2
    except KeyboardInterrupt as error:
        report.say(f"{error or 'stopped'}")
        _leave(out)
        return 130
    results = {method or "fedcia": result.values}
    results |= {name: baseline.values for name, baseline in result.baselines.items()}
    if output.json:
        print(report.json_line({"run": str(out), "values": results}))
        return 0
    tables = report.table(results, protocol=result.protocol), report.traffic_table(results)
    Console().print(*tables)
    Console().print(f"run folder: {out}", soft_wrap=True, markup=False)
    return 0


def _stem(method: str, settings: dict) -> str:
    return f"{method}-{Path(settings.get('data', 'synthetic')).stem}"


def _leave(folder: Path | None) -> None:
    """Say how a run that was stopped goes on, if it had begun."""
    if folder and (folder / "config.json").exists():
        report.say(f"continue with: {PROGRAM} --resume {folder}")


callable_module(__name__, train)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
