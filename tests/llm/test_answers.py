"""Kept answers are their owner's alone, and what others put in their place is not used."""

import json
import os
import stat

import pytest

from jaxrec.llm.answers import remembering
from jaxrec.llm.protocol import Answer, Prompt, Usage

ONE, OTHER = Prompt("s", "one"), Prompt("s", "other", 7)


def cache(folder, usage=None):
    """A cache before a model that says the user's words, and the list of what it was asked."""
    asked = []

    def ask_all(prompts, keep):
        asked.extend(prompts)
        for prompt in prompts:
            keep(prompt, f"said {prompt.user}")
        return [Answer(f"said {prompt.user}") for prompt in prompts]

    return remembering(
        ask_all, folder, {"model": "m", "about": [["a", 1]]}, usage or Usage()
    ), asked


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def folder(tmp_path):
    """A cache folder with two answers, made under a umask that closes nothing."""
    before = os.umask(0)
    try:
        cache(tmp_path / "new" / "answers")[0]([ONE, OTHER])
    finally:
        os.umask(before)
    return tmp_path / "new" / "answers"


def test_only_their_owner_can_read_answers(folder):
    files = list(folder.rglob("*.json"))
    assert len(files) == 2
    assert {mode(file) for file in files} == {0o600}
    assert {mode(place) for place in (folder, *(file.parent for file in files))} == {0o700}


def test_an_open_folder_is_closed_if_it_holds_answers_alone(folder, tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    (shared / "thesis.tex").write_text("")
    for place in (folder, *folder.iterdir()):
        place.chmod(0o755)
    for file in folder.rglob("*.json"):
        file.unlink()
    for place in (folder, shared):
        cache(place)[0]([ONE, OTHER])
    assert mode(folder) == 0o700
    assert mode(shared) == 0o755
    below = [place for top in (folder, shared) for place in top.iterdir() if place.is_dir()]
    assert len(below) == 4
    assert {mode(place) for place in below} == {0o700}


def entry_of(folder, prompt):
    """The file that answers a prompt, and what it holds."""
    for file in folder.rglob("*.json"):
        if json.loads(file.read_text())["prompt"]["user"] == prompt.user:
            return file, json.loads(file.read_text())
    raise AssertionError("no such entry")


def put(change):
    """Harm that writes an entry anew; `change` makes bytes or JSON of the entry that there was."""

    def harm(file, entry, other):
        made = change(entry, other)
        file.write_bytes(made if isinstance(made, bytes) else json.dumps(made).encode())

    return harm


def link(file, entry, other):
    target = file.with_suffix(".elsewhere")
    file.rename(target)
    file.symlink_to(target)


def pipe(file, entry, other):
    file.unlink()
    os.mkfifo(file)


HARM = {
    "cut": put(lambda entry, other: json.dumps(entry).encode()[:40]),
    "nothing": put(lambda entry, other: b""),
    "no object": put(lambda entry, other: [1]),
    "deep": put(lambda entry, other: b"[" * 100_000),
    "no text": put(lambda entry, other: b"\xff\xfe\xff"),
    "another answer": put(lambda entry, other: entry | {"answer": "forged"}),
    "another's answer": put(lambda entry, other: other),
    "blank": put(
        lambda entry, other: entry | {"answer": "", "sha256": "e3b0c44298fc1c149afbf4c8996fb924"
        "27ae41e4649b934ca495991b7852b855"}
    ),
    "a number": put(lambda entry, other: entry | {"answer": 7}),
    "no checksum": put(lambda entry, other: {"answer": "forged", "prompt": entry["prompt"]}),
    "writable": lambda file, entry, other: file.chmod(0o666),
    "large": lambda file, entry, other: os.truncate(file, 1 << 30),
    "a link": link,
    "a pipe": pipe,
    "a folder": lambda file, entry, other: (file.unlink(), file.mkdir()),
}  # fmt: skip


@pytest.mark.parametrize("harm", HARM)
def test_an_entry_that_cannot_be_trusted_is_told_of_and_asked_again(folder, harm):
    (file, entry), (_, other) = entry_of(folder, ONE), entry_of(folder, OTHER)
    HARM[harm](file, entry, other)
    complete, asked = cache(folder)
    with pytest.warns(UserWarning, match=f"{file.name} is not used .*asked again"):
        if harm == "a folder":  # nothing can take its place
            with pytest.raises(Exception, match="cannot be kept"):
                complete([ONE])
            return
        assert complete([ONE, OTHER]) == [Answer("said one"), Answer("said other")]
    assert asked == [ONE]
    assert json.loads(file.read_text()) == entry
    assert mode(file) == 0o600


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can chown")
def test_an_entry_of_somebody_else_is_not_used(folder):
    file, _ = entry_of(folder, ONE)
    os.chown(file, 65534, 65534)
    complete, asked = cache(folder)
    with pytest.warns(UserWarning, match="others own it"):
        complete([ONE, OTHER])
    assert asked == [ONE]
    assert file.stat().st_uid == 0
    # A file system that gives every file to one user, as NFS does with root's, is no attack.
    for place in (folder, *folder.rglob("*")):
        os.chown(place, 65534, 65534)
    complete, asked = cache(folder)
    complete([ONE, OTHER])
    assert asked == []


def test_a_kept_answer_is_used_and_counted(folder):
    usage = Usage()
    complete, asked = cache(folder, usage)
    assert complete([OTHER, ONE, ONE]) == [Answer(f"said {u}") for u in ("other", "one", "one")]
    assert asked == []
    assert usage.cached == 2
