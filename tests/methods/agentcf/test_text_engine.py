"""Agents with text memories: one result whatever runs when, nothing lost, halved or paid twice."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from functools import partial
from importlib.util import find_spec

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import jaxrec
from jaxrec.data.pack import history, pack
from jaxrec.data.split import split
from jaxrec.data.synthetic import synthetic
from jaxrec.data.text import titled
from jaxrec.llm import openai_server, protocol
from jaxrec.llm.protocol import Answer
from jaxrec.methods.agentcf import text_engine
from jaxrec.methods.agentcf.text_engine import prompts
from jaxrec.methods.agentcf.text_engine.forecast import call_rounds
from jaxrec.methods.agentcf.text_engine.method import check_data
from jaxrec.methods.agentcf.text_engine.stages import WORD_BYTES, log_of
from jaxrec.methods.agentcf.text_engine.state import GIVEN_UP, NOT_YET, RIGHT, WRONG
from jaxrec.ops import strings
from jaxrec.training import checkpoint
from jaxrec.training.run import train
from jaxrec.types import DataError, LLMError, SettingError, Sizes

KEY = "sk-very-secret-0123456789"
SMALL = {"private_words": 12, "fused_words": 12, "item_words": 8, "tag_encoder": "tfidf"}
needs_openai = pytest.mark.skipif(
    not find_spec("openai"),
    reason="the package openai is not installed: pip install jaxrec[agents]",
)


def ready(dataset):
    """Data with titles, and its sizes."""
    data, sizes = pack(dataset)
    written = strings.pack(titled(dataset.items), 300)
    return data._replace(written=jax.tree.map(jnp.asarray, written)), sizes


@pytest.fixture(scope="module")
def problem():
    """About eleven films and books for each of 14 users."""
    return ready(split(synthetic(users=14, items=34, clients=2, length=14), "ratio", 0.1, 0.2, 0))


@pytest.fixture
def model(loopback):
    """The scripted model in this process; `asked` keeps all prompts by lists."""

    def complete(asked):
        complete.asked.append(list(asked))
        return [Answer(loopback.scripted(p.system, p.user, p.seed)) for p in asked]

    complete.asked = []
    return complete


def unruly(complete, share):
    """Leaves one answer in `share` unusable, by its prompt."""
    return lambda asked: [
        Answer("I would rather not say.") if hash_of(p) % share == 0 else answer
        for p, answer in zip(asked, complete(asked), strict=True)
    ]


def hash_of(prompt):
    return sum(prompt.user.encode()) + prompt.seed


def fit(problem, complete, steps=1, key=0, **settings):
    data, sizes = problem
    method = text_engine.make(text_engine.Config(**SMALL | settings), sizes, complete)
    state, metrics = method.init(jax.random.key(key), data), []
    for _ in range(steps):
        state, told = method.step(state, data, jax.random.key(99))
        metrics.append(told)
    return method, state, metrics


def contents(state):
    """All but what counts calls, on the host."""
    return jax.tree.map(np.asarray, state._replace(key=None, counts=None))


def assert_same(found, expected):
    chex.assert_trees_all_equal(contents(found), contents(expected))


def everything(complete):
    return [prompt.user for asked in complete.asked for prompt in asked]


@pytest.mark.parametrize("share", [0, 6])
def test_dataflow_waves_and_the_sequential_loop_give_the_same_bytes(problem, model, share):
    complete = unruly(model, share) if share else model
    _, expected, (one_by_one,) = fit(problem, complete, schedule="sequential", attempts=2)
    number = len(expected.choice)
    assert share == 0 or 0 < one_by_one.given_up < number / 2
    assert share > 0 or one_by_one.calls == one_by_one.call_rounds == 4 * number
    log = log_of(problem[0], expected.key)
    for schedule in ("dataflow", "waves"):
        _, state, (metrics,) = fit(problem, complete, schedule=schedule, attempts=2)
        assert_same(state, expected)
        assert metrics.given_up == one_by_one.given_up
        assert metrics.right == one_by_one.right
        if not share:
            rounds = call_rounds(log, np.asarray(problem[0].domain), schedule)
            assert metrics.call_rounds == rounds < one_by_one.call_rounds
    assert (np.asarray(expected.choice) == GIVEN_UP).sum() == one_by_one.given_up


def test_steps_of_any_size_give_the_same_bytes_and_then_begin_anew(problem, model):
    _, whole, _ = fit(problem, model)
    number = len(whole.choice)
    for each in (1, 17):
        _, state, _ = fit(problem, model, -(-number // each), events_per_round=each)
        assert_same(state, whole)
    _, twice, _ = fit(problem, model, 2)
    assert int(twice.done) == 2 * number
    first, second = (log_of(problem[0], whole.key, epoch) for epoch in (0, 1))
    assert first.item == second.item
    assert first.negative != second.negative


def test_another_key_is_another_run(problem, model):
    _, first, _ = fit(problem, model)
    _, again, _ = fit(problem, model)
    _, other, _ = fit(problem, model, key=1)
    assert_same(again, first)
    assert (contents(other).item.data != contents(first).item.data).any()


def test_memories_are_what_the_model_wrote_last(problem, model):
    _, state, _ = fit(problem, model, schedule="sequential")
    log, domain = log_of(problem[0], state.key), np.asarray(problem[0].domain)
    fused = {}
    for event, (user, item, _) in enumerate(zip(*log, strict=True)):
        choose, reflect, fuse, items = (asked[0] for asked in model.asked[4 * event :][:4])
        answers = [answer.text for answer in model([choose, reflect, fuse, items])]
        cell = user, int(domain[item])
        old = fused.get(cell)
        assert (old or "none yet") in choose.user
        private = strings.cut(prompts.read_notes(answers[1]), 12 * WORD_BYTES)
        assert private in fuse.user  # fusion reads the new private memory
        fused[cell] = strings.cut(prompts.read_notes(answers[2]), 12 * WORD_BYTES)
        assert fused[cell] in items.user  # items read the new fused memory
        letter, _ = prompts.read_choice(answers[0], 2)
        right = f"{'AB'[letter]}. " + problem_title(problem, item) in choose.user
        assert ("served you" in reflect.user) == right
        assert ("misled you" in reflect.user) != right
        assert int(state.choice[event]) == (RIGHT if right else WRONG)
    for (user, d), notes in fused.items():
        assert strings.string_at(state.fused, (user, d)) == notes


def test_a_story_tells_what_was_offered_when_an_event_last_ran(problem, model):
    number = len(log_of(problem[0], jax.random.key(0)).user)
    for steps in (3, 4, 5):  # within the first epoch, at its end, within the second
        _, state, _ = fit(problem, model, steps, events_per_round=-(-number // 4))
        epochs = [log_of(problem[0], state.key, epoch) for epoch in (0, 1)]
        assert epochs[0].negative != epochs[1].negative
        again = max(0, int(state.done) - number)
        assert (again > 0) == (steps == 5)
        told, expected = [], []
        for user in range(14):
            story = text_engine.story(text_engine.Config(**SMALL), state, problem[0], user)
            told += re.findall(r"took \*\*(.*?)\*\*, not (.*?) -- (not reached)?", story)
            expected += [
                (
                    problem_title(problem, item),
                    problem_title(problem, epochs[event < again].negative[event]),
                    "" if event < int(state.done) else "not reached",
                )
                for event, (who, item, _) in enumerate(zip(*epochs[0], strict=True))
                if who == user
            ]
        assert told == expected


def problem_title(problem, item):
    return strings.string_at(problem[0].written, item).partition("\n")[0]


def test_the_place_of_an_option_tells_nothing(problem, model):
    _, state, _ = fit(problem, model, 4, schedule="sequential")
    events = [
        (item, negative)
        for epoch in range(4)
        for _, item, negative in zip(*log_of(problem[0], state.key, epoch), strict=True)
    ]
    first = []
    for (item, negative), asked in zip(events, model.asked[::4], strict=True):
        titles = [problem_title(problem, one) for one in (item, negative)]
        shown = re.findall(r"^[AB]\. (.*?)(?: -- .*)?$", asked[0].user, re.MULTILINE)
        assert sorted(shown) == sorted(titles)
        first.append(shown[0] == titles[0])
    assert len(first) > 400
    assert 0.42 < np.mean(first) < 0.58


def test_an_event_without_a_usable_answer_leaves_no_trace(problem, model):
    """One whose item notes fail: not even what it had already written of its user is left."""
    _, whole, _ = fit(problem, model)
    log = log_of(problem[0], whole.key)
    user = log.user[-1]
    title = problem_title(problem, log.item[-1])

    def complete(asked):
        last = lambda p: "left the other" in p.user and title in p.user
        return [
            Answer("no") if last(p) else answer
            for p, answer in zip(asked, model(asked), strict=True)
        ]

    number = len(log.user)
    method, before, _ = fit(problem, complete, number - 1, events_per_round=1)
    after, metrics = method.step(before, problem[0], jax.random.key(99))
    assert metrics == (0.0, 6, 6, 3, 0, 1)
    assert int(after.choice[-1]) == GIVEN_UP
    assert int(before.choice[-1]) == NOT_YET
    assert_same(after._replace(choice=0, done=0), before._replace(choice=0, done=0))
    assert user in log.user[:-1]


def test_a_model_that_never_follows_the_format_changes_nothing_and_ranks_no_one(problem):
    stubborn = lambda asked: [Answer("As a language model, I like all of them.")] * len(asked)
    method, state, (metrics,) = fit(problem, stubborn, attempts=2, unusable_limit=1.0)
    number = len(state.choice)
    assert metrics == (0.0, 2 * number, metrics.call_rounds, 2 * number, 0, number)
    start = method.init(jax.random.key(0), problem[0])
    for field in ("private", "fused", "item"):
        chex.assert_trees_all_equal(getattr(state, field), getattr(start, field))
    served = method.prepare(state, problem[0])
    scores = method.rank(served, np.arange(3), np.tile(np.arange(8), (3, 1)))
    assert not scores.any()
    values, pages = method.account(state, state, problem[0])
    assert values["llm/given_up"] == number
    assert values["llm/session/rankings_unusable"] == 3
    assert "no usable answer" in pages["stories.md"]


def test_a_refused_call_is_counted_apart(problem, model):
    refuse = lambda asked: [Answer(None, "too long")] * len(asked)
    with pytest.warns(UserWarning, match=r"(\d+) of \1 calls refused or unusable: \1 too long$"):
        _, state, (metrics,) = fit(problem, refuse, attempts=1, unusable_limit=1.0)
    number = len(state.choice)
    assert metrics == (0.0, number, metrics.call_rounds, 0, number, number)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(Answer(None, "answered 422 (no seed)"), "answered 422 .no seed."), (Answer("Hm."), "not in")],
)
def test_a_model_without_usable_answers_stops_the_run(problem, model, answer, reason):
    """In training, where groups are made, and where lists are ranked."""
    asked = []

    def useless(prompts_):
        asked.extend(prompts_)
        return [answer] * len(prompts_)

    stops = partial(pytest.raises, LLMError, match=rf"^(\d+) of \1 calls .*: \1 {reason}")
    with stops():
        fit(problem, useless)
    assert len(asked) < 40  # one round of calls
    _, state, _ = fit(problem, model)
    mute = text_engine.make(text_engine.Config(**SMALL), problem[1], useless)
    with stops():
        mute.prepare(state, problem[0])
    told = text_engine.make(text_engine.Config(**SMALL), problem[1], model)
    served = told.prepare(state, problem[0])
    with stops():
        mute.rank(served, np.arange(14), np.tile(np.arange(8), (14, 1)))


def test_a_model_that_thinks_first_has_room_to(problem, model):
    fit(problem, model, events_per_round=1)
    fit(problem, model, events_per_round=1, spare_tokens=1000)
    limits = [prompt.max_tokens for (prompt,) in model.asked]
    assert [limit + 1000 for limit in limits[:4]] == limits[4:]


def test_another_attempt_is_another_question_that_says_why(problem, model):
    fit(problem, unruly(model, 5), attempts=3, events_per_round=30)
    asked = [prompt for some in model.asked for prompt in some]
    again = [prompt for prompt in asked if prompt.user.endswith(prompts.AGAIN)]
    assert again
    for prompt in again:
        first = prompt.user.removesuffix(prompts.AGAIN)
        assert any(p.user == first and p.seed != prompt.seed for p in asked)


@needs_openai
def test_a_misbehaving_server_changes_no_byte(problem, model, serve):
    faults = {
        2: (429, {"Retry-After": "0.05"}),
        7: (500, {"Retry-After": "0.05"}),
        11: "cut",
        15: "malformed",
    }
    faults |= {19: "slow", 23: "other"}
    loopback, usage = serve(fault=lambda number, body: faults.get(number % 30)), protocol.Usage()
    complete = openai_server.server(
        loopback.url, "toy", timeout=0.4, retries=20, usage=usage, concurrency=4
    )
    _, expected, (told,) = fit(problem, model, events_per_round=24)
    _, state, (metrics,) = fit(problem, complete, events_per_round=24)
    assert_same(state, expected)
    assert metrics == told
    assert usage.calls == metrics.calls
    assert usage.retries == len(loopback.bodies) - usage.calls > 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Few users' films and books as a dataset folder, for other processes."""
    path = tmp_path_factory.mktemp("data") / "few"
    path.mkdir()
    dataset = synthetic(users=6, items=40, clients=2, length=9)
    dataset.interactions.to_parquet(path / "interactions.parquet")
    dataset.items.to_parquet(path / "items.parquet")
    return path


def settings(folder, url):
    small = SMALL | {"answer_seconds": 0.01, "retries": 1, "timeout": 20.0, "concurrency": 1}
    small |= {"baselines": (), "api_key_env": "MY_KEY", "model": "toy", "base_url": url}
    return small | {"data": str(folder), "rounds": 2, "events_per_round": 8, "candidates": 4}


def to_words(given):
    each = lambda value: map(str, value) if isinstance(value, tuple) else [str(value)]
    return [word for name, value in given.items() for word in (f"--{name}", *each(value))]


@needs_openai
def test_a_run_killed_within_an_epoch_goes_on_and_pays_nothing_twice(
    folder, serve, tmp_path, monkeypatch
):
    monkeypatch.setenv("MY_KEY", KEY)
    whole = serve()
    expected = train(
        "agentcf_text", progress=False, out=tmp_path / "whole",
        **settings(folder, whole.url) | {"answers": str(tmp_path / "apart")},
    )  # fmt: skip
    total = len(whole.bodies)

    process, ready_to_kill = [], threading.Event()

    def fault(number, body):
        if number == 60 and ready_to_kill.wait(60):
            os.kill(process[0].pid, signal.SIGKILL)
            process[0].wait()
            return "cut"
        return None

    loopback, out = serve(fault=fault), tmp_path / "out"
    given = settings(folder, loopback.url) | {"answers": str(tmp_path / "answers")}
    words = to_words(given)
    command = [sys.executable, "-m", "jaxrec.train", "agentcf_text", "--out", str(out), *words]
    process.append(
        subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    )
    ready_to_kill.set()
    said = "".join(process[0].communicate(timeout=120))
    assert process[0].returncode == -signal.SIGKILL
    assert len(loopback.bodies) == 61
    assert (out / "checkpoint" / "index.json").exists()

    result = train(resume=out, progress=False)
    assert len(loopback.bodies) - 1 == total  # the one that killed it was never answered
    assert_same(result.state, expected.state)
    kept = [name for name in expected.values if not name.startswith(("seconds", "llm/session"))]
    assert {name: result.values[name] for name in kept} == {
        name: expected.values[name] for name in kept
    }
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > total
    assert not any(KEY.encode() in path.read_bytes() for path in files)
    assert KEY not in said
    assert loopback.keys == {f"Bearer {KEY}"}


@needs_openai
def test_a_run_without_its_server_ends_with_one_error_and_can_be_resumed(
    folder, serve, tmp_path, monkeypatch, capsys
):
    main = importlib.import_module("jaxrec.cli.train").main
    monkeypatch.setenv("MY_KEY", KEY)
    gone, other = serve(), serve()
    gone.close()
    given = settings(folder, gone.url) | {"rounds": 1, "stories": 1}
    words = to_words(given)
    assert main(["agentcf_text", "--out", str(tmp_path / "out"), *words]) == 2
    said = capsys.readouterr().err
    assert re.search(rf"error: {gone.url}: no connection.*see that the server runs", said)
    assert f"--resume {tmp_path / 'out'}" in said
    assert re.search(r"agentcf_text: about [\d,]+ calls.*32 one by one, \d+ in waves", said)
    words = ["--resume", str(tmp_path / "out"), "--timeout", "9"]
    assert main([*words, "--base_url", other.url]) == 2
    assert re.search(rf"base_url = '{other.url}'.*was trained with", capsys.readouterr().err)
    assert not other.bodies
    loopback = serve(port=gone.server.server_port)
    assert main(words) == 0
    said = capsys.readouterr().err
    assert "llm/rounds/sequential 32" in said
    values = json.loads((tmp_path / "out" / "result.json").read_text())
    assert values["llm/calls"] == 32 > values["llm/rounds"]
    assert values["llm/session/calls"] == len(loopback.bodies)
    assert (tmp_path / "out" / "stories.md").read_text().startswith("# User ")
    assert KEY not in said


def test_a_state_survives_a_checkpoint(problem, model, tmp_path):
    _, state, _ = fit(problem, model, events_per_round=20)
    arrays = checkpoint.to_arrays(state)
    reached, identity = {"round": 1, "best_round": 1}, {"method": "this", "data": "that"}
    checkpoint.save(tmp_path / "c", (1, arrays), (1, arrays), reached, identity)
    found = checkpoint.restore(tmp_path / "c", "last", state)
    assert_same(found, state)
    assert found.counts == state.counts
    assert jax.random.key_data(found.key).tolist() == jax.random.key_data(state.key).tolist()
    memories = [strings.string_at(found.private, (user, d)) for user in range(14) for d in range(2)]
    assert any("\N{GREEK SMALL LETTER ALPHA}" in memory for memory in memories)


def small_data(*rows, domain, title=None):
    """Data with the train rows (user, item), one a second."""
    user, item = (np.array(column, "int32") for column in zip(*rows, strict=True))
    frame = pd.DataFrame({"user": user, "item": item, "timestamp": np.arange(len(user))})
    frame = frame.assign(split=np.int8(0), client=np.int32(0))
    catalogue = pd.DataFrame({"item": np.arange(len(domain)), "domain": domain})
    catalogue["title"] = title or [f"Title {k}" for k in range(len(domain))]
    users = pd.DataFrame({"user": np.arange(user.max() + 1)})
    return ready(jaxrec.Dataset("small", frame, catalogue, users))


def test_users_of_one_domain_and_domains_without_items_or_users(model):
    # user 0 takes films, user 1 books, user 2 both; there is no domain 1, and no user of domain 3
    data = small_data((0, 0), (1, 3), (2, 1), (2, 4), (0, 2), domain=[0, 0, 0, 2, 2, 2, 3, 3])
    method, state, (metrics,) = fit(data, model, domains=("films", "", "books"))
    assert metrics.calls == 20
    assert state.private.length.shape == (3, 4)
    assert (np.asarray(state.private.length) > 0).tolist() == [
        [True, False, False, False],
        [False, False, True, False],
        [True, False, True, False],
    ]
    served = method.prepare(state, data[0])
    model.asked.clear()
    lists = np.array([[3, 4, 5], [3, 4, 5], [6, 7, 6]])
    assert np.isfinite(method.rank(served, np.array([0, 1, 2]), lists)).all()
    cold, ranked = model.asked
    assert len(cold) == 2  # user 0 has no fused memory of books, user 2 none of domain 3
    assert "for choosing in books: (nothing yet)" in cold[0].user
    made = prompts.read_notes(model(cold)[0].text)[:30]
    assert made in ranked[0].user
    assert "domain 3" in ranked[2].user
    assert not np.asarray(state.fused.length)[0, 2]  # memories are frozen


def test_a_user_without_any_history_is_told_to_have_no_notes(model):
    data, sizes = small_data((0, 0), (0, 1), domain=[0, 0, 0])
    sizes = sizes._replace(users=2)
    method, state, _ = fit((data, sizes), model)
    model.asked.clear()
    method.rank(method.prepare(state, data), np.array([1]), np.array([[0, 1, 2]]))
    assert "none yet, for you have taken nothing of this kind" in everything(model)[-1]


def test_items_of_one_title_are_told_apart(model):
    data = small_data((0, 0), (0, 2), domain=[0] * 3, title=["Twin", "Single", "Twin"])
    fit(data, model)
    shown = "\n".join(everything(model))
    assert "Twin (item 0)" in shown
    assert "Twin (item 2)" in shown
    assert "Single (" not in shown


def test_data_without_domains_are_of_one(problem, model):
    data = problem[0]._replace(domain=None)
    _, state, metrics = fit((data, problem[1]), model, events_per_round=5)
    assert state.private.length.shape == (14, 1)
    assert metrics[0].calls == 20


def test_ranking_does_not_depend_on_the_order_of_candidates_and_omits_none(problem, model):
    method, state, _ = fit(problem, model, events_per_round=30)
    served, users = method.prepare(state, problem[0]), np.arange(14)
    lists = np.array([np.random.default_rng(u).permutation(34)[:10] for u in users])
    scores = method.rank(served, users, lists)
    assert scores.dtype == np.float32
    assert (np.sort(scores, axis=1) == np.arange(1, 11)).all()
    order = np.random.default_rng(0).permutation(10)
    np.testing.assert_array_equal(method.rank(served, users, lists[:, order]), scores[:, order])
    some = method.rank(served, users[3:5], lists[3:5])
    np.testing.assert_array_equal(some, scores[3:5])
    places = [prompt for prompt in everything(model) if "RANKING:" in prompt][: len(users)]
    shown = [re.findall(r"^[A-J]\. (.*?)(?: -- .*)?$", text, re.MULTILINE) for text in places]
    first = [
        row.index(problem_title(problem, i)) for row, (i, *_) in zip(shown, lists, strict=True)
    ]
    assert len(set(first)) > 4


def test_omitted_candidates_rank_last_and_equal(problem):
    two = lambda asked: [Answer("RANKING: B, b, A" if "RANKING" in p.user else "") for p in asked]
    method, state, _ = fit(problem, two, attempts=1, unusable_limit=1.0)
    scores = method.rank(method.prepare(state, problem[0]), [0], np.array([[4, 5, 6, 7, 8]]))
    assert sorted(scores[0]) == [0, 0, 0, 4, 5]
    values, _ = method.account(state, state, problem[0])
    assert values["llm/session/rankings_incomplete"] == 1


def test_only_the_members_of_a_group_are_shown_what_it_took(loopback):
    """Users 0 and 1 like the sea, 2 and 3 space, user 4 nothing that another one likes."""
    data = small_data((0, 0), (2, 2), (1, 1), (3, 3), (4, 4), (0, 1), (2, 3), domain=[0] * 8,
        title=["Tide", "Wreck", "Moon", "Comet", "Stew", "X", "Y", "Z"],
    )  # fmt: skip
    likes = ["the sea", "the sea", "outer space", "outer space", "slow cooking"]
    asked = []

    def complete(prompts_):
        asked.extend(prompts_)
        answers = []
        for p in prompts_:
            user = re.search(r"I am (\d)", p.user)
            if "TAGS:" in p.user:
                answers.append(f"TAGS: {likes[int(user[1])]}")
            elif "NOTES:" in p.user:
                title = re.search(r"(?:went home with|take this one).*?:\n(\w+)", p.user)
                answers.append("NOTES: I am " + (user[1] if user else str(who[title[1]])))
            else:
                answers.append(loopback.scripted(p.system, p.user, p.seed))
        return [Answer(text) for text in answers]

    method = text_engine.make(text_engine.Config(groups=3, tag_encoder="tfidf"), data[1], complete)
    state = method.init(jax.random.key(0), data[0])
    private = jax.tree.map(np.array, state.private)
    for user in range(5):
        strings.write(private, (user, 0), f"I am {user}")
    served = method.prepare(state._replace(private=private, fused=private), data[0])
    assert served.groups[0] == served.groups[1] != served.groups[2] == served.groups[3]
    assert served.groups[4] == []
    asked.clear()
    method.rank(served, np.arange(5), np.tile([5, 6, 7], (5, 1)))
    shown = [p.user for p in asked]
    assert all("of late Wreck; Tide; most often Wreck; Tide" in text for text in shown[:2])
    assert all("of late Comet; Moon; most often Comet; Moon" in text for text in shown[2:4])
    assert "share an interest" not in shown[4]
    assert not any("Moon" in text for text in shown[:2])


who = {}


def test_tags_of_several_interests_make_a_member_of_several_groups(problem, model):
    method, state, _ = fit(problem, model)
    served = method.prepare(state, problem[0])
    assert max(map(len, served.groups)) > 1
    assert max(group for groups in served.groups for group in groups) < 4  # the root of 14 users
    assert method.prepare(state, problem[0]).groups == served.groups
    none = text_engine.make(text_engine.Config(**SMALL, groups=-1), problem[1], model)
    assert not any(none.prepare(state, problem[0]).groups)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"history": None}, "column 'timestamp'.*position"),
        ({"written": None}, "column 'title'"),
        ({"domain": jnp.full(34, -1)}, "column 'domain': item 0 has domain -1"),
        ({"domain": jnp.arange(34)}, "item 0 is the only one of domain 0"),
    ],
)
def test_data_that_cannot_serve_are_refused(problem, model, change, message):
    data = problem[0]._replace(**change)
    with pytest.raises(DataError, match=message):
        check_data(text_engine.Config(**SMALL), data)
    with pytest.raises(DataError, match=message):
        fit((data, problem[1]), model)
    assert not model.asked


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("films", "books", "toys"), r"domains = \('films', 'books', 'toys'\): 3 names.*2 domains"),
        (("films", "films"), r"domains = \('films', 'films'\): 'films' would name two"),
        (("domain 1",), r"domains = \('domain 1',\): 'domain 1' would name two"),
    ],
)
def test_names_that_do_not_fit_the_domains_are_refused(problem, model, names, message):
    with pytest.raises(SettingError, match=message):
        check_data(text_engine.Config(**SMALL, domains=names), problem[0])
    with pytest.raises(SettingError, match=message):
        fit(problem, model, domains=names)
    assert not model.asked


def test_without_train_rows_there_is_nothing_to_learn(problem):
    past = problem[0].history
    empty = past._replace(user=past.user[:0], item=past.item[:0], order=past.order[:0])
    with pytest.raises(DataError, match="no train rows"):
        check_data(text_engine.Config(**SMALL), problem[0]._replace(history=empty))


def test_full_ranking_is_refused_before_training(model, monkeypatch):
    monkeypatch.setattr(text_engine.method, "connect", lambda config, usage: model)
    dataset = synthetic(users=8, items=40, clients=4, length=9)
    for given in ({"candidates": 0}, {"ranking": "users"}):
        with pytest.raises(SettingError, match=r"candidates = .*'rows' or 'domains'"):
            train("agentcf_text", dataset, progress=False, **given)
    assert not model.asked
    method = text_engine.make(text_engine.Config(), Sizes(1, 1, 1), model)
    with pytest.raises(SettingError, match="candidates = 0"):
        method.score(None, jnp.arange(1))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("attempts", 0),
        ("events_per_round", -1),
        ("private_words", 0),
        ("item_words", 0),
        ("spare_tokens", -1),
        ("groups", -2),
        ("tags", 0),
        ("shown", -1),
        ("temperature", float("nan")),
        ("prompt_price", -1.0),
        ("unusable_limit", 1.5),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(setting, value):
    with pytest.raises(SettingError, match=f"{setting} = {value}"):
        text_engine.Config(**{setting: value})


def test_what_the_future_holds_is_not_in_training_prompts(model):
    """Events are the train rows, and a group shows no other row, not at test time either."""
    dataset = split(synthetic(users=14, items=60, clients=2, length=14), "ratio", 0.1, 0.2, 0)
    rows, (data, sizes) = dataset.interactions, ready(dataset)
    trained = rows[rows["split"] == 0]
    log = log_of(data, jax.random.key(0))
    assert sorted(zip(log.user, log.item, strict=True)) == sorted(
        zip(trained["user"], trained["item"], strict=True)
    )
    known = data._replace(history=jax.tree.map(jnp.asarray, history(dataset, 2)))
    assert len(known.history.user) == (rows["split"] < 2).sum() > len(trained)
    new = set(rows["item"][rows["split"] == 1]) - set(trained["item"])
    assert new  # items that only the validation rows have

    method, state, _ = fit((data, sizes), model, shown=60, shown_groups=60)
    assert list(zip(state.who.tolist(), state.took.tolist(), strict=True)) == list(
        zip(log.user, log.item, strict=True)
    )
    served = method.prepare(state, known)
    expected = method.prepare(state, data)
    assert (served.groups, served.lately) == (expected.groups, expected.lately)
    model.asked.clear()
    method.rank(
        served, np.arange(14), np.tile(np.flatnonzero(np.asarray(data.domain) == 0)[:4], (14, 1))
    )
    shown = [text for text in everything(model) if "share an interest" in text]
    assert shown
    groups = "".join(
        re.search(r"with you took:\n(.*?)\n\nOn offer", text, re.DOTALL)[1] for text in shown
    )
    groups += "".join(words for by_domain in served.lately for words in by_domain.values())
    told = {
        title
        for line in re.split(r"of late |; most often |; |\n- ", groups)
        for title in [line.strip("- \n")]
    }
    assert told & {problem_title((data,), item) for item in log.item}
    assert not told & {problem_title((data,), item) for item in new}
