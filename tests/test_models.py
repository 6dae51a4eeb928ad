"""Models, adapters and tokenizers that come back whole: saved, loaded, resumed, merged, and told from others."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from ftnb import LM, finetune, generate, load_lm, merge_adapter, resume, save_lm, tiny_lm
from ftnb.core.errors import FTNBError
from ftnb.data.encoding import encode
from ftnb.models.adapters import add_lora, remove_adapter, without_adapter
from ftnb.models.lm import (
    active_weights_hash,
    adapter_weights,
    fingerprint,
    identity,
    own_weights,
    quiet_transformers,
)
from ftnb.training.callbacks import Callback
from ftnb.training.resuming import load_checkpoint

IDS = torch.arange(3, 40)[None]
TEXTS = ["To be, or not to be, that is the question"[:n] for n in range(10, 26)]
CHAT = "{% for m in messages %}[{{m.role}}]{{m.content}}<|eos|>{% endfor %}[a]"


def logits(lm: LM) -> torch.Tensor:
    seq2seq = {"decoder_input_ids": IDS} if lm.model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return lm.model(input_ids=IDS, **seq2seq).logits  # type: ignore[no-any-return]


def off(a: LM | torch.Tensor, b: LM | torch.Tensor) -> float:
    """The largest difference of two models' logits."""
    one, other = (x if isinstance(x, torch.Tensor) else logits(x) for x in (a, b))
    return float((one - other).abs().max())


@torch.no_grad()
def as_trained(lm: LM) -> LM:
    """Other numbers in all that is trained."""
    generator = torch.Generator().manual_seed(0)
    for p in lm.model.parameters():
        if p.requires_grad:
            p.add_(torch.randn(p.shape, generator=generator).to(p) * 0.1)
    return lm


def new(folder: Path, architecture: str = "llama", **config: Any) -> LM:
    """A tiny model that was loaded from a folder."""
    save_lm(tiny_lm(architecture, **config), folder)
    return load_lm(folder)


ADAPTERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "linear layers": ("llama", {}, {"target_modules": "all-linear"}),
    "dora": ("llama", {}, {"target_modules": "all-linear", "use_dora": True}),
    "ranks": (
        "llama",
        {},
        {"target_modules": ["q_proj", "up_proj"], "use_rslora": True, "rank_pattern": {"q_proj": 5}},
    ),
    "head": ("llama", {}, {"target_modules": ["q_proj", "lm_head"]}),
    "head by a regex": ("llama", {}, {"target_modules": r".*\.q_proj|lm_head"}),
    "embeddings": ("llama", {}, {"target_modules": ["q_proj", "embed_tokens"]}),
    "both": ("llama", {}, {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    "whole head": ("llama", {}, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "whole embeddings": ("llama", {}, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "both whole": ("llama", {}, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
    "both whole and tied": (
        "llama",
        {},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "ensure_weight_tying": True},
    ),
    "both whole, never tied": (
        "llama",
        {"tie_word_embeddings": False},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    ),
    "norms": ("llama", {}, {"target_modules": ["q_proj"], "modules_to_save": ["norm"]}),
    "whole layers": ("llama", {}, {"target_modules": ["q_proj"], "modules_to_save": ["layers.1.mlp"]}),
    "tokens": ("llama", {}, {"target_modules": ["q_proj"], "trainable_token_indices": [3, 4]}),
    "tokens of two layers": (
        "llama",
        {},
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3], "lm_head": [5]}},
    ),
    "tokens of the head": ("llama", {}, {"target_modules": ["q_proj"], "trainable_token_indices": {"lm_head": [5]}}),
    "pissa": ("llama", {}, {"target_modules": ["q_proj"], "init_lora_weights": "pissa"}),
    "gpt2 head": ("gpt2", {}, {"target_modules": ["c_attn", "lm_head"]}),
    "gpt2 embeddings": ("gpt2", {}, {"target_modules": ["c_attn", "wte"], "modules_to_save": ["ln_f"]}),
    "gpt2 biases": ("gpt2", {}, {"target_modules": ["c_attn"], "bias": "all"}),
    "qwen2 biases": ("qwen2", {}, {"target_modules": ["q_proj"], "bias": "lora_only"}),
    "gemma2 tokens": ("gemma2", {}, {"target_modules": ["q_proj"], "trainable_token_indices": [3]}),
    "gemma2 head": ("gemma2", {}, {"target_modules": ["q_proj", "lm_head"]}),
    "experts": ("mixtral", {}, {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj"]}),
    "t5 tokens": ("t5", {}, {"target_modules": ["q"], "trainable_token_indices": [3]}),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_comes_back_whole(name: str, tmp_path: Path) -> None:
    architecture, size, config = ADAPTERS[name]
    lm = new(tmp_path / "base", architecture, **size)
    base, plain = identity(lm.model), logits(lm)
    add_lora(lm, LoraConfig(r=2, **config))
    assert off(lm, plain) < 1e-5
    tuned = logits(as_trained(lm))
    assert off(tuned, plain) > 1e-3
    with without_adapter(lm):
        assert torch.equal(logits(lm), plain)
    save_lm(lm, tmp_path / "adapter")
    again = load_lm(tmp_path / "adapter")
    assert torch.equal(logits(again), tuned)
    assert fingerprint(again.model, adapters=True) == fingerprint(lm.model, adapters=True)
    save_lm(again, tmp_path / "adapter")  # once more, from what was loaded
    assert torch.equal(logits(load_lm(tmp_path / "adapter")), tuned)
    remove_adapter(again)
    assert torch.equal(logits(again), plain) and identity(again.model) == base and not adapter_weights(again.model)
    assert off(merge_adapter(lm), tuned) < 1e-5
    assert not adapter_weights(lm.model) and set(own_weights(lm.model)) == set(lm.model.state_dict())
    save_lm(lm, tmp_path / "merged")
    whole = load_lm(tmp_path / "merged")
    assert torch.equal(logits(whole), logits(lm)) and identity(whole.model) == identity(lm.model)


class PressStop(Callback):
    """Press ■ after two steps."""

    def after_step(self, learner: Any) -> None:
        if learner.step == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["memory", "folder"])
@pytest.mark.parametrize("name", ["dora", "both whole", "both whole and tied", "tokens", "pissa", "gpt2 biases"])
def test_a_run_with_an_adapter_goes_on(name: str, where: str, tmp_path: Path) -> None:
    architecture, size, config = ADAPTERS[name]
    save_lm(tiny_lm(architecture, **size), tmp_path / "base")
    make: Callable[[], LM] = lambda: tiny_lm(architecture, **size) if where == "memory" else load_lm(tmp_path / "base")
    how = {"lr": 1e-2, "batch_size": 4, "progress": False, "seed": 3}
    whole = finetune(make(), encode(make(), TEXTS), lora=LoraConfig(r=2, **config), **how)
    lora = LoraConfig(r=2, **config)
    stopped = finetune(
        make(), encode(make(), TEXTS), lora=lora, callbacks=[PressStop()], checkpoint=tmp_path / "run", **how
    )
    half = logits(stopped.lm)
    assert torch.equal(logits(load_checkpoint(tmp_path / "run")), half)
    run = resume(tmp_path / "run", progress=False)
    assert run.losses == whole.losses and torch.equal(logits(run.lm), logits(whole.lm))
    remove_adapter(run.lm)
    assert torch.equal(logits(run.lm), logits(make()))
    again = resume(tmp_path / "run", lm=make(), progress=False)  # it had finished: nothing is trained
    assert torch.equal(logits(again.lm), logits(whole.lm))


def test_parts_of_an_adapter_that_are_not_trained_are_kept(tmp_path: Path) -> None:
    lm = as_trained(add_lora(tiny_lm(), 4))
    data = encode(lm, TEXTS)
    run = finetune(lm, data, frozen=1, callbacks=[PressStop()], checkpoint=tmp_path, batch_size=4, progress=False)
    assert torch.equal(logits(load_checkpoint(tmp_path)), logits(run.lm))


@pytest.mark.parametrize(
    "config",
    [
        IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]),
        LoHaConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]),
        LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    ],
)
def test_adapters_of_peft_itself(config: Any, tmp_path: Path) -> None:
    """A folder that peft has written is read, and peft reads what we have written."""
    lm = new(tmp_path / "base")
    with quiet_transformers():
        wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config)
    for p in wrapped.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.1)
    wrapped.save_pretrained(str(tmp_path / "theirs"))
    theirs = load_lm(tmp_path / "theirs")
    assert off(theirs, wrapped.eval()(IDS).logits.detach()) < 1e-6
    save_lm(theirs, tmp_path / "ours")
    assert off(load_lm(tmp_path / "ours"), theirs) == 0
    read = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), str(tmp_path / "ours"))
    assert off(theirs, read.eval()(IDS).logits.detach()) < 1e-6
    assert off(merge_adapter(theirs), read.eval()(IDS).logits.detach()) < 1e-5
    assert off(lm, theirs) > 1e-3


def test_what_peft_cannot_do_is_refused_and_undone() -> None:
    for config in (
        {"target_modules": ["q_proj"], "modules_to_save": ["q_proj"]},
        {"target_modules": ["q_proj", "lm_head"], "ensure_weight_tying": True},
        {"target_modules": ["q_proj"], "trainable_token_indices": [3], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": {"nowhere": [3]}},
    ):
        lm = tiny_lm()
        with pytest.raises(FTNBError, match="peft cannot add it"):
            add_lora(lm, LoraConfig(r=2, **config))
        assert identity(lm.model) == identity(tiny_lm().model) and off(lm, tiny_lm()) == 0
        assert not adapter_weights(lm.model) and not hasattr(lm.model, "peft_config")
        add_lora(lm, 2)
    shared = add_lora(tiny_lm("t5"), LoraConfig(r=2, target_modules=["q"], modules_to_save=["lm_head"]))
    before = logits(as_trained(shared))
    with pytest.raises(FTNBError, match="save_lm"):
        merge_adapter(shared)
    assert torch.equal(logits(shared), before)


# tokenizers, embeddings and settings


def with_new_tokens(lm: LM) -> LM:
    """A chat template, an end token, a pad token, two new tokens and the embeddings for them."""
    tok = lm.tokenizer
    tok.add_tokens(["<think>"])
    tok.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    tok.eos_token, tok.pad_token, tok.chat_template = "<|im_end|>", "<|bos|>", CHAT
    with quiet_transformers(), torch.random.fork_rng():
        torch.manual_seed(0)
        lm.model.resize_token_embeddings(len(tok), mean_resizing=False)
    lm.model.generation_config.eos_token_id = [tok.eos_token_id, 2]
    lm.model.config.eos_token_id = tok.eos_token_id
    return lm


def same_in_every_way(a: LM, b: LM) -> None:
    assert torch.equal(logits(a), logits(b)) and identity(a.model) == identity(b.model)
    assert a.model.get_input_embeddings().weight.shape == b.model.get_input_embeddings().weight.shape
    for name in ("eos_token_id", "pad_token_id", "chat_template", "all_special_tokens"):
        assert getattr(a.tokenizer, name) == getattr(b.tokenizer, name)
    assert a.tokenizer.get_vocab() == b.tokenizer.get_vocab()
    assert a.tokenizer("a<think>b<|im_end|>")["input_ids"] == b.tokenizer("a<think>b<|im_end|>")["input_ids"]
    assert a.model.generation_config.eos_token_id == b.model.generation_config.eos_token_id
    assert a.model.config.eos_token_id == b.model.config.eos_token_id


WHOLE = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}
HOWS: dict[str, dict[str, Any]] = {
    "all weights": {},
    "frozen": {"frozen": 1},
    "lora": {"lora": 2},
    "lora on the head": {"lora": LoraConfig(r=2, target_modules=["q_proj", "lm_head", "embed_tokens"])},
    "lora and whole embeddings": {"lora": LoraConfig(r=2, **WHOLE)},
    "lora and tokens": {"lora": LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[259, 260])},
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_tokenizer_and_embeddings_come_back(architecture: str, how: str, tied: bool, tmp_path: Path) -> None:
    lm = with_new_tokens(new(tmp_path / "base", architecture, tie_word_embeddings=tied))
    run = finetune(
        lm,
        encode(lm, TEXTS),
        callbacks=[PressStop()],
        checkpoint=tmp_path / "run",
        batch_size=4,
        lr=1e-2,
        progress=False,
        **HOWS[how],
    )
    same_in_every_way(load_checkpoint(tmp_path / "run"), lm)
    save_lm(lm, tmp_path / "out")
    same_in_every_way(load_lm(tmp_path / "out"), lm)
    resumed = resume(tmp_path / "run", progress=False)
    same_in_every_way(resumed.lm, resume(run).lm)
    if "lora" in how:
        save_lm(merge_adapter(lm), tmp_path / "merged")
        same_in_every_way(load_lm(tmp_path / "merged"), lm)


def test_an_adapter_on_a_model_that_was_trained_after_loading(tmp_path: Path) -> None:
    lm = as_trained(new(tmp_path / "base"))
    as_trained(add_lora(lm, 2))
    save_lm(lm, tmp_path / "out")
    assert torch.equal(logits(load_lm(tmp_path / "out")), logits(lm))


# which model it is

OTHERS: dict[str, dict[str, Any]] = {
    "num_hidden_layers": {"layers": 3},
    "rope_theta": {"rope_theta": 5e5},
    "rope_parameters": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
    "hidden_act": {"hidden_act": "gelu"},
    "rms_norm_eps": {"rms_norm_eps": 1e-3},
    "num_key_value_heads": {"num_attention_heads": 2, "head_dim": 32, "num_key_value_heads": 1},
    "weights differ": {"seed": 1},
}


def weights_of(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted(folder.rglob("step-*/*"))]


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("how", [{}, {"lora": 2}, {"frozen": 1}])
def test_a_run_goes_on_with_its_own_model_only(how: dict[str, Any], what: str, tmp_path: Path) -> None:
    lm = tiny_lm()
    finetune(lm, encode(lm, TEXTS), callbacks=[PressStop()], checkpoint=tmp_path, batch_size=4, progress=False, **how)
    before, other = weights_of(tmp_path), tiny_lm(**OTHERS[what])
    if what == "weights differ" and not how:
        return  # the checkpoint has them all
    unlike = identity(other.model)
    with pytest.raises(FTNBError, match=what):
        resume(tmp_path, lm=other, progress=False)
    assert weights_of(tmp_path) == before and identity(other.model) == unlike and not adapter_weights(other.model)
    assert resume(tmp_path, lm=tiny_lm() if "lora" in how else lm, progress=False).status == "finished"


def test_a_run_goes_on_with_its_own_tokens_only(tmp_path: Path) -> None:
    lm = tiny_lm()
    finetune(lm, encode(lm, TEXTS), callbacks=[PressStop()], checkpoint=tmp_path, batch_size=4, progress=False)
    other, tok = tiny_lm(), json.loads(tiny_lm().tokenizer.backend_tokenizer.to_str())
    vocabulary = tok["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    backend = type(other.tokenizer.backend_tokenizer).from_str(json.dumps(tok))
    other.tokenizer = type(other.tokenizer)(tokenizer_object=backend, eos_token="<|eos|>", bos_token="<|bos|>")
    with pytest.raises(FTNBError, match="tokenizer"):
        resume(tmp_path, lm=other, progress=False)


def change_last(lm: LM) -> None:
    lm.model.model.layers[1].mlp.up_proj.weight.data[-1, -1] += 1


def change_in_training(lm: LM) -> None:
    finetune(lm, encode(lm, TEXTS), frozen=1, max_steps=1, progress=False)


def change_by_state(lm: LM) -> None:
    state = lm.model.state_dict()
    state["model.norm.weight"] = state["model.norm.weight"] * 1.5
    lm.model.load_state_dict(state)


def change_in_place(lm: LM) -> None:
    with torch.no_grad():
        lm.model.model.norm.weight.copy_(torch.full((64,), 1.5))


def change_in_numpy(lm: LM) -> None:
    lm.model.model.norm.weight.detach().numpy()[-1] = 2


CHANGES = [change_last, change_in_training, change_by_state, change_in_place, change_in_numpy]


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_noticed(change: Callable[[LM], None], tmp_path: Path) -> None:
    lm = tiny_lm()
    before = active_weights_hash(lm.model)
    assert active_weights_hash(lm.model) == before
    written = generate(lm, ["ab"], 5, file=tmp_path / "answers.jsonl")
    change(lm)
    assert active_weights_hash(lm.model) != before
    with pytest.raises(FTNBError, match="made otherwise"):
        generate(lm, ["ab"], 5, file=tmp_path / "answers.jsonl")
    assert generate(tiny_lm(), ["ab"], 5, file=tmp_path / "answers.jsonl") == written


@pytest.mark.parametrize("what", OTHERS)
def test_answers_of_another_model_are_not_taken(what: str, tmp_path: Path) -> None:
    generate(tiny_lm(), ["ab"], 5, file=tmp_path / "answers.jsonl")
    with pytest.raises(FTNBError, match="made otherwise"):
        generate(tiny_lm(**OTHERS[what]), ["ab"], 5, file=tmp_path / "answers.jsonl")


@pytest.mark.parametrize("what", OTHERS)
def test_an_adapter_goes_with_its_own_model_only(what: str, tmp_path: Path) -> None:
    save_lm(as_trained(add_lora(new(tmp_path / "base"), 2)), tmp_path / "adapter")
    save_lm(tiny_lm(**OTHERS[what]), tmp_path / "base")
    with pytest.raises(FTNBError, match=f"{what}|cannot add it"):
        load_lm(tmp_path / "adapter")


def test_a_scale_is_a_part_of_what_answers() -> None:
    lm = as_trained(add_lora(tiny_lm(), 2))
    before = active_weights_hash(lm.model)
    next(m for m in lm.model.modules() if isinstance(getattr(m, "scaling", None), dict)).scaling["default"] *= 2
    assert active_weights_hash(lm.model) != before


def test_a_merged_model_is_a_transformers_model(tmp_path: Path) -> None:
    lm = as_trained(add_lora(new(tmp_path / "base"), LoraConfig(r=2, **WHOLE)))
    save_lm(merge_adapter(lm), tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert isinstance(model, PreTrainedModel) and torch.equal(model(IDS).logits, lm.model(IDS).logits)


# formats, and losses beside the loss


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_adapters_are_trained_in_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    save_lm(tiny_lm(), tmp_path / "base")
    for name, config in (
        ("lora", 4),
        ("whole", LoraConfig(r=2, **WHOLE)),
        ("more", LoraConfig(r=2, target_modules=["q_proj", "lm_head"], modules_to_save=["norm"])),
        ("tokens", LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[3, 4])),
    ):
        lm = load_lm(tmp_path / "base", dtype=dtype)
        run = finetune(lm, encode(lm, TEXTS), lora=config, lr=1e-2, progress=False, checkpoint=tmp_path / f"run {name}")
        assert run.losses[-1] < run.losses[0]
        assert {p.dtype for p in adapter_weights(lm.model).values()} == {torch.float32}
        assert {t.dtype for t in own_weights(lm.model).values()} == {dtype}
        assert off(load_checkpoint(tmp_path / f"run {name}"), lm) == 0
        save_lm(lm, tmp_path / name)
        assert off(load_lm(tmp_path / name, dtype=dtype), lm) == 0
        assert off(load_lm(tmp_path / name), lm) < 0.2  # the same numbers, computed in float32
        before = logits(lm)
        merge_adapter(lm)
        assert off(lm, before) < 0.2 and {p.dtype for p in lm.model.parameters()} == {dtype}
        save_lm(lm, tmp_path / f"merged {name}")
        assert off(load_lm(tmp_path / f"merged {name}", dtype=dtype), lm) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("how", [{}, {"frozen": 1}, {"lora": LoraConfig(r=2, target_modules=["c_attn"], bias="all")}])
def test_16_bit_weights_are_not_trained(how: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    lm = new(tmp_path / "base", "gpt2")
    half = load_lm(tmp_path / "base", dtype=dtype)
    with pytest.raises(FTNBError, match="Load it without `dtype`") as error:
        finetune(half, encode(half, TEXTS), progress=False, **how)
    assert ("lora=8" in str(error.value)) == ("lora" not in how)
    before = {k: t.clone() for k, t in own_weights(lm.model).items()}
    finetune(lm, encode(lm, TEXTS), progress=False)
    still = sum(int((t == before[k]).sum()) for k, t in own_weights(lm.model).items())
    assert still < 0.35 * sum(t.numel() for t in before.values())  # positions and tokens that no row has


MIXTURES = ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "jamba", "gpt_oss", "granitemoe"]


@pytest.mark.parametrize("lora", [None, 2])
@pytest.mark.parametrize("architecture", MIXTURES)
def test_routers_are_kept_in_balance(architecture: str, lora: int | None) -> None:
    config: dict[str, Any] = {"output_router_logits": True, "router_aux_loss_coef": 10.0}
    if architecture == "jamba":
        config |= {"mamba_dt_rank": 4, "use_mamba_kernels": False, "attn_layer_period": 2, "attn_layer_offset": 1}
    lm = tiny_lm(architecture, **config)
    for rows in ([TEXTS[0]], TEXTS):
        data = encode(lm, rows)
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(r) for r in data.train["input_ids"]], True, 0)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(r), dtype=int) for r in data.train["input_ids"]], True)
        labels = torch.nn.utils.rnn.pad_sequence([torch.tensor(r) for r in data.train["labels"]], True, -100)
        with torch.no_grad():
            expected = lm.model(input_ids=ids, attention_mask=mask, labels=labels).loss.item()
        assert expected > 20
        run = finetune(tiny_lm(architecture, **config), data, lora=lora, batch_size=len(rows), progress=False)
        assert abs(run.losses[0] - expected) < 1e-3
        assert "times 10" in repr(run)
        again = finetune(
            tiny_lm(architecture, **config), data, lora=lora, batch_size=len(rows), recompute=True, progress=False
        )
        assert abs(again.losses[0] - expected) < 1e-3
        silent = tiny_lm(architecture, **config | {"output_router_logits": False})
        plain = finetune(silent, data, lora=lora, batch_size=len(rows), progress=False)
        assert plain.losses[0] < 7 and "routers" not in repr(plain)


def test_balance_is_learned_and_comes_back(tmp_path: Path) -> None:
    lm = new(tmp_path / "base", "mixtral", router_aux_loss_coef=10.0)
    lm.model.config.output_router_logits = True
    data = encode(lm, TEXTS)
    run = finetune(
        lm, data, frozen=1, epochs=2, lr=1e-2, callbacks=[PressStop()], checkpoint=tmp_path / "run", progress=False
    )
    resumed = resume(tmp_path / "run", progress=False)
    assert resumed.losses == resume(run).losses and resumed.losses[0] > 20
    with pytest.raises(FTNBError, match="output_router_logits"):
        finetune(lm, data, compile=True, progress=False)
