"""Answers kept on disk the moment they arrive, so that none of them is paid for again.

They tell of users, so that only their owner may read them: folders have mode 0700, files 0600. An
entry that somebody else wrote, or could have, or that is not what it should be, is not used.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from warnings import warn

from jaxrec.files import write_atomic
from jaxrec.llm.protocol import Answer, Complete, Keep, Prompt, Usage
from jaxrec.types import LLMError

_VERSION = 1  # of the cache's entries
_MOST_BYTES = 64 << 20  # of an entry: an answer of 8 MiB, its prompt and JSON's escapes


def remembering(
    ask_all: Callable[[Sequence[Prompt], Keep], list[Answer]],
    folder: Path | None,
    identity: dict[str, Any],
    usage: Usage,
) -> Complete:
    """`ask_all` for what is not on disk; equal prompts are asked once.

    `ask_all` gets the prompts and a function to keep an answer with as soon as it is there.
    """

    def asked(prompt: Prompt) -> dict[str, Any]:
        return {**identity, **prompt._asdict()}

    def digest(prompt: Prompt) -> str:
        found = json.dumps([_VERSION, identity, prompt._asdict()], sort_keys=True)
        return hashlib.sha256(found.encode()).hexdigest()

    def keep(prompt: Prompt, text: str) -> None:
        if folder:
            _keep(Path(folder), digest(prompt), asked(prompt), text)

    def complete(prompts: Sequence[Prompt]) -> list[Answer]:
        names = [digest(prompt) for prompt in prompts]
        wanted = dict(zip(names, prompts, strict=True))
        answers = {}
        if folder:
            owners = _owners(Path(folder))
            for name, prompt in wanted.items():
                text = _kept(_file(Path(folder), name), asked(prompt), owners)
                answers |= {} if text is None else {name: Answer(text)}
        usage.cached += len(answers)
        missing = {name: prompt for name, prompt in wanted.items() if name not in answers}
        if missing:
            told = ask_all(list(missing.values()), keep)
            answers |= dict(zip(missing, told, strict=True))
        return [answers[name] for name in names]

    return complete


def _file(folder: Path, digest: str) -> Path:
    return folder / digest[:2] / f"{digest[2:]}.json"


def _owners(folder: Path) -> set[int]:
    """Whose entries are used: this user's, and those of the folder's owner.

    The second is another one where a file system gives all files to one, as NFS does with root's.
    """
    if not hasattr(os, "geteuid") or not folder.exists():
        return set()
    return {os.geteuid(), folder.stat().st_uid}


def _kept(file: Path, asked: dict[str, Any], owners: set[int]) -> str | None:
    """The answer in a file of the cache; None if there is none, or one that cannot be trusted."""
    try:
        with open(file, "rb", opener=_open_plain) as opened:
            about = os.fstat(opened.fileno())
            if owners and (about.st_uid not in owners or about.st_mode & 0o022):
                problem = "others own it or may write it"
            elif not stat.S_ISREG(about.st_mode) or about.st_size > _MOST_BYTES:
                problem = f"no file of at most {_MOST_BYTES >> 20} MiB"
            else:
                return _answer(json.loads(opened.read(_MOST_BYTES)), asked)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        problem = repr(error)
    warn(f"{file} is not used ({problem}): its prompt is asked again", stacklevel=3)
    return None


def _answer(entry: Any, asked: dict[str, Any]) -> str:
    """The answer in an entry of the cache; ValueError where it is not one to what was asked."""
    text = entry["answer"]
    if not isinstance(text, str) or not text.strip():
        raise ValueError("it holds no text")
    if entry["sha256"] != _checksum(text):
        raise ValueError("its checksum is another")
    if entry["prompt"] != asked:
        raise ValueError("it answers another prompt")
    return text


def _open_plain(path: str, flags: int) -> int:
    """Open what is no link, without waiting where it is a pipe."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))


def _keep(folder: Path, digest: str, asked: dict[str, Any], text: str) -> None:
    """Write an answer whole or not at all, whoever else writes the same one."""
    file = _file(folder, digest)
    entry = json.dumps({"prompt": asked, "answer": text, "sha256": _checksum(text)}, indent=1)
    opener = lambda path, flags: os.open(path, flags, 0o600)

    def write(part: Path) -> None:
        with open(part, "w", encoding="utf-8", opener=opener) as opened:
            opened.write(entry)

    try:
        _close_to_others(folder)
        _close_to_others(file.parent)
        write_atomic(file, write)
    except OSError as error:
        # To go on would be to pay for what a later run would have to pay for again.
        raise LLMError(f"{file}: an answer cannot be kept ({error}); make room there") from error


def _close_to_others(folder: Path) -> None:
    """Make a folder that only its owner may enter, or close one that holds answers alone."""
    if not folder.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    elif folder.stat().st_mode & 0o077 and all(
        re.fullmatch(r"[0-9a-f]{2}|[0-9a-f]{62}\.json|\..*", name) for name in os.listdir(folder)
    ):
        with suppress(PermissionError):  # somebody else's, who may share it: files are 0600
            folder.chmod(0o700)


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
