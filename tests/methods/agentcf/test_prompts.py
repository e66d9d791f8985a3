"""Answers are read from the format that was asked for, and from nothing else."""

import pytest

from jaxrec.methods.agentcf.text_engine import prompts
from jaxrec.methods.agentcf.text_engine.prompts import Offer


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("CHOICE: B\nREASON: it is\nbetter", (1, "it is better")),
        ("**CHOICE: A**\n**REASON:** shorter", (0, "shorter")),
        ("<think>CHOICE: A</think>\nCHOICE: (B)\n", (1, "")),
        ("CHOICE: C", None),
        ("CHOICE: Both A and B", None),
        ("CHOICE: A or B", None),
        ("CHOICE: A/B", None),
        ("CHOICE: A is what I take", None),
        ("CHOICE: A\nCHOICE: B", None),
        ("**CHOICE: A.**\r\n", (0, "")),
        ("CHOICE: A or B\nCHOICE: B", (1, "")),
        (prompts.choose("films", "", [Offer("Tide", ""), Offer("Moon", "")])[1], None),
        (f"CHOICE: B\nREASON: {prompts._WHY}.", (1, "")),
        ("I take A.", None),
        ("<think>CHOICE: A", None),
        ("", None),
    ],
)
def test_choices_are_read_from_the_format_alone(text, found):
    assert prompts.read_choice(text, 2) == found


def test_answers_are_read_from_the_format_alone():
    assert prompts.read_notes("Sure!\n**NOTES:** I like\ntea. ") == "I like\ntea."
    assert prompts.read_notes("NOTES:") is prompts.read_notes("I like tea") is None
    assert prompts.read_items("B: two\nlines\nA: one", 2) == ["one", "two lines"]
    assert prompts.read_items("**A:** x\n\n**B:** y", 2) == ["x", "y"]
    assert prompts.read_items("A: x\nB:", 2) is prompts.read_items("A: x", 2) is None
    assert prompts.read_tags("TAGS: Sea, 'deep sea'; sea, cooking", 3) == [
        "sea",
        "deep sea",
        "cooking",
    ]
    assert prompts.read_tags("TAGS: a, b, c", 2) == ["a", "b"]
    assert prompts.read_tags("TAGS: ,", 2) is prompts.read_tags("sea", 2) is None
    assert prompts.label(0) == "A"
    assert [prompts.label(k) for k in (25, 26, 27, 52, 701)] == ["Z", "AA", "AB", "BA", "ZZ"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("RANKING: C > a > C", [2, 0]),
        ("**RANKING:** B, A, I.", [1, 0, 8]),
        ("RANKING: (B); [a]; *I*", [1, 0, 8]),
        ("RANKING: B. Tide, A (Moon), I: Comet, C - Stew", [1, 0, 8, 2]),
        ("RANKING: letter, letter, ...\nRANKING: B, A", [1, 0]),
        ("RANKING: B, A\n\nRANKING: B, A", [1, 0]),
        ("RANKING: B, A\nRANKING: A, B", None),
        ("RANKING: none of them", None),
        ("RANKING: I would take a film", None),
        ("RANKING: I'd say B, A", None),
        ("RANKING: I\u2019d say B, A", None),
        ("RANKING: B, A and C", None),
        ("RANKING: B - A - C", None),
        ("RANKING: B. A. C.", None),
        ("RANKING: B & A", None),
        ("RANKING: B. A Film", [1]),
        ("RANKING: first B, then A", None),
        ("RANKING: B, X, A", None),
        ("RANKING: letter, letter, ...", None),
        ("RANKING: ,", None),
        ("B, A", None),
    ],
)
def test_rankings_are_read_from_letters_and_not_from_prose(text, found):
    assert prompts.read_ranking(text, 10) == found


def test_a_prompt_that_comes_back_is_no_answer():
    offers = [Offer("Tide", "wet"), Offer("Moon", "")]
    told = [("films", "tea"), ("books", "sea")]
    echoes = {
        prompts.read_notes: [
            prompts.reflect("films", "tea", *offers, "", True, 9)[1],
            prompts.fuse("films", told, "", 9)[1],
            "NOTES: <the text>",
            "NOTES: the text.\nNOTES: I like tea",
        ],
        lambda text: prompts.read_items(text, 2): [
            prompts.items("films", "tea", offers, 0, "", 9)[1],
            "A: wet\nB: [The new note on B]",
        ],
        lambda text: prompts.read_tags(text, 6): [prompts.tags(told, 6)[1]],
        lambda text: prompts.read_ranking(text, 2): [prompts.rank(told, [], offers)[1]],
    }
    for parse, texts in echoes.items():
        assert [parse(text) for text in texts] == [None] * len(texts)
    assert prompts.read_notes("NOTES: the text of Tide is what I like") is not None
    assert prompts.read_tags("TAGS: interest rates", 2) == ["interest rates"]


def test_a_letter_beyond_z_is_a_letter():
    offers = [Offer(f"Title {k}", "") for k in range(30)]
    _, text = prompts.rank([("films", "tea")], [], offers)
    assert "\nAD. Title 29\n" in text
    assert prompts.read_ranking("RANKING: AD, B", 30) == [29, 1]
