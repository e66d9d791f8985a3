"""Whatever a server sends is an answer, a counted call without one, or one line that says why."""

import asyncio
import json
import time
from importlib.util import find_spec

import pytest

from jaxrec.llm import openai_http, openai_server
from jaxrec.llm.protocol import Answer, Prompt, Usage
from jaxrec.types import LLMError

pytestmark = pytest.mark.skipif(
    not find_spec("openai"),
    reason="the package openai is not installed: pip install jaxrec[agents]",
)


def prompts(number):
    return [Prompt("You are terse.", f"NOTES: {k}", seed=k) for k in range(number)]


def ask(loopback, asked, folder=None, usage=None, **settings):
    settings = {"retries": 1, "timeout": 10.0, "concurrency": 4} | settings
    complete = openai_server.server(loopback.url, "toy", folder=folder, usage=usage, **settings)
    return complete(asked)


def completion(content="fine", finish="stop", usage=None, **message):
    """The body of an answer."""
    message = {"role": "assistant", "content": content} | message
    choices = [{"index": 0, "finish_reason": finish, "message": message}]
    return {"id": "x", "object": "chat.completion", "choices": choices, "usage": usage}


def sends(body, status=200, **headers):
    """A fault that sends a body: bytes, or what becomes JSON."""

    def write(handler):
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(payload)))
        handler.send_header("Connection", "close")  # else a call might follow on what ends here
        handler.end_headers()
        handler.wfile.write(payload)

    return write


def always(fault):
    return lambda number, body: fault


UNKNOWN_FIELD = {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (422, {"object": "error", "message": UNKNOWN_FIELD}, r"422 .*Extra inputs are not perm"),
        (422, UNKNOWN_FIELD, r"422 .*Extra inputs are not permitted"),
        (400, {"error": {"message": "no parameter 'max_tokens'"}}, "400 .no parameter 'max_tok"),
        (400, {"error": "no such field"}, r"400 \(no such field\)"),
        (413, b"<html>\n<b>too   large</b>\x1b[31m", r"413 \(<html> <b>too large</b> \[31m\)"),
        (400, b"", r"400 \(Bad Request\)"),
    ],
)
def test_a_server_that_refuses_every_call_is_an_error_with_its_words(serve, status, body, said):
    loopback, usage = serve(fault=always(sends(body, status))), Usage()
    with pytest.raises(LLMError, match=rf"{loopback.url}: 8 of 8 calls refused.*{said}") as caught:
        ask(loopback, prompts(40), usage=usage)
    assert "\n" not in str(caught.value)
    assert 8 <= len(loopback.bodies) < 8 + 4
    assert usage.failures >= 8


@pytest.mark.parametrize("status", [401, 402, 403, 404, 409, 418, 429, 451, 500, 503])
def test_the_words_of_the_server_are_shown_whatever_the_status(serve, status):
    fault = sends({"message": {"why": "the moon is full"}}, status, Retry_After="0.01")
    with pytest.raises(LLMError, match=rf"answered {status} .*the moon is full"):
        ask(serve(fault=always(fault)), prompts(1))


def test_an_error_with_status_200_is_shown(serve):
    body = {"choices": None, "error": {"message": "rate-limited upstream", "code": 429}}
    with pytest.raises(LLMError, match=r"not an answer of the.*\(rate-limited upstream\).*2 tries"):
        ask(serve(fault=always(sends(body))), prompts(1))


def test_refusals_after_an_answer_that_was_kept_are_counted(serve, tmp_path):
    """A prompt that fails alone does so again after a restart, when it is the first to be asked."""
    refuse = lambda number, body: sends(b"", 400) if body["seed"] else None
    loopback = serve(fault=refuse)
    for _ in range(2):
        usage = Usage()
        answers = ask(loopback, prompts(20), tmp_path, usage, concurrency=1)
        assert [answer.text is None for answer in answers] == [False] + [True] * 19
        assert usage.failures == 19


USELESS = {
    "null": completion(None),
    "empty": completion(""),
    "blank": completion(" \n"),
    "cut": completion("fi", "length"),
    "filtered": completion("fine", "content_filter"),
    "refused": completion("fine", refusal="I would rather not."),
    "thought": completion(None, reasoning_content="hmm"),
}


@pytest.mark.parametrize("kind", USELESS)
def test_an_answer_of_no_use_is_counted_and_never_kept(serve, tmp_path, kind):
    fault = lambda number, body: sends(USELESS[kind]) if body["seed"] == 1 else None
    loopback, usage = serve(fault=fault), Usage()
    answers = ask(loopback, prompts(3), tmp_path, usage)
    assert [answer.text is None for answer in answers] == [False, True, False]
    assert answers[1].failure
    assert (usage.calls, usage.cut, usage.empty) == (3, kind == "cut", kind != "cut")
    assert len(list(tmp_path.rglob("*.json"))) == 2
    with pytest.raises(LLMError, match="8 of 8 calls refused or unusable"):
        ask(serve(fault=always(sends(USELESS[kind]))), prompts(20), tmp_path)
    assert len(list(tmp_path.rglob("*.json"))) == 2


def drip(handler):
    """A whole answer, of which a byte comes every 0.1 s, after headers that come at once."""
    payload = json.dumps(completion()).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(payload)))
    handler.end_headers()
    _slowly(handler, payload)


def drip_headers(handler):
    payload = json.dumps(completion()).encode()
    _slowly(handler, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(payload))
    handler.wfile.write(payload)


def _slowly(handler, payload):
    for byte in payload:
        handler.wfile.write(bytes([byte]))
        time.sleep(0.1)


@pytest.mark.parametrize("fault", [drip, drip_headers])
def test_a_server_that_drips_bytes_runs_out_of_time(serve, fault):
    loopback = serve(fault=always(fault))
    with pytest.raises(LLMError, match=r"no whole answer in 0.4 s \(2 tries.*timeout"):
        ask(loopback, prompts(1), timeout=0.4)
    assert len(loopback.bodies) == 2


def test_an_answer_larger_than_any_is_not_read(serve, monkeypatch):
    monkeypatch.setattr(openai_http, "MOST_BYTES", 1 << 20)
    sent = [0]

    def endless(handler):
        handler.send_response(200)
        handler.end_headers()
        while sent[0] < 1 << 28:
            sent[0] += handler.wfile.write(bytes(1 << 16))

    for status in (200, 500):
        large = sends(bytes(3 << 20), status, Retry_After="0.01")
        with pytest.raises(LLMError, match=r"not an answer.*more than 1 MiB"):
            ask(serve(fault=always(large)), prompts(1))
    with pytest.raises(LLMError, match=r"not an answer.*more than 1 MiB"):
        ask(serve(fault=always(endless)), prompts(1), retries=0)
    assert sent[0] < 1 << 28


def test_an_answer_that_would_have_to_be_unpacked_is_not_read(serve):
    wanted = []

    def packed(handler):
        wanted.append(handler.headers["Accept-Encoding"])
        sends(b"\x1f\x8b", Content_Encoding="gzip")(handler)

    with pytest.raises(LLMError, match=r"not an answer.*packed as gzip"):
        ask(serve(fault=always(packed)), prompts(1))
    assert set(wanted) == {"identity"}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_carries_no_prompt_to_another_host(serve, status):
    other = serve()
    there = f"{other.url}/chat/completions"
    loopback = serve(fault=always(sends(b"", status, Location=there)))
    with pytest.raises(LLMError, match=rf"answered {status} .a redirect to {there}.*base_url"):
        ask(loopback, prompts(3))
    assert not other.bodies


@pytest.mark.parametrize(
    "counted", [-5, "12", None, 10**30, True, 1.5, [], {"a": 1}, float("nan")], ids=repr
)
def test_odd_counts_of_tokens_are_guessed(serve, counted):
    used = {"prompt_tokens": counted, "completion_tokens": counted}
    usage = Usage()
    loopback = serve(fault=always(sends(completion("x" * 40, usage=used))))
    assert ask(loopback, prompts(1), usage=usage) == [Answer("x" * 40)]
    assert (usage.prompt_tokens, usage.answer_tokens) == (len("You are terse.NOTES: 0") // 4, 10)


@pytest.mark.parametrize("used", [None, [], "many", 7, {}], ids=repr)
def test_a_usage_that_is_none_is_guessed(serve, used):
    usage = Usage()
    ask(serve(fault=always(sends(completion("x" * 40, usage=used)))), prompts(1), usage=usage)
    assert usage.answer_tokens == 10


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"choices":' * 50_000,
        b'{"error":' * 900 + b"1" + b"}" * 900,
        b'{"choices": ' + b"9" * 10_000,
        b"\xff\xfe\x00",
        b"null",
        {"choices": []},
        {"choices": {"message": 1}},
        {"choices": [None]},
        {"choices": [{"message": "hi"}]},
        {"choices": [{"message": {"content": ["hi"]}}]},
        {"choices": [{"message": {"content": 7}}]},
    ],
    ids=lambda body: repr(body)[:24],
)
@pytest.mark.parametrize("status", [200, 500])
def test_odd_bodies_are_one_clear_error(serve, status, body):
    loopback = serve(fault=always(sends(body, status, Retry_After="0.01")))
    words = "not an answer of the chat" if status == 200 else "answered 500|not an answer"
    with pytest.raises(LLMError, match=words) as caught:
        ask(loopback, prompts(1))
    assert len(str(caught.value)) < 800
    assert str(caught.value).isprintable()


def test_half_a_character_is_none(serve, tmp_path):
    loopback = serve(fault=always(sends(completion("NOTES: \ud83d here"))))
    assert ask(loopback, prompts(1), tmp_path) == [Answer("NOTES: ? here")]
    assert ask(loopback, prompts(1), tmp_path) == [Answer("NOTES: ? here")]
    assert len(loopback.bodies) == 1


def test_a_notebook_which_has_a_loop_of_its_own_can_ask(serve):
    loopback = serve(fault=always(sends(completion())))

    async def cell():
        return ask(loopback, prompts(2))

    assert asyncio.run(cell()) == [Answer("fine")] * 2
