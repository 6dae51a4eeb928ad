"""What documents begin with alike is computed once. Nothing else may change: losses, gradients, runs, scores."""

import random
import threading
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from subjects import StopAt, digest

from ftnb import encode, finetune, label_probs, lora_config, preflight, resume, tiny_lm
from ftnb.data.batches import IGNORE, PackedBatch, pack, pack_shared
from ftnb.data.prefix_trees import prefix_tree, shared_prefixes, tree_groups
from ftnb.kernels.attention import packed_attention
from ftnb.kernels.nats import held_out_loss, packed_loss, padded_loss, target_nats, why_not_shared
from ftnb.models.adapters import add_lora
from ftnb.training import budget
from ftnb.training.callbacks import Callback
from ftnb.training.runs import set_recompute

WINDOWS = {"gemma2", "gemma3_text", "mistral"}
DECODERS = ["llama", "gpt2", "qwen2", "qwen3", "phi3", "gpt_neox", "opt", "granite", "cohere", *sorted(WINDOWS)]
ENDS = ("day?", "night?", "day? No.", "eve", "dawn", "", "day?")
POEMS = ["Shall I compare thee to a summer’s " + end for end in ENDS]


def family(rng: random.Random, n: int = 9, letters: int = 30) -> list[dict]:
    """Token rows, many of which begin alike; some are beginnings of others, some are there twice."""
    rows: list[list[int]] = [[rng.randrange(5, letters) for _ in range(rng.randrange(4, 20))]]
    while len(rows) < n:
        old = rng.choice(rows)
        kept = rng.randrange(len(old) + 1)
        rows.append(old[:kept] + [rng.randrange(5, letters) for _ in range(rng.randrange(0 if kept else 1, 9))])
    return [{"input_ids": ids, "labels": labels(rng, ids)} for ids in rows]


def labels(rng: random.Random, ids: list[int]) -> list[int]:
    kind = rng.randrange(3)  # all, an answer, here and there
    if kind == 0:
        return list(ids)
    begin = rng.randrange(len(ids))
    return [t if (i >= begin if kind == 1 else rng.random() < 0.5) else IGNORE for i, t in enumerate(ids)]


def one_batch(rows: list[dict], least: int = 1) -> PackedBatch:
    (batch,) = pack_shared(rows, range(len(rows)), 10**9, least)
    return batch


def gradients(model: Any, loss: torch.Tensor) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    grads = [p.grad.flatten().clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return loss.item(), torch.cat(grads)


def check_equal(model: Any, rows: list[dict], tolerance: float = 1e-5, smoothing: float = 0.0) -> None:
    """Loss and gradients of a tree are those of separate documents, packed and padded."""
    tree, separate = one_batch(rows), pack(rows)
    assert sum(tree.lengths) == sum(separate.lengths) and tree.supervised == separate.supervised
    with packed_attention(model):
        loss, grad = gradients(model, packed_loss(model, tree, smoothing))
        packed = gradients(model, packed_loss(model, separate, smoothing))
    for other_loss, other_grad in (packed, gradients(model, padded_loss(model, separate, smoothing))):
        assert abs(loss - other_loss) <= tolerance * abs(other_loss)
        assert (grad - other_grad).norm() <= 10 * tolerance * other_grad.norm()


def model_of(name: str, **options: Any) -> Any:
    window = {"sliding_window": 5} if name in WINDOWS else {}
    return tiny_lm(name, seed=1, attention_dropout=0.0, **window, **options).model.float()


@pytest.mark.parametrize("name", DECODERS)
def test_losses_and_gradients(name: str) -> None:
    model = model_of(name)
    for seed in range(4):
        check_equal(model, family(random.Random(seed)), smoothing=0.1 * (seed % 2))


def test_double_precision() -> None:
    none = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    for seed in range(5):
        check_equal(tiny_lm("gpt2", seed=seed, **none).model.double(), family(random.Random(seed), 14), 1e-12)


def test_lora_and_recomputation() -> None:
    lm, rows = tiny_lm("llama", seed=1), family(random.Random(7))
    add_lora(lm, 4)
    with torch.no_grad():  # an adapter begins with zeros
        for p in lm.model.parameters():
            if p.requires_grad:
                p.normal_(0, 0.1)
    check_equal(lm.model, rows)
    lm.model.train()
    assert set_recompute(lm)
    check_equal(lm.model, rows)


def test_trees_of_random_documents() -> None:
    """Every document is found again along its path; with a threshold of 0 the pieces are a trie's."""
    for seed in range(200):
        rng = random.Random(seed)
        documents = [row["input_ids"] for row in family(rng, rng.randrange(1, 12), letters=7)]
        for least in (0, 3, 16):
            order, shared = shared_prefixes(documents, least)
            tree = prefix_tree([len(documents[i]) for i in order], shared)
            row = [t for p in tree.pieces for t in documents[order[p.document]][p.start : p.end]]
            assert [[row[i] for i in places] for places in tree.positions()] == [documents[i] for i in order]
            assert len(row) == tree.computed <= sum(map(len, documents))
            assert all(p.parent < i and p.end > p.start for i, p in enumerate(tree.pieces))
            if not least:
                assert tree.computed == len({tuple(d[:n]) for d in documents for n in range(1, len(d) + 1)})


@pytest.mark.parametrize("budget", [1, 10, 25, 60, 10**6])
def test_groups_keep_their_budget(budget: int) -> None:
    rows = family(random.Random(budget), 30)
    batches = list(pack_shared(rows, range(30), budget, least=4))
    assert sorted(i for b in batches for i in b.rows) == list(range(30))
    assert all(b.computed <= budget or len(b.lengths) == 1 for b in batches)
    for b in batches:
        for i, row in zip(b.rows, b.documents()):
            n = len(row["input_ids"])  # up to the last target
            assert row["input_ids"] == rows[i]["input_ids"][:n] and set(rows[i]["labels"][n:]) <= {IGNORE}
    model = model_of("llama")
    with packed_attention(model):
        whole = gradients(model, packed_loss(model, pack(rows)))
        parts = [gradients(model, packed_loss(model, b)) for b in batches]
    assert abs(sum(loss for loss, _ in parts) - whole[0]) < 1e-4 * whole[0]
    assert (sum(grad for _, grad in parts) - whole[1]).norm() < 1e-4 * whole[1].norm()


def test_halves_are_the_same_documents() -> None:
    batch = one_batch(family(random.Random(3), 12))
    parts = [batch]
    while any(len(b.lengths) > 1 for b in parts):
        parts = [half for b in parts for half in b.halves()]
    assert [b.lengths[0] for b in parts] == list(batch.lengths) and [b.rows[0] for b in parts] == list(batch.rows)
    assert [row for b in parts for row in b.documents()] == batch.documents()


def test_nothing_shared_stays_as_it_was() -> None:
    rows = [{"input_ids": [i, 6, 7, 8], "labels": [i, 6, 7, 8]} for i in (9, 7, 8)]
    (batch,) = pack_shared(rows)
    plain = pack(rows)
    assert torch.equal(batch.input_ids, plain.input_ids) and batch.key_positions is None
    assert [g for g, _ in tree_groups([r["input_ids"] for r in rows], 8)] == [[0, 1], [2]]


def begin(lm: Any, **options: Any) -> Any:
    data = encode(lm, {"train": POEMS * 3, "valid": POEMS[:3]})
    return finetune(lm, data, **{"epochs": 2, "lr": 1e-2, "batch_size": 7, "progress": False, **options})


@pytest.mark.parametrize("options", [{}, {"lora": 4, "lr": 1e-3}, {"frozen": 1}, {"label_smoothing": 0.1}])
def test_a_run_learns_the_same_from_fewer_tokens(options: dict) -> None:
    plain, shared = (begin(tiny_lm(seed=1), share_prefixes=share, **options) for share in (False, True))
    assert np.allclose(plain.losses, shared.losses, atol=1e-3) and plain.tokens == shared.tokens
    assert shared.learner.computed < 0.7 * plain.learner.computed < plain.tokens
    assert "beginnings computed once" in repr(shared) and "share_prefixes=False" in repr(plain)
    assert f"({shared.learner.computed:,} computed)" in repr(shared)


@pytest.mark.parametrize("options", [{}, {"micro_tokens": 90}, {"lora": 4}, {"frozen": 1}, {"recompute": True}])
def test_resume_is_bit_identical(tmp_path: Path, options: dict) -> None:
    whole = begin(tiny_lm(seed=1), **options)
    for stop in (1, 4, 5):
        folder = tmp_path / str(stop)
        broken = begin(tiny_lm(seed=1), **options, checkpoint=folder, checkpoint_every=1, callbacks=[StopAt(stop)])
        again = resume(folder, progress=False)
        assert broken.status == "interrupted" and digest(again) == digest(whole)
        assert (again.tokens, again.learner.computed) == (whole.tokens, whole.learner.computed)


REASONS = {
    "dropout": ("gpt2", {"resid_pdrop": 0.1}, "dropout"),
    "dropout by another name": ("opt", {"dropout": 0.1}, "dropout"),
    "in attention": ("llama", {"attention_dropout": 0.1}, "dropout"),
    "routers": ("mixtral", {"output_router_logits": True}, "routers"),
    "alibi": ("bloom", {}, "padded"),
    "convolutions": ("lfm2", {"layer_types": ["conv", "full_attention"]}, "padded"),
}


@pytest.mark.parametrize("name", REASONS)
def test_where_it_is_not_done(name: str) -> None:
    architecture, options, word = REASONS[name]
    lm = tiny_lm(architecture, **options)
    run = begin(lm, epochs=1)
    assert word in repr(run)
    assert run.learner.computed >= run.tokens - len(POEMS) * 3  # all but the last token of each row
    assert why_not_shared(lm)


def test_dropout_of_an_adapter_and_dropout_that_is_off() -> None:
    run = begin(tiny_lm(), epochs=1, lora=lora_config(4, dropout=0.1))
    assert "dropout" in repr(run)
    lm = tiny_lm("gpt2", resid_pdrop=0.1)
    for module in lm.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    lm.model.config.attn_pdrop = 0.0
    assert not why_not_shared(lm)


class Forwards(Callback):
    """Counts what goes through a model's body."""

    def __init__(self, lm: Any):
        self.tokens = 0
        lm.model.base_model.register_forward_pre_hook(self.count, with_kwargs=True)

    def count(self, module: Any, args: Any, kwargs: Any) -> None:
        self.tokens += kwargs["input_ids"].numel()


def test_as_many_tokens_are_computed_as_it_says() -> None:
    lm = tiny_lm(seed=1)
    data = encode(lm, POEMS * 3)
    why_not_shared(lm)  # tried once
    counted = Forwards(lm)
    run = finetune(lm, data, batch_size=7, progress=False)
    assert counted.tokens - 20 == run.learner.computed  # 20: whether anything is drawn is asked again


def test_validation_and_labels() -> None:
    lm, bloom = tiny_lm(seed=1), tiny_lm("bloom", seed=1)
    rows = family(random.Random(1), 20)
    for one in (lm, bloom):
        together = target_nats(one, rows)
        for row, nats in zip(rows, together):
            assert np.allclose(nats, target_nats(one, [row], packed=False)[0], atol=1e-4)
    assert held_out_loss(lm, encode(lm, POEMS).train) == pytest.approx(
        held_out_loss(lm, encode(lm, POEMS).train, packed=False), abs=1e-5
    )
    prompts = ["Is it day? Answer:", "Is it night? Answer:"]
    together = label_probs(lm, prompts, [" yes", " no", " no idea"])
    for prompt, probs in zip(prompts, together):
        assert label_probs(lm, prompt, [" yes", " no", " no idea"]) == pytest.approx(probs, abs=1e-5)


def test_preflight_and_out_of_memory() -> None:
    lm = tiny_lm(seed=1)
    data = encode(lm, POEMS * 3)
    forecast = preflight(lm, data, batch_size=7)
    assert 0.5 < forecast.shared < 0.9 and "of the tokens" in repr(forecast)

    small = [0]

    def memory(module: Any, args: Any, kwargs: Any) -> None:
        if kwargs["input_ids"].numel() > 50 and threading.current_thread() is threading.main_thread():
            small[0] += 1
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = lm.model.base_model.register_forward_pre_hook(memory, with_kwargs=True)
    with pytest.warns(UserWarning, match="out of memory"):
        run = finetune(lm, data, batch_size=7, lr=1e-2, progress=False)
    hook.remove()
    whole = finetune(tiny_lm(seed=1), data, batch_size=7, lr=1e-2, progress=False)
    assert small[0] == 1 and np.allclose(run.losses, whole.losses, atol=1e-3)


def test_what_the_cards_say() -> None:
    lm = tiny_lm(seed=1)
    run = finetune(lm, encode(lm, ["First.", "Second one.", "A third."]), progress=False)
    assert "no common beginning" in repr(run) and "computed)" not in repr(run)
    run = begin(tiny_lm(seed=1), share_prefixes=False)
    assert "each row for itself: share_prefixes=False" in repr(run) and "computed)" not in repr(run)
    assert "computed" not in repr(preflight(lm, encode(lm, POEMS), share_prefixes=False))


def test_a_measured_budget_shares_as_the_run_does(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = budget.pack_shared
    monkeypatch.setattr(budget, "pack_shared", lambda *a: calls.append(1) or real(*a))
    for share in (False, True):
        calls.clear()
        begin(tiny_lm(seed=1), tokens_per_step="auto", share_prefixes=share)
        assert bool(calls) == share


def test_a_stream_shares_what_its_steps_begin_with() -> None:
    stream = datasets.Dataset.from_dict({"text": POEMS * 3}).to_iterable_dataset()
    runs = []
    for share in (False, True):
        lm = tiny_lm(seed=1)
        runs.append(finetune(lm, encode(lm, stream), batch_size=7, max_steps=3, share_prefixes=share, progress=False))
    assert np.allclose(runs[0].losses, runs[1].losses, atol=1e-3) and runs[0].tokens == runs[1].tokens
    assert runs[1].learner.shared > 0 == runs[0].learner.shared
