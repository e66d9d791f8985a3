"""How many answers may be of no use before a run stops."""

import warnings

import pytest

from jaxrec.llm.protocol import Answer, Usage
from jaxrec.llm.unusable import Tally, without_use
from jaxrec.types import LLMError

GOOD, REFUSED = Answer("yes"), Answer(None, "answered 422 (no seed)")


def tally(limit, *, good=0, refused=0, unfit=0):
    found = Tally(limit)
    for answer, fits, times in (
        (GOOD, True, good),
        (REFUSED, False, refused),
        (GOOD, False, unfit),
    ):
        for _ in range(times):
            found.note(answer, fits=fits)
    return found


@pytest.mark.parametrize(
    ("limit", "counts", "message"),
    [
        (
            0.5,
            {"refused": 96},
            r"^96 of 96 calls refused .*: 96 answered 422 \(no seed\)\.",
        ),
        (0.5, {"refused": 8}, "^8 of 8 calls"),
        (
            0.5,
            {"unfit": 8},
            "^8 of 8 .*: 8 not in the format asked for.*unusable_limit = 0.5",
        ),
        (
            0.5,
            {"good": 31, "unfit": 20, "refused": 12},
            "^32 of 63 .*: 12 answered.*; 20 not in",
        ),
        (0.0, {"good": 1000, "unfit": 32}, "^32 of 1032 "),
        (0.5, {"refused": 7}, None),
        (0.5, {"good": 32, "unfit": 32}, None),
        (0.5, {"good": 1, "unfit": 31}, None),
        (0.0, {"good": 1000, "unfit": 31}, None),
        (1.0, {"refused": 500}, None),
        (0.0, {"good": 500}, None),
        (0.5, {}, None),
    ],
)
def test_too_many_unusable_answers_stop_a_run(limit, counts, message):
    found = tally(limit, **counts)
    if message is None:
        return found.check()
    with pytest.raises(LLMError, match=message):
        found.check()


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"good": 99, "refused": 1}, r"1 of 100 calls .*: 1 answered 422 \(no seed\)$"),
        ({"good": 1, "unfit": 2}, "2 of 3 calls .*: 2 not in the format asked for$"),
        ({"good": 3, "unfit": 2}, None),
        ({}, None),
    ],
)
def test_fewer_are_told_of(counts, message):
    found = tally(0.5, **counts)
    if message is None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return found.close()
    with pytest.warns(UserWarning, match=message):
        found.close()


def test_the_first_eight_calls_need_one_usable_answer():
    for good in (Usage(calls=1), Usage(cached=1)):
        good.failures = 100
        assert without_use(good, "here", "no") == Answer(None, "no")
    bad = Usage(calls=3, cut=2, empty=1, failures=4)
    assert without_use(bad, "here", "no") == Answer(None, "no")
    bad.failures += 1
    with pytest.raises(LLMError, match=r"^here: 8 of 8 calls refused or unusable, the last: no"):
        without_use(bad, "here", "no")
