"""Generation: the same text in a batch and alone, with and without cache, from a file and anew; whatever the model."""

import json
import os
import signal
import subprocess
import sys
import time
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from ftnb import (
    Chat,
    add_lora,
    encode,
    finetune,
    generate,
    label_probs,
    merge_adapter,
    stream,
    tiny_lm,
    without_adapter,
)
from ftnb.models.adapters import adapter_layers
from ftnb.core.errors import FTNBError
from ftnb.generation.decoding import Decoding
from ftnb.generation.search import beam_search, decode_steps
from ftnb.generation.kv_cache import can_left_pad, prefill_shared
from ftnb.models.lm import eval_mode
from ftnb.generation.likelihood import token_nats
from ftnb.models.lm import LM, eos_ids

DECODERS = ["gpt2", "llama", "qwen2", "qwen3", "gemma2", "mistral", "phi3", "gpt_neox", "opt", "bloom", "lfm2"]
DECODERS += ["mamba", "gemma3_text", "gpt_oss", "qwen3_5_text"]  # recurrent, windows, experts, both kinds of layers
MODELS = [*DECODERS, "t5", "bart"]
START = list(range(40, 60))  # what all prompts begin with: read once where that can be done
PROMPTS = [[*START, 70, 71, 72], [*START, 9], [*START, 70], [*START, 5, 6, 7, 8, 9, 10, 11]]


def model(name: str) -> LM:
    if name == "bloom":  # it knows neither these sizes nor a separate number of key heads
        from ftnb import new_lm

        return new_lm("bloom", layers=2, width=64, heads=4, seed=1)
    other = {"lfm2": "conv", "qwen3_5_text": "linear_attention"}.get(name)
    return tiny_lm(name, seed=1, **({"layer_types": [other, "full_attention"]} if other else {}))


def written(lm: LM, rows: list[list[int]], n: int, **more) -> list[list[int]]:
    out: list[list[int]] = [[] for _ in rows]
    for new in decode_steps(lm, rows, n, **more):
        for r, t in new.items():
            out[r].append(t)
    return out


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_is_what_each_prompt_gives_alone(name: str) -> None:
    lm = model(name)
    for decoding in (Decoding(), Decoding(repetition_penalty=1.4), Decoding(no_repeat_ngram_size=2)):
        together = written(lm, PROMPTS, 12, decoding=decoding)
        assert together == [written(lm, [p], 12, decoding=decoding)[0] for p in PROMPTS], decoding
    texts = generate(lm, PROMPTS, 12, temperature=1.0, top_k=20, min_p=0.01, seed=7)
    assert texts == [generate(lm, [p], 12, temperature=1.0, top_k=20, min_p=0.01, seed=7)[0] for p in PROMPTS]
    assert texts == generate(lm, PROMPTS, 12, temperature=1.0, top_k=20, min_p=0.01, seed=7, batch_tokens=1)


@pytest.mark.parametrize("name", DECODERS)
def test_the_cache_changes_nothing(name: str) -> None:
    lm, ids = model(name), list(PROMPTS[0])
    for _ in range(10):
        with torch.no_grad():
            ids.append(int(lm.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in eos_ids(lm):
            break
    assert written(lm, [PROMPTS[0]], 10)[0] == ids[len(PROMPTS[0]) :]


@pytest.mark.parametrize("name", MODELS)
def test_answers_after_a_shared_start(name: str) -> None:
    lm, answers = model(name), [[5, 6], [7], [8, 9, 10]]
    together = token_nats(lm, PROMPTS, [answers] * len(PROMPTS))
    for p, row in zip(PROMPTS, together):
        for got, want in zip(row, token_nats(lm, [p], [answers])[0]):
            assert abs(got - want).max() < 1e-4
    with torch.inference_mode(), eval_mode(lm):
        start = prefill_shared(lm, PROMPTS)
    once = name in ("gpt2", "llama", "qwen2", "qwen3", "phi3", "gpt_neox", "opt")  # no windows, all take positions
    assert (start.cached_length if start else 0) == (20 if once else 0)


@pytest.mark.parametrize("name", MODELS)
def test_one_answer_a_prompt_of_any_length(name: str) -> None:
    lm, answers = model(name), [[[5, 6]], [[7]], [[]], [[8, 9, 10]]]
    for rows in (PROMPTS, [PROMPTS[0], PROMPTS[0], *PROMPTS[2:]]):
        for p, a, got in zip(rows, answers, token_nats(lm, rows, answers)):
            want = token_nats(lm, [p], [a + [[3, 3, 3]]])[0][0]
            assert len(got[0]) == len(a[0]) and np.allclose(got[0], want, atol=1e-4)


def test_labels_cost_no_more_than_reading_the_prompts() -> None:
    lm, read = model("llama"), []
    token_nats(lm, [[5]], [[[6]]])  # tries once whether the model can be packed
    lm.model.base_model.register_forward_pre_hook(
        lambda m, a, kw: read.append(kw["input_ids"].numel()), with_kwargs=True
    )
    token_nats(lm, PROMPTS, [[[5], [6, 7], [8]]] * 4)
    different = {tuple(p[20:]) + more for p in PROMPTS for more in [(), (6,)]}
    beginnings = {tail[:n] for tail in different for n in range(1, len(tail) + 1)}
    assert read == [20 + len(beginnings)]  # the first token of [6, 7]; [5] and [8] for nothing
    assert token_nats(lm, PROMPTS[:1], [[[5]] * 100])[0][0] == token_nats(lm, PROMPTS[:1], [[[5]]])[0][0]
    assert read[1:] == [23, 23]  # a hundred times the same


def test_what_all_begin_with_is_read_once() -> None:
    lm, read = model("llama"), []
    assert can_left_pad(lm)  # tried once
    lm.model.register_forward_pre_hook(lambda m, a, kw: read.append(kw["input_ids"].numel()), with_kwargs=True)
    generate(lm, PROMPTS, 1)
    assert read == [20, 4 * 7]  # the start; then the longest rest, four times
    read.clear()
    generate(lm, [PROMPTS[0]], 1, temperature=1.0, n=5)
    assert read == [len(PROMPTS[0])]  # five samples of one prompt


def test_beams_of_a_batch() -> None:
    for name in ("llama", "mistral", "t5"):
        lm = model(name)
        how = Decoding(num_beams=4, num_beam_groups=2, diversity_penalty=0.5)
        assert [[i for _, i in f] for f in beam_search(lm, PROMPTS, 8, how)] == [
            [i for _, i in beam_search(lm, [p], 8, how)[0]] for p in PROMPTS
        ]
        best = generate(lm, PROMPTS, 8, num_beams=3, n=3)
        assert [b[0] for b in best] == generate(lm, PROMPTS, 8, num_beams=3)
        assert best == generate(lm, PROMPTS, 8, num_beams=3, n=3, batch_tokens=1)  # copies of a prompt stay together
        same = generate(lm, [PROMPTS[0]] * 5, 8, num_beams=2)
        assert same == generate(lm, [PROMPTS[0]], 8, num_beams=2) * 5


def test_beams_from_a_file(tmp_path: Path) -> None:
    lm = model("llama")
    whole = generate(lm, PROMPTS, 8, num_beams=3, n=2)
    assert generate(lm, PROMPTS, 8, num_beams=3, n=2, file=tmp_path / "b.jsonl") == whole
    lines = (tmp_path / "b.jsonl").read_text().splitlines()
    (tmp_path / "b.jsonl").write_text("\n".join([lines[0], *lines[2:4]]) + "\n")  # a second best without its best
    assert generate(lm, PROMPTS, 8, num_beams=3, n=2, file=tmp_path / "b.jsonl") == whole
    with pytest.raises(FTNBError, match="made otherwise"):
        generate(lm, PROMPTS, 8, num_beams=3, file=tmp_path / "b.jsonl")


def test_whole_numbers_are_numbers() -> None:
    lm = model("llama")
    options = dict(temperature=2, repetition_penalty=2, top_p=1, typical_p=1, seed=1)
    assert generate(lm, "ab", 5, **options) == generate(lm, "ab", 5, temperature=2.0, repetition_penalty=2.0, seed=1)


@pytest.mark.parametrize("stops", [["a"], ["b", "ab"], ["é"], ["你好", "x"], ["\n"]])
def test_stream_is_generate(stops: list[str]) -> None:
    lm = tiny_lm(seed=3)
    for seed in range(6):
        options = dict(temperature=3.0, seed=seed, stop=stops)
        whole = generate(lm, "ab", 150, **options)
        assert "".join(stream(lm, "ab", 150, **options)) == whole
        assert not any(s in whole for s in stops)
        free = generate(lm, "ab", 150, temperature=3.0, seed=seed)
        assert free.startswith(whole)
        first = min((free.find(s) for s in stops if s in free), default=len(free))
        assert whole == free[:first]


def test_adapter_on_off_and_merged() -> None:
    lm = tiny_lm(seed=2)
    plain = generate(lm, ["ab", "cd"], 12)
    add_lora(lm, 4)
    with torch.no_grad():
        for name, p in lm.model.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.3)
    assert adapter_layers(lm.model)
    on = generate(lm, ["ab", "cd"], 12)
    assert on != plain
    with without_adapter(lm):
        assert generate(lm, ["ab", "cd"], 12) == plain
    merge_adapter(lm)
    assert generate(lm, ["ab", "cd"], 12) == on


def test_a_paused_run_writes_and_goes_on_unchanged() -> None:
    texts = ["To be, or not to be"] * 16

    def train(talk: bool) -> torch.Tensor:
        lm = tiny_lm()
        run = finetune(lm, encode(lm, texts), epochs=20, batch_size=4, lr=1e-2, background=True, progress=False)
        if talk:
            while len(run.losses) < 3:
                time.sleep(0.01)
            run.pause()
            while run.status != "paused":
                time.sleep(0.01)
            half = generate(run.lm, "To be", 10)
            assert generate(run.lm, "To be", 10, temperature=1.0, num_beams=1, n=2)
            run.go_on()
        run.wait()
        if talk:
            assert half != generate(run.lm, "To be", 10)
        return torch.cat([p.flatten() for p in lm.model.parameters()])

    assert torch.equal(train(False), train(True))


WRITE = """
import sys
from ftnb import generate, tiny_lm
lm = tiny_lm()
print('ready', flush=True)
prompts = [f'Prompt {i}' for i in range(400)]
generate(lm, prompts, 60, temperature=1., file=sys.argv[1], batch_tokens=600, progress=False)
"""


def test_killed_and_continued(tmp_path: Path) -> None:
    file, prompts = tmp_path / "answers.jsonl", [f"Prompt {i}" for i in range(400)]
    options = dict(temperature=1.0, batch_tokens=600, progress=False)
    for wait in (0.3, 0.6):
        process = subprocess.Popen([sys.executable, "-c", WRITE, str(file)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(wait)
        with pytest.raises(FTNBError, match="another process") if file.exists() else warnings.catch_warnings():
            if file.exists():
                generate(tiny_lm(), prompts, 60, file=file, **options)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    there = [json.loads(line) for line in file.read_bytes().split(b"\n")[1:-1]]
    assert 0 < len(there) < 400
    assert generate(tiny_lm(), prompts, 60, file=file, **options) == generate(tiny_lm(), prompts, 60, **options)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines[1 : 1 + len(there)] == there and len(lines) == 401


def test_another_adapter_is_another_model(tmp_path: Path) -> None:
    lm = tiny_lm()
    generate(lm, ["ab"], 4, file=tmp_path / "a.jsonl")
    add_lora(lm, 4)
    with pytest.raises(FTNBError, match="made otherwise"):
        generate(lm, ["ab"], 4, file=tmp_path / "a.jsonl")
    with without_adapter(lm):
        generate(lm, ["ab"], 4, file=tmp_path / "a.jsonl")


def test_a_form_that_is_cut_off_says_so() -> None:
    lm = tiny_lm()
    whole, cut = (generate(lm, "a", n, pattern="(yes|perhaps)!{5}", details=True) for n in (40, 3))
    assert whole.finish == "end" and whole.text.endswith("!!!!!")
    assert cut.finish == "length" and len(cut.ids) == 3


def test_vllm_is_asked_for_what_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM needs a GPU. This holds our side of the call against its documented interface."""
    seen: list[dict] = []

    class Params:
        def __init__(self, **options):
            seen.append(options)

    class Engine:
        def __init__(self, model: str, max_model_len: int):
            assert (Path(model) / "model.safetensors").exists() and (Path(model) / "tokenizer.json").exists()

        def generate(self, prompts, wanted, use_tqdm):
            def answer(p):
                return types.SimpleNamespace(outputs=[types.SimpleNamespace(token_ids=p["prompt_token_ids"][::-1])])

            return [answer(p) for p in prompts]

    vllm = types.SimpleNamespace(SamplingParams=Params, LLM=Engine)
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    lm, two = tiny_lm(), dict(temperature=0.5, top_p=0.9, stop="x", n=2)
    assert generate(lm, ["ab", "cde"], 7, engine="vllm", **two) == [["ba", "ba"], ["edc", "edc"]]
    assert all((s["max_tokens"], s["temperature"], s["top_p"], s["stop"]) == (7, 0.5, 0.9, ["x"]) for s in seen)
    assert len({s["seed"] for s in seen}) == 4  # or all samples of a prompt were the same
    with pytest.raises(FTNBError, match="merge_adapter"):
        generate(add_lora(lm, 2), "ab", 7, engine="vllm")


def test_training_mode_and_gradients_are_left_alone() -> None:
    lm = tiny_lm()
    lm.model.train()
    generate(lm, ["a"], 3, num_beams=2)
    label_probs(lm, "a", ["b", "c"])
    assert lm.model.training and torch.is_grad_enabled()
    assert all(p.grad is None and p.requires_grad for p in lm.model.parameters())


def test_continuous_batching() -> None:
    lm, prompts = tiny_lm(seed=4), ["ab", "cde", "f", "ab"]
    assert generate(lm, prompts, 8, engine="continuous") == generate(lm, prompts, 8)
    with pytest.raises(FTNBError, match="stop with engine"):
        generate(lm, prompts, 8, engine="continuous", stop="a")


def test_modes_of_modules_come_back() -> None:
    lm = tiny_lm()
    lm.model.train()
    kept = next(lm.model.children()).eval()
    generate(lm, "ab", 2)
    assert lm.model.training and not any(m.training for m in kept.modules())


BAD = {
    "empty prompt": (lambda lm: generate(lm, ["a", ""]), "prompt 1 is empty"),
    "no ids": (lambda lm: generate(lm, [[]]), "prompt 0 is empty"),
    "ids of another model": (lambda lm: generate(lm, [[5, 50_000]]), "token 50000"),
    "bytes": (lambda lm: generate(lm, [b"abc"]), "bytes"),
    "a dict": (lambda lm: generate(lm, {"prompt": "a"}), "prompt is dict"),
    "empty list of labels": (lambda lm: label_probs(lm, "a", []), "labels"),
    "a number among prompts": (lambda lm: generate(lm, ["a", 3]), "prompt 1 is int"),
    "too long": (lambda lm: generate(lm, "x" * 600), "exceeds the context"),
    "no tokens": (lambda lm: generate(lm, "a", 0), "max_new_tokens=0"),
    "too many tokens": (lambda lm: generate(lm, "a", 600), "512 tokens"),
    "no batch": (lambda lm: generate(lm, "a", batch_tokens=0), "batch_tokens=0"),
    "unknown stop": (lambda lm: generate(lm, "a", stop=5.0), "stop=5.0"),
    "stop without a token": (lambda lm: stream(lm, "a", stop=[1, 10**6]), "the model has"),
    "another library's word": (lambda lm: generate(lm, "a", max_tokens=5), "Use max_new_tokens."),
    "beams that draw": (lambda lm: generate(lm, "a", num_beams=2, temperature=1.0), "beam search draws nothing"),
    "greedy top-k": (lambda lm: generate(lm, "a", top_k=5), "greedy decoding draws nothing"),
    "greedy samples": (lambda lm: generate(lm, "a", n=2), "n=2"),
    "beams that stop": (lambda lm: generate(lm, "a", num_beams=2, stop="a"), "beam search ranks"),
    "two forms": (lambda lm: generate(lm, "a", pattern="a", schema={}), "one form"),
    "a schema as text": (lambda lm: generate(lm, "a", schema="{}"), "schema="),
    "an engine that is none": (lambda lm: generate(lm, "a", engine="tgi"), "engine 'tgi'"),
    "meta": (lambda lm: generate(on_meta(), "a"), "meta device"),
    "contrast for pairs": (lambda lm: generate(tiny_lm("t5"), "a", penalty_alpha=0.5, top_k=4), "decoder-only"),
}


def on_meta() -> LM:
    lm = tiny_lm()
    lm.model.to("meta")
    return lm


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    do, words = BAD[case]
    with pytest.raises(FTNBError) as caught:
        do(tiny_lm())
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["rwkv", "recurrent_gemma", "bart"])
def test_models_that_read_padding_get_none(name: str) -> None:
    more = {"layers": 3, "block_types": ["recurrent", "recurrent", "attention"]} if name == "recurrent_gemma" else {}
    lm = tiny_lm(name, seed=1, **more)
    if name == "bart":  # its decoder alone counts positions by itself
        from transformers import BartForCausalLM

        lm.model = BartForCausalLM(lm.model.config).eval()
        lm.model.config.is_encoder_decoder = False
    rows = [*PROMPTS, PROMPTS[0][1:], [3]]
    assert not can_left_pad(lm)
    sizes = []
    hook = lm.model.register_forward_pre_hook(lambda m, a, kw: sizes.append(len(kw["input_ids"])), with_kwargs=True)
    found = generate(lm, rows, 6, details=True)
    hook.remove()
    assert max(sizes) > 1, "rows of one length are still written together"
    for p, got in zip(rows, found):
        alone = generate(lm, [p], 6, details=True)[0]
        assert got.ids == alone.ids and np.allclose(got.logprobs, alone.logprobs, atol=1e-4)
    assert generate(lm, rows, 6, num_beams=2) == [generate(lm, [p], 6, num_beams=2)[0] for p in rows]
    label_probs(lm, rows, ["a", "bc"])


def test_a_stream_is_read_under_the_adapters_it_was_asked_for() -> None:
    lm = add_lora(model("llama"))
    with without_adapter(lm):
        plain, late = "".join(stream(lm, "ab", 8)), stream(lm, "ab", 8)
    with pytest.raises(FTNBError, match="adapters have been switched"):
        next(late)
    with without_adapter(lm):
        begun, chat = stream(lm, "ab", 8), Chat(lm, max_new_tokens=8)
        first, said = next(begun), chat.stream("ab")
        assert plain.startswith(first)
    for pieces in (begun, said):
        with pytest.raises(FTNBError, match="adapters have been switched"):
            next(pieces)
    with without_adapter(lm):
        assert "".join(stream(lm, "ab", 8)) == plain
