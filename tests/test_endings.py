"""Where a text ends: end tokens, stop tokens, stop strings, a least length; and options under other libraries' names."""

import itertools
import types
import warnings

import pytest
import torch

from ftnb import Chat, generate, stream, tiny_lm
from ftnb.core.errors import FTNBError
from ftnb.generation.decoding import Decoding
from ftnb.generation.engines import ENGINES, _check_supported, _vllm_options
from ftnb.generation.jobs import GenerationJob
from ftnb.generation.likelihood import next_tokens
from ftnb.models.lm import LM, eos_ids
from ftnb.models.tokens import control_ids

WAYS = {
    "greedy": {},
    "sampled": {"temperature": 1.0, "seed": 3},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "beams": {"num_beams": 3},
    "groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
}


def marked_lm(name: str = "llama") -> LM:
    """A tiny model whose template marks turns with special tokens, as ChatML does."""
    lm = tiny_lm(name, seed=1)
    lm.tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"], "eos_token": "<|im_end|>"})
    with torch.random.fork_rng():
        lm.model.resize_token_embeddings(len(lm.tokenizer))
    lm.tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return lm


def scripted(script: list[int], name: str = "llama") -> LM:
    """A model that writes given tokens, whatever the prompt: the next is the one that follows the last in `script`."""
    lm = marked_lm(name)
    follows = dict(itertools.pairwise(script))

    def lead(module, args, kwargs, out):
        ids = kwargs["input_ids"]
        for r, row in enumerate(ids.tolist()):
            for at, t in enumerate(row[-out.logits.shape[1] :]):
                if t in follows:
                    out.logits[r, at] = out.logits[r, at] * 0 + torch.linspace(0.0, 0.5, out.logits.shape[-1])
                    out.logits[r, at, follows[t]] = 9.0
        return out

    lm.model.register_forward_hook(lead, with_kwargs=True)
    return lm


def ids_of(lm: LM, text: str) -> list[int]:
    return lm.tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("way", WAYS)
def test_a_stop_token_ends_a_text_like_an_end_token(way):
    a, b, c, d, e = ids_of(marked_lm(), "abcde")
    lm = scripted([a, b, c, d, e, a])
    prompt = [a]
    whole = generate(lm, [prompt], 8, details=True, **WAYS[way])[0]
    if way in ("greedy", "contrastive", "beams"):
        assert whole.text == "bcdeabcd"
    for stop in (d, [d], (d, e)):
        done = generate(lm, [prompt], 8, stop=stop, details=True, **WAYS[way])[0]
        assert d not in done.ids
        if way in ("greedy", "contrastive"):
            assert (done.text, done.finish) == ("bc", "stop")
        if way in ("greedy", "sampled", "contrastive"):
            assert "".join(stream(lm, prompt, 8, stop=stop, **WAYS[way])) == done.text


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_no_end_before_the_least_length(way, name):
    if name == "t5" and way == "contrastive":
        pytest.skip("contrastive search is for decoders")
    lm = tiny_lm(name, seed=2)
    letters = list(range(3, lm.model.config.get_text_config().vocab_size))
    half = letters[::2]  # every second token ends a text
    prompts = [[5, 6, 7], [9], [20, 21, 22, 23, 24]]
    for least in (0, 1, 4, 7):
        done = generate(lm, prompts, 7, min_new_tokens=least, stop=half, details=True, **WAYS[way])
        for x in done:
            assert len(x.ids) >= least and not set(x.ids[least:]) & set(half)
            assert not set(x.ids) & set(half)  # before the least length none, after it only as the last, which is cut
    with pytest.raises(FTNBError, match="max_new_tokens is 7"):
        generate(lm, prompts, 7, min_new_tokens=8, **WAYS[way])


def test_a_least_length_is_the_same_alone_and_in_a_batch():
    lm = tiny_lm("llama", seed=2)
    half = list(range(3, 200, 3))
    prompts = [[5, 6, 7], [9], [20, 21, 22, 23, 24], [9]]
    options = dict(min_new_tokens=3, stop=half, temperature=1.0)
    assert generate(lm, prompts[:3], 9, **options) == [generate(lm, [p], 9, **options)[0] for p in prompts[:3]]


def test_names_of_special_tokens_are_stop_tokens():
    lm = marked_lm()
    start, end = (lm.tokenizer.convert_tokens_to_ids(t) for t in ("<|im_start|>", "<|im_end|>"))
    (a,) = ids_of(lm, "a")
    lead = scripted([a, start, a])
    (done,) = generate(lead, [[a]], 6, stop="<|im_start|>", details=True)
    assert (done.text, done.ids, done.finish) == ("", [], "stop")
    (done,) = generate(lead, [[a]], 6, stop=["<|im_start|>", "zz"], details=True)
    assert done.finish == "stop"
    ended = scripted([a, end, a])
    assert generate(ended, [[a]], 6, stop="<|im_end|>", details=True)[0].finish == "end"  # it is one anyway
    for wrong in ("<|im_start|>user", "\n<|im_end|>", "<|im_end|>\n", "<|im_end|><|im_end|>"):
        for call in (generate, stream, lambda lm, p, n, stop: Chat(lm, stop=stop)):
            with pytest.raises(FTNBError, match="is a token, and no part of a text"):
                call(lm, "a", 3, stop=wrong)
    for wrong in (True, 1.5, "", [""], {"a": 1}, -1, 10**7, [[1]], b"a"):
        with pytest.raises(FTNBError, match="stop"):
            generate(lm, "a", 3, stop=wrong)


def test_special_tokens_are_kept_on_request():
    lm = marked_lm()
    start, end = (lm.tokenizer.convert_tokens_to_ids(t) for t in ("<|im_start|>", "<|im_end|>"))
    a, b = ids_of(lm, "ab")
    lead = scripted([a, start, b, end])
    for keep, text in ((False, "b"), (True, "<|im_start|>b")):
        options = dict(skip_special_tokens=not keep)
        (done,) = generate(lead, [[a]], 6, details=True, **options)
        assert (done.text, done.ids, done.finish) == (text, [start, b], "end")
        assert "".join(stream(lead, [a], 6, **options)) == text
        assert generate(lead, [[a]], 6, num_beams=2, **options) == [text]
    assert generate(lead, [[a]], 6, stop="b", skip_special_tokens=False) == ["<|im_start|>"]
    assert "".join(stream(lead, [a], 6, stop="b", skip_special_tokens=False)) == "<|im_start|>"


@pytest.mark.parametrize("rule", [{"repetition_penalty": 1e6}, {"no_repeat_ngram_size": 1}, {"no_repeat_ngram_size": 2}])
def test_repetition_rules_leave_control_tokens_alone(rule):
    lm = marked_lm()
    end = lm.tokenizer.convert_tokens_to_ids("<|im_end|>")
    a, b, c = ids_of(lm, "abc")
    lead = scripted([c, end])
    chat = [a, c, end, b, c]  # the end of a turn was there, after c
    (done,) = generate(lead, [chat], 6, details=True, **rule)
    assert (done.ids, done.finish) == ([], "end")
    assert generate(lead, [chat], 6, num_beams=2, details=True, **rule)[0].ids == []
    assert "".join(stream(lead, chat, 6, **rule)) == ""


def test_words_are_punished_as_transformers_does():
    lm = tiny_lm("llama", seed=3)
    prompt = [[40, 41, 42, 43]]
    assert not set(prompt[0]) & set(control_ids(lm))
    x = torch.tensor(prompt)
    out = lm.model.generate(x, attention_mask=torch.ones_like(x), max_new_tokens=8, do_sample=False,
                            repetition_penalty=1.7, pad_token_id=0, eos_token_id=eos_ids(lm) or None)
    (ours,) = generate(lm, prompt, 8, repetition_penalty=1.7, details=True)
    assert ours.ids == [t for t in out[0, 4:].tolist() if t not in eos_ids(lm)]


def test_a_conversation_ends_under_a_repetition_penalty():
    lm = marked_lm()
    end = lm.tokenizer.convert_tokens_to_ids("<|im_end|>")
    newline = ids_of(lm, "\n")[0]
    lead = scripted([newline, end])  # after the head of a turn comes its end
    chat = Chat(lead, repetition_penalty=5.0, max_new_tokens=9)
    assert [chat("Say yes."), chat("And again.")] == ["", ""]


FORM = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}


@pytest.mark.parametrize("form", [{"pattern": "(yes|perhaps)!{5}"}, {"schema": FORM}])
def test_a_form_that_is_cut_warns_at_every_door(form, tmp_path):
    lm = tiny_lm(seed=1)
    doors = {
        "generate": lambda: generate(lm, "a", 2, **form),
        "stream": lambda: list(stream(lm, "a", 2, **form)),
        "file": lambda: generate(lm, ["a"], 2, file=tmp_path / "f.jsonl", **form),
        "file again": lambda: generate(lm, ["a"], 2, file=tmp_path / "f.jsonl", **form),
    }
    for name, door in doors.items():
        with pytest.warns(UserWarning, match="1 of 1 texts ended before their form was complete"):
            door()
        assert name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(stream(lm, "a", 30, pattern="(yes|no)"))
        generate(lm, "a", 30, pattern="(yes|no)", file=tmp_path / "g.jsonl")
        pieces = stream(lm, "a", 30, **form)  # left by the reader: nobody asked for the rest
        next(pieces)
        pieces.close()


def test_a_least_length_within_a_form():
    lm = tiny_lm(seed=1)
    assert len(generate(lm, "x", 9, pattern="a*", min_new_tokens=5)) >= 5
    assert generate(lm, "x", 9, pattern="(yes|no)", min_new_tokens=8) in ("yes", "no")  # nothing else is left
    with pytest.raises(FTNBError, match="ends by itself"):
        generate(lm, "x", 9, pattern="a*", stop=5)


def test_the_next_token_under_a_least_length():
    lm = marked_lm()
    end = eos_ids(lm)[0]
    (a,) = ids_of(lm, "a")
    lead = scripted([a, end])
    assert next_tokens(lead, [a], 2).drawn[0] == 1
    first = next_tokens(lead, [a], 2, Decoding(min_new_tokens=1))
    assert first.drawn[0] == 0 and first.probs[0] > 0.5


def test_other_engines_are_told():
    lm = tiny_lm("llama", seed=1)
    half = list(range(3, 200, 3))
    mine = generate(lm, [[5, 6, 7], [9]], 8, stop=half)
    assert generate(lm, [[5, 6, 7], [9]], 8, stop=half, engine="continuous") == mine
    with pytest.raises(FTNBError, match="min_new_tokens with engine='continuous'"):
        generate(lm, "a", 8, min_new_tokens=2, engine="continuous")
    job = GenerationJob(lm, [[5]], 8, Decoding(min_new_tokens=2), stop_ids=(7,))
    _check_supported(job, "vllm", ("min_new_tokens",))
    asked = _vllm_options(types.SimpleNamespace(SamplingParams=dict), job, ("a", 0))
    assert asked["min_tokens"] == 2 and asked["stop_token_ids"] == [*eos_ids(lm), 7]
    assert set(ENGINES) == {"ftnb", "continuous", "vllm"}


def test_the_file_of_answers_knows_how_its_texts_end(tmp_path):
    lm, file = tiny_lm(seed=1), tmp_path / "a.jsonl"
    first = generate(lm, ["a", "b"], 6, stop=[40, "zz"], file=file)
    assert generate(lm, ["a", "b"], 6, stop=[40, "zz"], file=file) == first
    for other in ({"stop": 41}, {"min_new_tokens": 2}, {"skip_special_tokens": False, "stop": [40, "zz"]}):
        with pytest.raises(FTNBError, match="made otherwise"):
            generate(lm, ["a", "b"], 6, file=file, **other)
