"""Conversations: what is said comes out as it was written, begun as asked, apart from what was thought."""

import html
import itertools
import re
from pathlib import Path

import pytest
import torch
from test_endings import ids_of, marked_lm, scripted

from ftnb import Chat, dialogue, generate, score, score_texts, tiny_lm
from ftnb.core.errors import FTNBError
from ftnb.data.rows import check_rows
from ftnb.data.tokenizing import prompt_and_target_ids, waiting_prompt_ids
from ftnb.generation.answers import begun_prompt
from ftnb.generation.chat import transcript
from ftnb.models.answers import reasoning_and_answer
from ftnb.models.lm import LM

THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n"
    "</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def speaker(text: str, plain: bool = False, end: bool = True) -> LM:
    """A model that answers with `text` (all its characters different), after a newline or after "Assistant:"."""
    base = marked_lm()
    ids = ids_of(base, text)
    assert len(set(ids)) == len(ids), "the script needs different characters"
    before = ids_of(base, ":" if plain else "\n")[-1]
    lm = scripted([before, *ids, *([base.tokenizer.eos_token_id] if end else [])])
    if plain:
        lm.tokenizer.chat_template = None
    return lm


def writes(text: str) -> LM:
    """A model that writes a text after every prompt, a token at a time, and ends."""
    lm = marked_lm()
    lm.tokenizer.chat_template = THINKS
    ids, start = [*ids_of(lm, text), lm.tokenizer.eos_token_id], 0

    def lead(module, args, kwargs, out):
        nonlocal start
        if "position_ids" not in kwargs:  # nothing is written
            return out
        places = kwargs["position_ids"][0].tolist()[-out.logits.shape[1] :]
        if len(places) == 1 and kwargs["input_ids"].shape[1] > 1:  # a prompt; guesses are asked for one by one
            start = places[-1]
        out.logits[:] = 0.0
        for i, place in enumerate(places):
            out.logits[:, i, ids[min(place - start, len(ids) - 1)]] = 9.0
        return out

    lm.model.register_forward_hook(lead, with_kwargs=True)
    return lm


CODE = ["    return x", "\tif x:\n\t\tpass", " yes", "yes", "\n\n    x = 1\n", "  # 注释\n  y"]


@pytest.mark.parametrize("written", CODE)
def test_indentation_stays(written):
    said = written.lstrip("\n")
    chat = Chat(writes(written), max_new_tokens=40)
    assert chat("Write.") == said and chat.turns[-1]["content"] == said
    assert "".join(Chat(writes(written), max_new_tokens=40).stream("Write.")) == said


def test_the_space_of_the_format_goes_and_no_more():
    lm = speaker(" yes", plain=True)  # after "Assistant:" every answer begins with a space
    assert Chat(lm, max_new_tokens=9, stop="\n")("Well?") == "yes"


def test_again_does_not_repeat_in_silence():
    chat = Chat(tiny_lm("llama", seed=1, chat=True), max_new_tokens=6)
    with pytest.raises(FTNBError, match="no answer to replace"):
        chat.again()
    first = chat("Hello.")
    with pytest.raises(FTNBError, match="would write the same answer"):
        chat.again()
    with pytest.raises(FTNBError, match=r"again\(temperature=0.8\)"):
        list(chat.stream_again())
    assert chat.turns[-1]["content"] == first, "nothing is lost"
    other = [chat.again(temperature=5.0) for _ in range(3)]
    assert len({first, *other}) > 2 and len(chat.turns) == 2
    sampled = Chat(chat.lm, max_new_tokens=6, temperature=5.0)
    assert sampled("Hello.") != sampled.again()
    chat = Chat(chat.lm, max_new_tokens=6)
    chat("Hello.")
    with torch.no_grad():
        for p in chat.lm.model.parameters():
            p.mul_(-1.0)
    chat.again()  # the weights have changed since: another answer
    for piece in chat.stream("More?"):
        if piece:
            break
    chat.again()  # of an answer that was left


def test_why_an_answer_ended():
    cut = Chat(speaker("abcdef", end=False), max_new_tokens=3)
    assert (cut.finish, cut("Go."), cut.finish) == (None, "abc", "length")
    assert "[cut at max_new_tokens]" in repr(cut) and "cut at max_new_tokens" in cut._repr_html_()
    assert cut.turns[-1] == {"role": "assistant", "content": "abc"}, "the mark is no part of what was said"
    for stop, text in (("d", "abc"), (ids_of(cut.lm, "c")[0], "ab"), (["e", "zz"], "abcd")):
        stopped = Chat(speaker("abcdef"), stop=stop, max_new_tokens=20)
        assert (stopped("Go."), stopped.finish) == (text, "stop")
        assert "[" not in repr(stopped).splitlines()[-1]
    ended = Chat(speaker("abcdef"), max_new_tokens=20)
    assert (ended("Go."), ended.finish) == ("abcdef", "end")
    left = Chat(speaker("abcdef"), max_new_tokens=20)
    pieces = left.stream("Go.")
    next(pieces), next(pieces)
    pieces.close()
    assert left.finish == "interrupted" and "interrupted" in repr(left)


def test_a_conversation_begins_from_given_turns():
    lm = marked_lm()
    said = ("system", "Be brief."), ("user", "Hi."), ("assistant", "Hello.")
    turns = [{"role": role, "content": content} for role, content in said]
    chat, step = Chat(lm, turns=turns, max_new_tokens=5), Chat(lm, "Be brief.", turns=turns[1:], max_new_tokens=5)
    assert chat.system == turns[:1] and chat.turns == turns[1:]
    assert chat("And?") == step("And?")
    asked = [*turns, {"role": "user", "content": "And?"}, {"role": "assistant", "content": "x"}]
    rows = check_rows(dialogue(), [{"messages": asked}])
    prompt = waiting_prompt_ids(lm, dialogue(), rows)[0]
    assert generate(lm, [prompt], 5)[0].strip("\n") == chat.turns[-1]["content"].strip("\n")
    waiting = Chat(lm, turns=turns[:2], max_new_tokens=5)
    assert waiting() == waiting.turns[-1]["content"] and len(waiting.turns) == 2
    for wrong, words in (
        ([{"role": "wizard", "content": "x"}], "wizard"),
        ([{"role": "user"}], "content"),
        ([{"role": "user", "content": 7}], "content|text|str"),
        ("Hi.", "turns|conversation|list"),
        ([*turns[1:], turns[0]], "system"),
        ([{"role": "user", "content": "a\ud83d"}], "half of a character"),
    ):
        with pytest.raises(FTNBError, match=words):
            Chat(lm, turns=wrong)
    with pytest.raises(FTNBError, match="another system turn"):
        Chat(lm, "Be long.", turns=turns)
    with pytest.raises(FTNBError, match="text"):
        Chat(lm)()


BEGINS = ['{"a":', "The answer is ", "def f():\n    ", "情感是", "🙂 ", "Yes", "1.", "<b>"]


@pytest.mark.parametrize("begin", BEGINS)
@pytest.mark.parametrize("plain", [False, True])
def test_an_answer_begins_as_asked(begin, plain):
    lm = marked_lm()
    if plain:
        lm.tokenizer.chat_template = None
    chat = Chat(lm, max_new_tokens=6, stop=["zzzz"])
    answer = chat("Well?", begin=begin)
    assert answer.startswith(begin) and chat.turns[-1]["content"] == answer
    pieces = list(Chat(lm, max_new_tokens=6, stop=["zzzz"], begin=begin).stream("Well?"))
    assert pieces[0] == begin.removesuffix(" ") or pieces[0] == begin
    assert "".join(pieces) == answer
    turns = [{"role": "user", "content": "Well?"}]
    whole = check_rows(dialogue(), [{"messages": [*turns, {"role": "assistant", "content": answer}]}])
    ((prompt, target),) = prompt_and_target_ids(lm, dialogue(), whole)
    begun = begun_prompt(lm, dialogue(), turns, {}, begin)
    assert (prompt + target)[: len(begun.ids)] == begun.ids, "tokens as in training"
    again = chat.again(temperature=3.0)
    assert again.startswith(begin)
    turns = [*map(dict, chat.turns), {"role": "user", "content": "And?"}]
    asked = check_rows(dialogue(), [{"messages": [*turns, {"role": "assistant", "content": "x"}]}])
    seen = []
    hook = lm.model.register_forward_pre_hook(lambda _, __, given: seen.append(given["input_ids"][0]), with_kwargs=True)
    chat("And?")  # without a beginning; what has been read, and what is read now, are the prompt of training
    hook.remove()
    prompt = waiting_prompt_ids(lm, dialogue(), asked)[0]
    assert len(chat.turns) == 4 and chat.reused + chat.read == len(prompt)
    assert seen[0].tolist() == prompt[chat.reused :]


def test_a_beginning_and_what_ends_an_answer():
    lm = speaker("abcdef")
    for stop, text in (("d", "]bc"), (ids_of(lm, "e")[0], "]bcd"), ("zz", "]bcdef")):
        chat = Chat(scripted([ids_of(lm, "]")[0], *ids_of(lm, "bcdef"), lm.tokenizer.eos_token_id]), stop=stop)
        assert chat("Go.", begin="]") == text and chat.turns[-1]["content"] == text
    whole = Chat(lm, stop="]", max_new_tokens=9)  # a beginning that holds a stop string is what was asked for
    assert whole("Go.", begin="a]\n").startswith("a]\n")


def test_an_error_in_the_middle_loses_nothing():
    lm = speaker("abcdef")
    chat, calls = Chat(lm, max_new_tokens=9), itertools.count()

    def fail(*_):
        if next(calls) == 4:
            raise RuntimeError("no more")

    hook = lm.model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="no more"):
        chat("Go.")
    hook.remove()
    assert chat.finish == "interrupted" and chat.turns[-1]["content"].startswith("a")
    assert chat.again() == "abcdef"


def test_what_cannot_begin_an_answer():
    lm = marked_lm()
    for wrong in ("  ", 7, ["a"], "a\ud83d"):
        with pytest.raises(FTNBError, match="begin"):
            Chat(lm, begin=wrong)
        with pytest.raises(FTNBError, match="begin"):
            Chat(lm)("Hi.", begin=wrong)


def test_an_encoder_decoder_begins_as_asked():
    lm = tiny_lm("t5", seed=1)
    for begin in ("Oui", "Oui, ", "是", "🙂"):
        assert Chat(lm, max_new_tokens=5, begin=begin)("Yes?").startswith(begin)


@pytest.mark.parametrize(
    ("text", "prompt", "thought", "answer"),
    [
        ("<think>\na b\n</think>\n\nc", "", "a b", "c"),
        ("<think>\na b", "", "a b", ""),
        ("<think></think>\nc", "", "", "c"),
        ("a b\n</think>\nc", "<think>\n", "a b", "c"),
        ("a b", "<think>\n", "a b", ""),
        ("c: `<think>` opens it", "", "", "c: `<think>` opens it"),
        ("c", "", "", "c"),
        ("[THINK]a[/THINK]c", "", "a", "c"),
        ("<think>\na\n</think>\n\n    x = 1", "", "a", "    x = 1"),
        ("", "", "", ""),
    ],
)
def test_reasoning_apart(text, prompt, thought, answer):
    assert reasoning_and_answer(text, prompt) == (thought, answer)


def test_reasoning_in_a_conversation():
    text = "<think>\nhm, <b>\n</think>\n\nSo."
    lm = writes(text)
    chat = Chat(lm, max_new_tokens=60)
    assert chat("Well?") == "So."
    assert chat.turns[-1] == {"role": "assistant", "content": "So.", "reasoning_content": "hm, <b>"}
    shown = chat._repr_html_()
    assert "<details" in shown and html.escape("hm, <b>") in shown and "hm, <b>" not in shown and 'dir="auto"' in shown
    assert "reasoning" in repr(chat)
    assert "".join(Chat(lm, max_new_tokens=60).stream("Well?")) == "So."
    cut = Chat(lm, max_new_tokens=12)
    assert cut("Well?") == "" and cut.finish == "length" and cut.turns[-1]["reasoning_content"].startswith("hm")
    assert transcript([{"role": "user", "content": "<i>"}]).count("&lt;i&gt;") == 1


def test_scores_without_reasoning():
    texts = ["<think>a long thought</think>\nyes", "no", "<think>never"]
    with pytest.warns(UserWarning, match="1 of 3 texts end within the reasoning"):
        scores = score_texts(texts, ["yes", "no", "yes"], ["exact_match"], skip_reasoning=True)
    assert scores.rows["prediction"][:] == ["yes", "no", ""] and scores.values["exact_match"] == pytest.approx(200 / 3)
    assert score_texts(texts, ["yes", "no", "yes"], ["exact_match"]).values["exact_match"] == pytest.approx(100 / 3)
    lm = writes("<think>\nhm\n</think>\n\nyes")
    answer = {"role": "assistant", "content": "yes"}
    rows = [{"messages": [{"role": "user", "content": q}, answer]} for q in ("a?", "b?")]
    options = dict(progress=False, metrics=["exact_match"], batch_tokens=1, max_new_tokens=40)
    kept, apart = (score(lm, rows, dialogue(), skip_reasoning=skip, **options) for skip in (False, True))
    assert kept.values["exact_match"] == 0 and apart.values["exact_match"] == 100
    assert apart.rows["reasoning"][:] == ["hm", "hm"] and "reasoning" not in kept.rows.column_names


def test_scores_of_answers_that_begin_as_asked():
    lm = marked_lm()
    answer = {"role": "assistant", "content": "yes"}
    rows = [{"messages": [{"role": "user", "content": q}, answer]} for q in ("a?", "b?")]
    for begin in ('{"a":', "The answer is "):
        scores = score(lm, rows, dialogue(), 5, begin=begin, progress=False)
        assert all(text.startswith(begin.rstrip(" ")) for text in scores.rows["prediction"])
    with pytest.raises(FTNBError, match="from the start of its answer"):
        score(tiny_lm("t5"), rows, dialogue(), begin="x", progress=False)
    with pytest.raises(FTNBError, match="allow_special"):
        score(lm, rows, dialogue(), begin="x", allow_special=True, progress=False)
    with pytest.raises(FTNBError, match="pattern is for the whole"):
        score(lm, rows, dialogue(), begin="x", pattern="x+", progress=False)


def templates() -> list[Path]:
    import importlib.util

    spec = importlib.util.find_spec("trl")
    places = (spec.submodule_search_locations if spec else None) or []
    return sorted(file for place in places for file in (Path(place) / "chat_templates").glob("*.jinja"))


CANNOT = "exceeds the context|the chat template refuses it|the chat template does not write it"  # and says so


@pytest.mark.parametrize("file", templates(), ids=lambda f: f.stem)
def test_begin_with_real_templates(file):
    lm = marked_lm()
    lm.tokenizer.chat_template = file.read_text()
    chat = Chat(lm, max_new_tokens=4)
    for begin in ("The answer is ", "{"):
        try:
            answer = chat("Well?", begin=begin)
        except FTNBError as e:
            assert re.search(CANNOT, str(e)), e
            pytest.skip(str(e)[:80])
        assert answer.startswith(begin)
        assert dict(chat.turns[0]) == {"role": "user", "content": "Well?"}
        chat.back()
