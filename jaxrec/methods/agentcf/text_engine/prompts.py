"""The words of AgentCF++'s text engine: its functions as prompts, and what is read from answers.

Every prompt ends with the format it wants, and what does not follow it is not used: each `read_*`
function returns None then. Prompts are pairs (system, user).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

Words = tuple[str, str]


class Offer(NamedTuple):
    """An item as it is shown: a title that tells it from every other item, and its memory."""

    title: str
    memory: str


_CUSTOMER = (
    "You play one customer of a shop. All you know of yourself is what your notes say; where they "
    "say nothing, you have no opinion. Answer in exactly the format that is asked for."
)
_KEEPER = (
    "You keep short notes for a shop, from what its customers do. Write plainly, claim nothing "
    "that was not observed, and answer in exactly the format that is asked for."
)
# What prompts have in the place of what they ask for; a model that repeats it has not answered.
_WHY = "in one or two sentences, what in your notes and in the items decided it"
_TEXT, _MERGED = "the text", "the merged text"
_NOTE = "the new note on "
_TAG = "interest"
AGAIN = "\n\nYour last answer did not follow the format. Write nothing but the format above."


def label(place: int) -> str:
    """The letter of an option: A to Z, then AA, AB, ..."""
    return label(place // 26 - 1) + label(place % 26) if place >= 26 else chr(ord("A") + place)


def choose(domain: str, notes: str, offers: Sequence[Offer]) -> Words:
    """Which of the offers does the customer take?"""
    letters = " or ".join(label(k) for k in range(len(offers)))
    return _CUSTOMER, (
        f"{_notes(domain, notes)}\n\nOn offer are:\n{_listed(offers)}\n\n"
        "Which one do you take?\n"
        "Answer in two lines:\n"
        f"CHOICE: {letters}\n"
        f"REASON: {_WHY}"
    )


def read_choice(text: str, number: int) -> tuple[int, str] | None:
    """The place of the chosen one among `number` offers, and the reason.

    A line of the choice ends after the letter: "CHOICE: A or B" is none. Two that differ are none.
    """
    found = re.findall(r"^\W*CHOICE\W+([A-Z]+)(?:[^\w\n]|_)*$", _said(text), re.MULTILINE)
    letters = [label(k) for k in range(number)]
    if len(set(found)) != 1 or found[0] not in letters:
        return None
    reason = re.search(r"^\W*REASON\W+(.*)", _said(text), re.MULTILINE | re.DOTALL)
    why = " ".join(reason[1].split()) if reason else ""
    return letters.index(found[0]), "" if _echoes(why, _WHY) else why


def reflect(
    domain: str, notes: str, taken: Offer, passed: Offer, reason: str, right: bool, words: int
) -> Words:
    """What does the customer learn of themselves from a choice that was right, or wrong?"""
    what = (
        (
            f"Offered two items, you took this one, and it is indeed the one you went home with:\n"
            f"{_item(taken)}\n\nYou passed over:\n{_item(passed)}\n\n"
            "So your notes served you. Keep what they say that led you there, sharpen it with what "
            "the item you took shows of your taste, and add what the other one shows that you "
            "care little for."
        )
        if right
        else (
            f"Offered two items, your notes made you take this one:\n{_item(taken)}\n\n"
            f"But the one you truly went home with is the one they made you pass over:\n"
            f"{_item(passed)}\n\n"
            "So your notes misled you. Find what in them did so and correct it, say what drew you "
            "to the item you went home with, and what speaks against the other one."
        )
    )
    because = f"You had said: {reason}\n\n" if reason else ""
    return _CUSTOMER, (
        f"{_notes(domain, notes)}\n\n{what}\n\n{because}"
        f"Write your notes on {domain} anew, as one text of at most {words} words that stands for "
        "the old one: what you like, what you do not, what you are unsure of. Do not list items.\n"
        f"Answer:\nNOTES: {_TEXT}"
    )


def fuse(domain: str, private: Sequence[tuple[str, str]], fused: str, words: int) -> Words:
    """What of all the notes of a customer bears on one domain? Filter, then merge."""
    of = "\n\n".join(f"On {name}: {notes}" for name, notes in private)
    return _CUSTOMER, (
        f"These are your notes, kept apart by kind of item:\n\n{of}\n\n"
        f"This is what you have so far for choosing in {domain}: {fused or '(nothing yet)'}\n\n"
        f"First, from your notes on other kinds of item, keep only what tells something about your "
        f"taste in {domain} too, and drop the rest.\n"
        f"Then merge that with your notes on {domain} and with what you have so far into one text "
        f"of at most {words} words. Where they disagree, your notes on {domain} are newer and "
        "win.\n"
        f"Answer:\nNOTES: {_MERGED}"
    )


def read_notes(text: str) -> str | None:
    """The text after NOTES:, unless its first line is what the prompt has in its place."""
    found = re.search(r"^\W*NOTES\W*?:\W*?(\w.*)", _said(text), re.MULTILINE | re.DOTALL)
    if not found or _echoes(found[1].partition("\n")[0], _TEXT, _MERGED):
        return None
    return found[1].strip()


def items(
    domain: str, notes: str, offers: Sequence[Offer], bought: int, reason: str, words: int
) -> Words:
    """What do two items learn of those who take them, and of those who do not?"""
    said = f"Asked before, the customer had said: {reason}\n" if reason else ""
    lines = "\n".join(f"{label(k)}: {_NOTE}{label(k)}" for k in range(len(offers)))
    return _KEEPER, (
        f"A customer describes their taste in {domain} so: {notes or '(not known)'}\n\n"
        f"Of these two items\n{_listed(offers)}\n"
        f"the customer went home with {label(bought)} and left the other.\n{said}\n"
        "Write the note on each item anew: what it is, and what kind of customer it suits or does "
        f"not suit, as far as this tells. Keep what stays true. At most {words} words each; do "
        "not mention this customer or the other item.\n"
        f"Answer in two lines:\n{lines}"
    )


def read_items(text: str, number: int) -> list[str] | None:
    """The new notes of the items, in the order shown; none may be what the prompt has there."""
    letters = [label(k) for k in range(number)]
    parts = re.split(rf"^\W*({'|'.join(letters)})\W*?:", _said(text), flags=re.MULTILINE)
    found = dict(
        zip(parts[1::2], (" ".join(part.strip(" *_").split()) for part in parts[2::2]), strict=True)
    )
    notes = [found.get(letter, "") for letter in letters]
    echoed = any(_echoes(note, *(_NOTE + letter for letter in letters)) for note in notes)
    return notes if all(notes) and not echoed else None


def tags(private: Sequence[tuple[str, str]], number: int) -> Words:
    """What are the interests of a customer, in a few words each?"""
    of = "\n\n".join(f"On {name}: {notes}" for name, notes in private)
    return _KEEPER, (
        f"These are the notes of one customer:\n\n{of}\n\n"
        f"Name at most {number} interests that they show, each in one to three words, the "
        "strongest first.\n"
        f"Answer in one line, with commas between:\nTAGS: {_TAG}, {_TAG}, ..."
    )


def read_tags(text: str, number: int) -> list[str] | None:
    """At most `number` distinct tags, in lower case."""
    found = re.search(r"^\W*TAGS\W*?:(.*)", _said(text), re.MULTILINE)
    each = (
        [tag.strip(" \t.*_-#\"'").lower() for tag in re.split(r"[,;|]", found[1])] if found else []
    )
    echoed = any(_echoes(tag, _TAG) for tag in each)
    return None if echoed else list(dict.fromkeys(filter(None, each)))[:number] or None


def rank(
    domains: Sequence[tuple[str, str]], groups: Sequence[str], offers: Sequence[Offer]
) -> Words:
    """In which order would the customer take the candidates?"""
    notes = "\n\n".join(_notes(domain, fused) for domain, fused in domains)
    liked = "\n".join(groups)
    others = f"\n\nCustomers who share an interest with you took:\n{liked}" if groups else ""
    return _CUSTOMER, (
        f"{notes}{others}\n\nOn offer are:\n{_listed(offers)}\n\n"
        f"Put all {len(offers)} in the order in which you would take them, the likeliest first.\n"
        "Answer in one line, with the letters of all of them and commas between:\n"
        "RANKING: letter, letter, ..."
    )


def read_ranking(text: str, number: int) -> list[int] | None:
    """The places of those that the answer names, best first, each once; those omitted lack.

    Between commas (or > or ;) stands the letter of an option alone, or before a punctuation mark
    and more, as in "B. Tide" and "B (Tide)". Anything else is prose, in which "I" and "a" are no
    letters, and makes its line unusable. Two usable lines that differ are none.
    """
    lines = re.findall(r"^\W*RANKING\W*?:(.*)", _said(text), re.MULTILINE)
    found = list(filter(None, (_ranked(line, number) for line in lines)))
    return found[0] if found and all(one == found[0] for one in found) else None


def _ranked(line: str, number: int) -> list[int] | None:
    places = {label(k): k for k in range(number)}
    pieces = (piece.strip(" \t\r*_.()[]\"'`") for piece in re.split(r"[,>;]", line))
    named = []
    for piece in filter(None, pieces):
        found = re.match(r"([A-Za-z]+)(?:\s*[-.:()*\u2013\u2014](.*))?$", piece)
        words = re.findall(r"\w+", found[2] or "") if found else []
        if not found or found[1].upper() not in places or (words and places.keys() >= set(words)):
            return None  # the last: letters with something else than commas between them
        named.append(places[found[1].upper()])
    return list(dict.fromkeys(named))


def _echoes(said: str, *templates: str) -> bool:
    """Is it one of the templates, whatever marks stand around it?"""
    plain = lambda text: re.sub(r"[\W_]+", " ", text).strip().casefold()
    return plain(said) in map(plain, templates)


def _said(text: str) -> str:
    """An answer without the thoughts that some models write before it."""
    return re.sub(r"<think>.*?(</think>|$)", "", text, flags=re.DOTALL).strip()


def _notes(domain: str, notes: str) -> str:
    none = "none yet, for you have taken nothing of this kind."
    return f"Your notes on what you like in {domain}: {notes or none}"


def _item(offer: Offer) -> str:
    return f"{offer.title} -- {offer.memory}" if offer.memory else offer.title


def _listed(offers: Sequence[Offer]) -> str:
    return "\n".join(f"{label(k)}. {_item(offer)}" for k, offer in enumerate(offers))
