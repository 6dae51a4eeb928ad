"""Look-ahead: the text is what it is without, token for token; fewer passes where words come again, never more."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ftnb import Chat, generate, load_lm, stream, tiny_lm
from ftnb.core.errors import FTNBError
from ftnb.generation.decoding import Decoding, sampling_uniforms
from ftnb.generation.kv_cache import can_crop_cache
from ftnb.generation.lookahead import Lookahead, LookUp, Rounding, lookahead_maker
from ftnb.generation.search import decode_steps
from ftnb.models.lm import LM, is_seq2seq

CROPS = ["gpt2", "llama", "qwen2", "qwen3", "phi3", "gpt_neox", "opt", "olmo2"]
OTHERS = ["gemma2", "gemma3_text", "mistral", "lfm2", "mamba", "t5", "bart"]  # windows, recurrent, encoder-decoders
AGAIN = [*range(40, 52), *range(60, 70), *range(40, 52), *range(60, 64)]  # a prompt that repeats itself
HOW: dict[str, dict[str, Any]] = {
    "greedy": {},
    "penalty": {"repetition_penalty": 1.3},
    "no n-gram twice": {"no_repeat_ngram_size": 3},
    "least": {"min_new_tokens": 20},
    "sampled": {"temperature": 1.0},
    "top-k": {"temperature": 0.7, "top_k": 5},
    "top-p": {"temperature": 1.2, "top_p": 0.8},
    "min-p": {"temperature": 0.9, "min_p": 0.3},
    "typical": {"temperature": 0.9, "typical_p": 0.7},
    "all": {"temperature": 0.5, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.1},
}


def model(name: str, seed: int = 0, sure: float = 1.0) -> LM:
    """A random model; a `sure` one prefers some tokens by much, and repeats itself."""
    other = {"lfm2": "conv"}.get(name)
    lm = tiny_lm(name, seed=seed, **({"layer_types": [other, "full_attention"]} if other else {}))
    return surer(lm, sure) if sure != 1 else lm


def surer(lm: LM, sure: float) -> LM:
    """Larger weights, above all of the last layer."""
    with torch.no_grad():
        for p in lm.model.parameters():
            if p.ndim == 2:
                p.mul_(2)
        lm.model.get_output_embeddings().weight.mul_(sure)
    return lm


@contextlib.contextmanager
def passes(lm: LM) -> Iterator[list[int]]:
    """How many tokens each pass reads."""
    read: list[int] = []
    hook = lm.model.register_forward_pre_hook(
        lambda m, a, kw: read.append(kw["input_ids"].numel() if "input_ids" in kw else 0), with_kwargs=True
    )
    try:
        yield read
    finally:
        hook.remove()


def written(lm: LM, rows: list[list[int]], n: int, decoding: Decoding, seed: int = 0, **more: Any) -> list[list[int]]:
    out: list[list[int]] = [[] for _ in rows]
    uniforms = sampling_uniforms(rows, n, seed) if decoding.temperature else None
    for new in decode_steps(lm, rows, n, decoding, uniforms, **more):
        for r, t in new.items():
            out[r].append(t)
    return out


def asked(decoding: Decoding) -> bool | None:
    """Whether look-ahead must be asked for: sampled texts do without by themselves."""
    return True if decoding.temperature and decoding.typical_p in (None, 1) else None


def eager(lm: LM, decoding: Decoding, draft: LM | None = None) -> Any:
    """Look-ahead that guesses whenever it can, whatever it costs."""
    make = lookahead_maker(lm, decoding, asked(decoding), draft)

    def begin(state: Any) -> Lookahead:
        assert make is not None
        ahead = make(state)
        ahead.lengths.choose = lambda match, most: min(most, 5)  # type: ignore[method-assign]
        ahead._pays = lambda most: bool(ahead.rounding) or ahead.plain is not None  # type: ignore[method-assign]
        return ahead

    return begin if make else None


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", CROPS)
def test_the_same_text(name: str, how: str) -> None:
    decoding = Decoding(**HOW[how])
    for seed, sure in enumerate([1.0, 6.0 if name == "opt" else 3.0]):
        lm = model(name, seed, sure)
        for prompt in (AGAIN, [5]):
            plain = written(lm, [prompt], 50, decoding, seed)
            for make in (lookahead_maker(lm, decoding, asked(decoding)), eager(lm, decoding)):
                assert written(lm, [prompt], 50, decoding, seed, make_ahead=make) == plain, (sure, prompt)


@pytest.mark.parametrize("name", OTHERS)
def test_models_that_cannot(name: str) -> None:
    lm = model(name, sure=3.0)
    assert is_seq2seq(lm) or not can_crop_cache(lm.model)
    with passes(lm) as read:
        texts = generate(lm, [AGAIN], 20)
        counts, read[:] = list(read), []
        assert generate(lm, [AGAIN], 20, lookahead=False) == texts
    assert read == counts
    with pytest.raises(FTNBError, match="cache"):
        generate(lm, [AGAIN], 20, lookahead=True)


def test_fewer_passes_where_words_come_again() -> None:
    lm = model("llama", sure=3.0)
    with passes(lm) as read:
        plain = written(lm, [AGAIN], 120, Decoding())[0]
        without, read[:] = len(read), []
        assert written(lm, [AGAIN], 120, Decoding(), make_ahead=lookahead_maker(lm, Decoding()))[0] == plain
    assert without == len(plain) and len(read) < 0.6 * without


def test_nothing_is_read_twice_where_nothing_comes_again() -> None:
    lm, prompt = tiny_lm(seed=3), list(range(10, 40))
    decoding = Decoding(no_repeat_ngram_size=1)  # no token twice: nothing can be looked up
    for n in (1, 2, 40):
        with passes(lm) as read:
            plain = written(lm, [prompt], n, decoding)
            counts, read[:] = list(read), []
            make = lookahead_maker(lm, decoding, asked(decoding))
            assert written(lm, [prompt], n, decoding, make_ahead=make) == plain
        assert read == counts


def test_wrong_guesses_are_given_up() -> None:
    """A text in which what follows is never what followed before: the loop stops guessing, and passes are few."""
    lm = tiny_lm(seed=1)
    decoding = Decoding(temperature=3.0)  # nearly at random, from a small alphabet: many pairs come again
    with passes(lm) as read:
        for seed in range(5):
            plain = written(lm, [AGAIN], 200, decoding, seed)
            without, read[:] = sum(read), []
            make = lookahead_maker(lm, decoding, asked(decoding))
            assert written(lm, [AGAIN], 200, decoding, seed, make_ahead=make) == plain
            assert sum(read) <= 1.03 * without
            read.clear()


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_doubt_is_settled_by_reading_again(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, decoding = model("llama", 1, sure=3.0), Decoding(temperature=temperature)
    plain = written(lm, [AGAIN], 60, decoding)
    again: list[int] = []
    old = Lookahead.exact_logits

    def counted(self: Lookahead) -> torch.Tensor:
        again.append(self.ids.shape[1] - self.exact)
        return old(self)

    def doubtful(self: Lookahead, ahead: torch.Tensor, plain: torch.Tensor) -> None:
        self.rounding = Rounding(1e9, 1e9)  # nothing is firm

    monkeypatch.setattr(Lookahead, "exact_logits", counted)
    monkeypatch.setattr(Lookahead, "_compare", doubtful)
    assert written(lm, [AGAIN], 60, decoding, make_ahead=eager(lm, decoding)) == plain
    assert len(again) > 5 and max(again) < 9  # at once


def test_one_row_is_left_of_a_batch() -> None:
    lm = model("llama", 2, sure=3.0)
    rows = [AGAIN, AGAIN[:9], AGAIN[3:20], list(range(20, 30))]
    for decoding in (Decoding(), Decoding(temperature=0.6)):
        stop = lambda row, token: row != 0
        plain = written(lm, rows, 80, decoding, should_stop=stop)
        with passes(lm) as read:
            make = lookahead_maker(lm, decoding, asked(decoding))
            assert written(lm, rows, 80, decoding, should_stop=stop, make_ahead=make) == plain
        assert decoding.temperature or len(read) < 60


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_all_verbs(name: str) -> None:
    lm, text = model(name, 1, sure=3.0), "abc abd abc abd abc"
    ways: list[dict[str, Any]] = [
        {},
        {"stop": ["c a", "é"]},
        {"stop": [70, 71]},
        {"temperature": 0.7, "seed": 4, "skip_special_tokens": False},
        {"pattern": "[abc ]{5,60}"},
        {"schema": {"type": "array", "items": {"type": "integer"}}},
        {"pattern": "(ab|ba)+", "temperature": 1.0},
    ]
    for how in ways:
        plain = generate(lm, text, 60, lookahead=False, **how)
        assert generate(lm, text, 60, **how) == generate(lm, text, 60, lookahead=True, **how) == plain, how
        assert "".join(stream(lm, text, 60, **how)) == "".join(stream(lm, text, 60, lookahead=False, **how)) == plain
        assert generate(lm, text, 60, draft=model(name, 2), **how) == plain
        several = generate(lm, [text, "x", text], 30, lookahead=False, **how)
        assert several == generate(lm, [text, "x", text], 30, **how)
        assert several == generate(lm, [text, "x", text], 30, draft=model(name, 2), **how)
    details = [generate(lm, text, 40, details=True, lookahead=x) for x in (None, False)]
    assert details[0].ids == details[1].ids and details[0].finish == details[1].finish


def test_a_conversation() -> None:
    lm = surer(tiny_lm(chat=True, seed=3), 3)
    said = ["Hello, hello, hello.", "Again: hello, hello, hello.", "And again?"]
    for how in ({}, {"temperature": 0.7}, {"begin": "Hello, hel"}):
        talks = [Chat(lm, max_new_tokens=40, lookahead=x, **how) for x in (False, None, True)]
        talks.append(Chat(lm, max_new_tokens=40, draft=tiny_lm(chat=True, seed=4), **how))
        for text in said:
            answers = [talk(text) for talk in talks]
            assert answers == answers[:1] * 4
        assert [t.turns for t in talks] == [talks[0].turns] * 4
    early = Chat(lm, max_new_tokens=40, begin="Hello, hel")
    pieces = early.stream(said[0])
    assert next(pieces) and next(pieces, "x")
    pieces.close()  # between two tokens of a pass
    early.back()
    assert early(said[0]) == Chat(lm, max_new_tokens=40, begin="Hello, hel", lookahead=False)(said[0])


def test_drafts() -> None:
    lm = model("llama", 1, sure=3.0)
    twin = model("llama", 1, sure=3.0)
    for decoding in (Decoding(), Decoding(temperature=0.5)):
        plain = written(lm, [AGAIN], 50, decoding)
        for draft in (twin, model("gpt2"), model("llama", 5, sure=3.0)):
            make = lookahead_maker(lm, decoding, draft=draft)
            assert written(lm, [AGAIN], 50, decoding, make_ahead=make) == plain
            assert written(lm, [AGAIN], 50, decoding, make_ahead=eager(lm, decoding, draft)) == plain
    with passes(lm) as read:
        written(lm, [AGAIN], 50, Decoding(), make_ahead=eager(lm, Decoding(), twin))
    assert len(read) < 15
    with pytest.warns(UserWarning, match="hardly be asked"):
        generate(lm, "a", 5, draft=twin)
    other = tiny_lm(chat=True)
    for mistake, what in (
        ({"draft": lm}, "itself"),
        ({"draft": model("mistral")}, "cache"),
        ({"draft": twin, "lookahead": False}, "one of them"),
        ({"draft": twin, "num_beams": 2}, "beam"),
        ({"draft": twin, "engine": "vllm"}, "engine"),
        ({"draft": "gpt2"}, "load_lm"),
        ({"lookahead": 3}, "True, False"),
    ):
        with pytest.raises(FTNBError, match=what):
            generate(lm, "a", 5, **mistake)  # type: ignore[call-overload]
    if other.tokenizer.get_vocab() != lm.tokenizer.get_vocab():
        with pytest.raises(FTNBError, match="tokens"):
            generate(lm, "a", 5, draft=other)


def test_16_bit_only_if_asked() -> None:
    lm = model("llama", 1, sure=3.0)
    lm.model.bfloat16()
    assert lookahead_maker(lm, Decoding()) is None
    assert lookahead_maker(lm, Decoding(), True) is not None
    with passes(lm) as read:
        tokens = len(written(lm, [AGAIN], 80, Decoding(), make_ahead=lookahead_maker(lm, Decoding(), True))[0])
    assert len(read) < tokens


def test_guesses() -> None:
    look = LookUp([])
    for n, token in enumerate([1, 2, 3, 1, 2, 3, 1, 2, 9, 2, 3, 1]):
        look.add(token)
        fresh = LookUp(look.ids)
        assert (fresh.place is None, fresh.next()) == (look.place is None, look.next()), n
        assert all(0 <= g <= 9 for g in look.guess(30)) and len(look.guess(30)) in (0, 30)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_smollm(temperature: float) -> None:
    lm = load_lm("smollm2-135m")
    story = "Mr. Brown walked to the market on Tuesday. He bought three apples, two pears and a loaf of bread."
    again = f"{story}\n\nThe same text once more:\n\nMr. Brown walked to"
    for prompt in (again, "Why"):
        how: dict[str, Any] = {"temperature": temperature, "seed": 1}
        with passes(lm) as read:
            plain = generate(lm, prompt, 48, lookahead=False, **how)
            without, read[:] = len(read), []
            assert generate(lm, prompt, 48, lookahead=True, **how) == plain
            counts = len(read)
            assert generate(lm, prompt, 48, **how) == plain
            read[:] = read[counts:]
        assert len(read) == without if temperature else len(read) <= without + 2
        if not temperature and prompt is again:
            assert len(read) < 0.67 * without


def test_a_draft_that_is_built_for_shorter_texts() -> None:
    for name in ("gpt2", "llama"):
        lm = tiny_lm(name, seed=1, layers=12)
        plain = generate(lm, "abc" * 15, 30, lookahead=False)
        assert generate(lm, "abc" * 15, 30, draft=tiny_lm(name, seed=2, layers=1, context=60)) == plain
        assert generate(lm, "abc" * 15, 30, draft=tiny_lm(name, seed=2, layers=1, context=32)) == plain
    with pytest.raises(FTNBError, match="draft='smollm2-135m'.*must be an LM"):
        generate(lm, "abc", 3, draft="smollm2-135m")  # type: ignore[arg-type]
