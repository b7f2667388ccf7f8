"""`caltune score --endpoint`: each dialect's log-probabilities, the cache, and what a server may get wrong."""

from __future__ import annotations

import json
import math
import resource
import threading

import numpy as np
import pytest
from files import write_jsonl
from stub_server import Echoing, openai, serving, transformers_serve, vllm
from tiny import tiny_model, tiny_questions, tiny_tokenizer

from caltune.errors import InputError
from caltune.formats import read_scores
from caltune.scoring import score
from caltune.scoring.endpoint import bounded_line, score_endpoint
from caltune.scoring.endpoint_client import Client
from caltune.scoring.endpoint_dialects import Asking, Found
from caltune.types import OptionLogits, Question

LETTERS = Asking("m", "letters", "plain")
TEXTS = Asking("m", "continuations", "plain")
ROME = Question("rome", "Capital of Italy?", ("Rome", "Milan", "Turin"), 0, group="geography")
OSLO = Question("oslo", "Capital of Norway?", ("Bergen", "Oslo"), None)


def ask(answer, questions=(ROME, OSLO), asking=LETTERS, **how):
    with serving(answer) as stub:
        scores, found = score_endpoint(Client(stub.url, sleep=lambda _: None), list(questions), asking, **how)
    return stub, scores, found


@pytest.mark.parametrize("dialect", [vllm, openai])
def test_letters_come_from_the_first_tokens(dialect):
    stub, scores, found = ask(dialect)
    np.testing.assert_allclose(scores.logits, [[-0.5, -1.5, -4.0], [-0.5, -1.5, -math.inf]])
    assert (scores.ids, scores.labels.tolist(), scores.groups) == (("rome", "oslo"), [0, -1], ("geography", ""))
    assert bounded_line(scores, found) is None
    path, _, body = min(stub.asked, key=lambda one: -len(one[2]["prompt"]))
    assert path == "/v1/completions"
    assert body == {
        "model": "m",
        "prompt": "Question: Capital of Italy?\nA. Rome\nB. Milan\nC. Turin\nAnswer:",
        "logprobs": 20,
        "max_tokens": 1,
        "temperature": 1,
        "top_p": 1,
    }


@pytest.mark.parametrize("dialect", [vllm, openai])
def test_letters_of_a_chat_have_no_space(dialect):
    stub, scores, _ = ask(dialect, [ROME], Asking("m", "letters", "chat", top=4))
    np.testing.assert_allclose(scores.logits, [[-0.5, -1.5, -4.0]])
    ((path, _, body),) = stub.asked
    assert path == "/v1/chat/completions"
    assert (body["logprobs"], body["top_logprobs"]) == (True, 4)
    assert body["messages"] == [
        {
            "role": "user",
            "content": "Capital of Italy?\nA. Rome\nB. Milan\nC. Turin\nAnswer with the letter of the right option.",
        }
    ]


def test_a_letter_that_is_not_listed_gets_the_most_it_can_have():
    # Four tokens listed: " A" −0.5, " B" −1.5, " the" −2, "A" −3; so " C" has at most −3.
    _, scores, found = ask(vllm, [ROME], Asking("m", "letters", "plain", top=4))
    np.testing.assert_allclose(scores.logits, [[-0.5, -1.5, -3.0]])
    assert found[0].bounded == (2,)
    # e^-3 / (e^-0.5 + e^-1.5 + e^-3) = 0.0498 / (0.6065 + 0.2231 + 0.0498) = 0.0566
    assert bounded_line(scores, found).startswith("1 letters of 1 questions were not among the tokens listed")
    assert "up to 0.0566 of a question's probability" in bounded_line(scores, found)


def test_a_sampled_token_below_the_top_does_not_lower_the_bound():
    def answer(path, body):
        top = [{"token": " A", "logprob": -0.25}, {"token": " the", "logprob": -3.0}]
        return {"choices": [{"logprobs": {"content": [{"token": "zebra", "logprob": -15.0, "top_logprobs": top}]}}]}

    _, scores, _ = ask(answer, [OSLO], Asking("m", "letters", "plain", top=2))
    np.testing.assert_allclose(scores.logits, [[-0.25, -3.0]], rtol=1e-6)


def test_a_server_that_lists_fewer_than_asked_for_does_not_lower_the_bound_by_what_it_drew():
    def answer(path, body):
        top = [{"token": " A", "logprob": -0.5}, {"token": " the", "logprob": -3.0}]
        return {"choices": [{"logprobs": {"content": [{"token": "zebra", "logprob": -15.0, "top_logprobs": top}]}}]}

    _, scores, _ = ask(answer, [OSLO])
    np.testing.assert_allclose(scores.logits, [[-0.5, -3.0]], rtol=1e-6)


def test_what_is_not_listed_shares_what_the_listed_leave():
    def answer(path, body):
        top = [{"token": " A", "logprob": math.log(0.96)}][: body["logprobs"]]
        return {"choices": [{"logprobs": {"content": [{**top[0], "top_logprobs": top}]}}]}

    _, scores, _ = ask(answer, [OSLO], Asking("m", "letters", "plain", top=1))
    np.testing.assert_allclose(scores.logits, np.log([[0.96, 0.04]]), rtol=1e-5)  # not as probable as A


@pytest.mark.parametrize(("form", "other"), [("A", "B"), ("▁A", "▁B")])
def test_letters_as_other_servers_write_them(form, other):
    def answer(path, body):
        return {"choices": [{"logprobs": {"top_logprobs": [{form: -0.25, "x": -1.0, other: -2.0}]}}]}

    _, scores, _ = ask(answer, [OSLO])
    np.testing.assert_allclose(scores.logits, [[-0.25, -2.0]])


@pytest.mark.parametrize("reduction", ["sum", "mean", "min"])
def test_texts_by_echo_are_the_numbers_of_score(reduction):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    questions = tiny_questions(9)
    asking = Asking("m", "continuations", "plain", reduction)
    _, scores, _ = ask(Echoing(model, tokenizer), questions, asking)
    direct = score(model, tokenizer, questions, template="plain", reduction=reduction)
    np.testing.assert_allclose(scores.logits, direct.logits, atol=1e-5)


def test_texts_in_a_chat_by_prompt_logprobs_are_the_numbers_of_score_behind_exemplars_too():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    shown, *questions = tiny_questions(6)
    asking = Asking("m", "continuations", "chat", exemplars=(shown,))
    stub, scores, _ = ask(Echoing(model, tokenizer), questions, asking)
    direct = score(model, tokenizer, questions, template="chat", exemplars=[shown])
    np.testing.assert_allclose(scores.logits, direct.logits, atol=1e-5)
    assert len(stub.asked) == sum(1 + len(question.options) for question in questions)


def echo(*rows, **usage):
    """An answer with these tokens and log-probabilities, a choice each."""
    choices = [
        {"index": i, "logprobs": {"tokens": tokens, "token_logprobs": values}}
        for i, (tokens, values) in enumerate(rows)
    ]
    return lambda path, body: {"choices": choices, **({"usage": usage} if usage else {})}


def test_a_token_across_the_end_of_the_prompt_belongs_to_the_option():
    # Behind "a b:" the first option merges with the colon, so all options begin at the colon.
    rows = (
        (["a", "b", ":", "."], [None, -1.0, -1.0, -1.0]),
        (["a", "b", ":x", "."], [None, -1.0, -0.5, -1.0]),
        (["a", "b", ":", "y", "."], [None, -1.0, -1.0, -2.0, -1.0]),
    )
    _, scores, _ = ask(echo(*rows, prompt_tokens=10), [OSLO], TEXTS)
    np.testing.assert_allclose(scores.logits, [[-0.5, -3.0]])


GOOD = [
    (["a", ":", "."], [None, -1, -1]),
    (["a", ":", "x", "."], [None, -1, -1, -1]),
    (["a", ":", "y", "."], [None, -1, -1, -1]),
]


@pytest.mark.parametrize(
    ("answer", "asking", "error"),
    [
        (transformers_serve, LETTERS, "question oslo: the server gives no log-probabilities, and without them"),
        (transformers_serve, TEXTS, "the server must give 3 choices for 3 prompts, got 1"),
        (lambda path, body: {"choices": []}, LETTERS, "the server must give 1 choices for 1 prompts, got 0"),
        (lambda path, body: {"error": "no"}, LETTERS, "the server must give 1 choices"),
        (lambda path, body: {"choices": [{"logprobs": {"content": []}}]}, LETTERS, "gives no log-probabilities"),
        (
            lambda path, body: {"choices": [{"logprobs": {"top_logprobs": [{"x": -1.0, "yes": -2.0}]}}]},
            LETTERS,
            "the first 2 tokens hold no letter of an option, only ['x', 'yes']; ask for more with --top",
        ),
        (
            lambda path, body: {"choices": [{"logprobs": {"top_logprobs": [{" A": 0.3}]}}]},
            LETTERS,
            "a log-probability must be a number up to 0, got 0.3",
        ),
        (
            lambda path, body: {"choices": [{"logprobs": {"top_logprobs": [{" A": None}]}}]},
            LETTERS,
            "a log-probability must be a number up to 0, got None",
        ),
        (
            lambda path, body: {"choices": [{}] * 3},
            TEXTS,
            "the server gives no log-probabilities of the prompt, as vLLM",
        ),
        (
            echo(*[(["."], [-1.0])] * 3, prompt_tokens=12),
            TEXTS,
            "gives log-probabilities of 0 tokens of the prompt, which",
        ),
        (echo(*GOOD, prompt_tokens=9), TEXTS, "of 8 tokens of the prompt, which has 9: it does not know `echo`"),
        (echo(*GOOD[:2], (["a", ":", "y", "."], [None, -1, -1])), TEXTS, "gives 3 log-probabilities for 4 tokens"),
        (echo(*GOOD[:2], GOOD[0]), TEXTS, "an option must add a token to the prompt"),
        (
            lambda path, body: {"choices": [{"index": 0}, {"index": 0}, {"index": 1}]},
            TEXTS,
            "choices must be numbered from 0 to 2, got [0, 0, 1]",
        ),
        (vllm, Asking("m", "continuations", "chat"), "gives no log-probabilities of the prompt (`prompt_logprobs`)"),
    ],
)
def test_what_a_server_does_not_tell_is_an_error(answer, asking, error):
    with pytest.raises(InputError) as caught:
        ask(lambda p, b: answer(p, {"top_logprobs": 5, **b}), [OSLO], asking)
    assert error in str(caught.value)


def test_an_interrupted_run_goes_on_from_its_cache(tmp_path):
    questions, cache = tiny_questions(8), tmp_path / "cache.jsonl"
    model, tokenizer = tiny_model(), tiny_tokenizer()
    real, lock, left = Echoing(model, tokenizer), threading.Lock(), [5]

    def failing(path, body):
        with lock:
            left[0] -= 1
            return real(path, body) if left[0] >= 0 else (400, {}, b"out of credit")

    with pytest.raises(InputError, match="answered 400 to completions: out of credit"):
        ask(failing, questions, TEXTS, cache=cache, parallel=1)
    lines = cache.read_text().splitlines()
    assert 1 <= len(lines) <= 5
    # Cut within the last line, as when the power fails.
    cache.write_text("\n".join([*lines, lines[-1][:30]]))
    first = {json.loads(line)["id"] for line in lines}
    stub, scores, _ = ask_same(real, questions, cache)
    assert len(stub.asked) == 8
    np.testing.assert_allclose(scores.logits, score(model, tokenizer, questions, template="plain").logits, atol=1e-5)
    kept = [json.loads(line) for line in cache.read_text().splitlines()]
    assert {one["id"] for one in kept} == {q.id for q in questions} >= first


def ask_same(answer, questions, cache):
    """A run by another address, so nothing of it is known; then once more by the same, which asks nothing."""
    with serving(answer) as stub:
        client = Client(stub.url)
        score_endpoint(client, questions, TEXTS, cache=cache)
        scores, found = score_endpoint(client, questions, TEXTS, cache=cache)
    return stub, scores, found


def test_an_error_ends_what_waits_to_be_tried_again():
    """Else the process would live on for as long as a server's Retry-After asks, up to ten minutes a try."""
    together, before = threading.Barrier(2), set(threading.enumerate())

    def answer(path, body):
        if len(stub.asked) <= 2:
            together.wait(10)
        return (400, {}, b"no") if "Capital of Italy" in body["prompt"] else (429, {"Retry-After": "30"}, b"later")

    with serving(answer) as stub:
        client = Client(stub.url)
        with pytest.raises(InputError, match=r"question rome: .* answered 400"):
            score_endpoint(client, [ROME, OSLO, *tiny_questions(8)], LETTERS, parallel=2)
        left = [one for one in threading.enumerate() if one not in before and "ThreadPoolExecutor" in one.name]
        for one in left:
            one.join(5)
        assert not any(one.is_alive() for one in left)
        assert len(stub.asked) <= 3  # one may have begun in the meantime
    with serving(vllm) as stub:  # the same client asks on
        client.base = f"{stub.url}/v1"
        assert len(score_endpoint(client, [ROME], LETTERS)[0]) == 1


def test_a_full_disk_is_told(tmp_path):
    cache = tmp_path / "cache.jsonl"
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limit[1]))  # as a disk on which nothing is left
    try:
        with pytest.raises(InputError, match=r"cache\.jsonl: cannot be written, File too large"):
            ask(vllm, [ROME], cache=cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def test_another_file_of_one_line_is_no_cache(tmp_path):
    for text in ('{"id": "q1"}', "[1, 2", "notes"):
        cache = tmp_path / "other.json"
        cache.write_text(text)
        with pytest.raises(InputError, match=r"other\.json:1: a line of a cache needs key, logits and bounded"):
            score_endpoint(Client("http://127.0.0.1:9"), [ROME], LETTERS, cache=cache)
        assert cache.read_text() == text


def test_a_cache_is_for_one_server_model_and_prompt_and_must_be_one(tmp_path):
    cache = tmp_path / "cache.jsonl"
    with serving(vllm) as stub:
        client = Client(stub.url)
        for asking in (LETTERS, Asking("other", "letters", "plain"), Asking("m", "letters", "chat"), LETTERS):
            score_endpoint(client, [ROME], asking, cache=cache)
        assert len(stub.asked) == 3
        for line in ("{", '{"key": "k"}', "[]", '{"key": "k", "logits": [NaN], "bounded": []}'):
            cache.write_text(line + "\n")
            with pytest.raises(InputError, match=r"cache\.jsonl:1: a line of a cache needs key, logits and bounded"):
                score_endpoint(client, [ROME], LETTERS, cache=cache)


def test_settings_that_are_none_ask_nothing():
    for questions, asking, how, error in (
        ([], LETTERS, {}, "there are no questions"),
        ([ROME], Asking("m", "words", "plain"), {}, "answers must be one of letters, continuations, got 'words'"),
        ([ROME], Asking("m", "letters", "auto"), {}, "template must be one of plain, chat, got 'auto'"),
        ([ROME], Asking("m", "letters", "plain", top=0), {}, "top must be at least 1, got 0"),
        ([ROME], LETTERS, {"parallel": 0}, "parallel must be at least 1, got 0"),
        ([ROME, Question("o", "Who?", (), None, ("me",))], LETTERS, {}, "question o: is open-ended"),
    ):
        with pytest.raises(InputError, match=error):
            score_endpoint(Client("http://127.0.0.1:9"), questions, asking, **how)


def test_the_verb_writes_scores_and_names_the_host_only(caltune, monkeypatch, tmp_path):
    monkeypatch.setenv("THE_KEY", "sk-secret")
    data, out, cache = write_jsonl(tmp_path / "q.jsonl", [ROME]), tmp_path / "s.parquet", tmp_path / "c.jsonl"
    with serving(vllm) as stub:
        flags = ("--answers", "letters", "--api-key-env", "THE_KEY", "--rate", 50, "--cache", cache, "--top", 4)
        result = caltune("score", data, "--endpoint", f"{stub.url}/v1", "--model", "m", *flags, "-o", out)
    assert result.status == 0
    assert result.out.splitlines()[0].startswith("1 letters of 1 questions were not among the tokens listed")
    assert result.out.endswith(f"\n{out}\n")
    assert stub.asked[0][1]["Authorization"] == "Bearer sk-secret"
    file = read_scores(out)
    np.testing.assert_allclose(file.scores.logits, [[-0.5, -1.5, -3.0]])
    chosen = ("model", "endpoint", "answers", "template", "reduction", "split")
    assert {name: file.metadata[name] for name in chosen} == {
        "model": "m",
        "endpoint": "127.0.0.1",
        "answers": "letters",
        "template": "plain",
        "reduction": "sum",
        "split": None,
    }
    for text in (json.dumps(file.metadata), cache.read_text(), result.out + result.err):
        assert "sk-secret" not in text
        assert str(stub.server.server_port) not in text


def test_flags_for_the_other_way_are_refused(refused, monkeypatch, tmp_path):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    data, out = write_jsonl(tmp_path / "q.jsonl", [ROME]), tmp_path / "s.parquet"
    here, there = ("score", data, "--model", "m", "-o", out), ("--endpoint", "http://127.0.0.1:9")
    for words, error in (
        ((*here, "--rate", "2"), "--rate needs --endpoint, got 2.0"),
        ((*here, "--api-key-env", "X"), "--api-key-env needs --endpoint, got 'X'"),
        ((*here, *there, "--device", "cpu"), "--device cannot be had from --endpoint, got 'cpu'"),
        ((*here, *there, "--features"), "--features cannot be had from --endpoint, got True"),
        ((*here, *there, "--api-key-env", "NO_SUCH_KEY"), "must name a variable that is set, got 'NO_SUCH_KEY'"),
        ((*here, "--endpoint", "localhost"), "the endpoint must be an address like"),
        ((*here, *there, "--cache", tmp_path / "no" / "c.jsonl"), "the folder must exist"),
        ((*here, *there, "--cache", out), "--cache must be a file of its own"),
        ((*here, *there, "--cache", data), "--cache must be a file of its own"),
    ):
        assert error in refused(*words)
    line = refused(*here, *there, "--api-key-env", "sk-secret")
    assert "must be the name of an environment variable" in line
    assert "sk-secret" not in line
    assert not out.exists()


def test_bounds_are_counted():
    logits = [np.log([0.5, 0.25, 0.25]).tolist(), [*np.log([0.9, 0.1]).tolist(), -math.inf]]
    scores = OptionLogits(("a", "b"), logits, [0, 0])
    line = bounded_line(scores, [Found((), (1, 2)), Found((), (1,))])
    assert line.startswith("3 letters of 2 questions")
    assert "up to 0.5000 of a question's probability (mean 0.3000)" in line
