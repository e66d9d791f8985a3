"""Answers kept on disk the moment they arrive, so that nothing is paid for twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from warnings import warn

from jaxrec.files import write_text
from jaxrec.llm.protocol import Answer, Complete, Keep, Prompt, Usage
from jaxrec.types import LLMError

_VERSION = 1  # of the cache's entries


def remembering(
    ask_all: Callable[[Sequence[Prompt], Keep], list[Answer]],
    folder: Path | None,
    identity: dict[str, Any],
    usage: Usage,
) -> Complete:
    """`ask_all` for what is not on disk; equal prompts are asked once.

    `ask_all` gets the prompts and a function to keep an answer with as soon as it is there.
    """

    def digest(prompt: Prompt) -> str:
        asked = json.dumps([_VERSION, identity, prompt._asdict()], sort_keys=True)
        return hashlib.sha256(asked.encode()).hexdigest()

    def keep(prompt: Prompt, text: str) -> None:
        if folder:
            _keep(_file(folder, digest(prompt)), {**identity, **prompt._asdict()}, text)

    def complete(prompts: Sequence[Prompt]) -> list[Answer]:
        names = [digest(prompt) for prompt in prompts]
        wanted = dict(zip(names, prompts, strict=True))
        found = {name: _kept(_file(folder, name)) for name in wanted} if folder else {}
        answers = {name: Answer(text) for name, text in found.items() if text is not None}
        usage.cached += len(answers)
        missing = {name: prompt for name, prompt in wanted.items() if name not in answers}
        if missing:
            asked = ask_all(list(missing.values()), keep)
            answers |= dict(zip(missing, asked, strict=True))
        return [answers[name] for name in names]

    return complete


def _file(folder: Path, digest: str) -> Path:
    return Path(folder) / digest[:2] / f"{digest[2:]}.json"


def _kept(file: Path) -> str | None:
    """The answer in a file of the cache; None if there is none or it is damaged."""
    try:
        entry = json.loads(file.read_text())
        if entry["sha256"] == _checksum(entry["answer"]):
            return entry["answer"]
        problem = "its checksum is another"
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = repr(error)
    warn(f"{file} is damaged ({problem}): its prompt is asked again", stacklevel=3)
    return None


def _keep(file: Path, prompt: dict[str, Any], text: str) -> None:
    """Write an answer whole or not at all, whoever else writes the same one."""
    entry = {"prompt": prompt, "answer": text, "sha256": _checksum(text)}
    try:
        write_text(file, json.dumps(entry, indent=1))
    except OSError as error:
        # To go on would be to pay for what a later run would have to pay for again.
        raise LLMError(f"{file}: an answer cannot be kept ({error}); make room there") from error


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
