"""A run's random numbers are its own: what other threads draw, seed and restore does not change it, and it leaves their
numbers alone."""

import hashlib
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ftnb import encode, finetune, find_lr, preflight, resume, tiny_lm
from ftnb.core.errors import FTNBError
from ftnb.data.applications import translation
from ftnb.models.adapters import lora_config
from ftnb.training.learner import Callback, Learner

TEXTS = ["To be, or not to be, that is the question: " + "whether 'tis nobler " * (n % 4) for n in range(16)]
PAIRS = [{"source": text, "target": text[::-1]} for text in TEXTS]

KINDS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "gpt2": (lambda: tiny_lm("gpt2", resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1), {}),
    "gpt2, eager": (lambda: tiny_lm("gpt2", attn_implementation="eager"), {}),
    "attention": (lambda: tiny_lm(attention_dropout=0.2), {}),
    "lora": (tiny_lm, {"lora": lora_config(4, dropout=0.2)}),
    "dora": (tiny_lm, {"lora": lora_config(4, dropout=0.2, dora=True)}),
    "layers left out": (lambda: tiny_lm("opt", layerdrop=0.3, attention_dropout=0.1), {}),
    "routers": (lambda: tiny_lm("mixtral", router_jitter_noise=0.1), {}),
    "padded": (lambda: tiny_lm("bloom", attention_dropout=0.1, hidden_dropout=0.1), {}),
    "t5": (lambda: tiny_lm("t5"), {}),
    "bart": (lambda: tiny_lm("bart", encoder_layerdrop=0.3, decoder_layerdrop=0.3), {}),
}


def rows(lm: Any, kind: str) -> Any:
    return encode(lm, PAIRS, translation()) if kind in ("t5", "bart") else encode(lm, TEXTS)


def outcome(run: Any) -> tuple[str, list[float]]:
    weights = b"".join(p.detach().numpy().tobytes() for p in run.lm.model.parameters())
    return hashlib.sha256(weights).hexdigest(), run.losses


def train(kind: str, **options: Any) -> tuple[str, list[float]]:
    make, how = KINDS[kind]
    lm = make()
    run = finetune(lm, rows(lm, kind), epochs=2, lr=1e-2, batch_size=4, progress=False, **how | options)
    return outcome(run.wait() if options.get("background") else run)


class Draw(threading.Thread):
    """Seeds and draws all the time, and looks whether the numbers are right."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.over, self.times, self.wrong = threading.Event(), 0, 0
        torch.manual_seed(0)
        self.right = torch.rand(3)

    def run(self) -> None:
        while not self.over.wait(0.0005):
            torch.manual_seed(0)
            self.wrong += not torch.equal(torch.rand(3), self.right)
            self.times += 1

    def __enter__(self) -> "Draw":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()


@pytest.mark.parametrize("kind", KINDS)
def test_beside_a_thread_that_draws(kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # above all, nothing unprotected
        expected = train(kind)
    make, how = KINDS[kind]
    lm = make()
    data = rows(lm, kind)
    with Draw() as draw:
        run = finetune(lm, data, epochs=2, lr=1e-2, batch_size=4, progress=False, background=True, **how).wait()
    assert outcome(run) == expected
    assert draw.times and not draw.wrong
    assert train(kind, recompute=True) == expected, "the second time, the same masks are drawn"
    assert train(kind, seed=1) != expected


def test_what_is_made_beside_a_run() -> None:
    """Models made in other threads are those of their seeds, and the run is not disturbed by their making."""
    expected, alone = train("gpt2"), outcome(finetune(tiny_lm(seed=3), encode(tiny_lm(), TEXTS), progress=False))
    lm = KINDS["gpt2"][0]()
    run = finetune(lm, rows(lm, "gpt2"), epochs=2, lr=1e-2, batch_size=4, progress=False, background=True)
    beside = [outcome(finetune(tiny_lm(seed=3), encode(tiny_lm(), TEXTS), progress=False)) for _ in range(3)]
    assert beside == [alone] * 3
    assert outcome(run.wait()) == expected


def test_verbs_of_training_leave_the_generators_alone() -> None:
    lm = tiny_lm("gpt2")
    data = encode(lm, {"train": TEXTS, "valid": TEXTS[:2]})

    class Stop(Callback):
        def after_step(self, learner: Learner) -> None:
            if learner.step == 2:
                raise KeyboardInterrupt

    def state() -> list[Any]:
        return [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()]

    verbs: dict[str, Callable[[], Any]] = {
        "finetune": lambda: finetune(tiny_lm(), encode(lm, TEXTS), lora=lora_config(2, dropout=0.5), progress=False),
        "samples": lambda: finetune(lm, data, samples=["To"], progress=False),
        "auto": lambda: finetune(lm, data, tokens_per_step="auto", progress=False),
        "find_lr": lambda: find_lr(lm, data, steps=10),
        "preflight": lambda: preflight(lm, data, lora=2),
        "resume": lambda: resume(finetune(lm, data, callbacks=[Stop()], progress=False)),
    }
    for name, verb in verbs.items():
        before = state()
        verb()
        assert state() == before, name


class Fails(Callback):
    """Have the optimizer fail in the third step, after or before it has changed the weights."""

    def __init__(self, error: Exception):
        self.error = error

    def before_step(self, learner: Learner) -> None:
        if learner.step == 2:
            step = learner.optimizer.step

            def failing(*_: object) -> None:
                step()
                raise self.error

            learner.optimizer.step = failing  # type: ignore[method-assign]


@pytest.mark.parametrize("error", [RuntimeError("odd"), MemoryError("no room for its state"), ValueError("x")])
def test_an_optimizer_that_fails(error: Exception, tmp_path: Any) -> None:
    lm = tiny_lm()
    how: dict[str, Any] = {"lr": 1e-2, "batch_size": 4, "progress": False}
    whole = outcome(finetune(tiny_lm(), encode(lm, TEXTS), **how))
    kept: list[Any] = []

    class Keep(Callback):
        def before_fit(self, learner: Learner) -> None:
            kept.append(learner)

    with pytest.raises(FTNBError, match=f"step 3: {type(error).__name__}.*some of them may be new") as raised:
        finetune(
            lm, encode(lm, TEXTS), checkpoint=tmp_path, checkpoint_every=1, callbacks=[Keep(), Fails(error)], **how
        )
    assert raised.value.__cause__ is error
    learner = kept[0]
    assert (learner.step, len(learner.losses), learner.epoch_step, learner.broken) == (2, 2, 2, True)
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-00000001", "step-00000002"]
    assert outcome(resume(tmp_path, progress=False)) == whole


def test_a_run_that_is_broken_is_not_gone_on_with() -> None:
    lm = tiny_lm()
    run = finetune(
        lm, encode(lm, TEXTS), batch_size=4, progress=False, background=True, callbacks=[Fails(OSError("x"))]
    )
    with pytest.raises(FTNBError, match="some of them may be new"):
        run.wait(60)
    with pytest.raises(FTNBError, match=r"Go on from its newest checkpoint: resume\(folder\)"):
        resume(run)


def test_halves_have_other_masks_and_the_warning_says_so() -> None:
    class Small(Callback):
        """A GPU that takes few tokens at a time."""

        def before_fit(self, learner: Learner) -> None:
            loss = learner.loss_of

            def small(model: Any, batch: Any) -> Any:
                value = loss(model, batch)
                if sum(batch.lengths) > 100:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                return value

            learner.loss_of = small

    for kind, words in (("gpt2", "but for dropout"), ("plain", "with the same gradient$")):
        lm = tiny_lm("gpt2") if kind == "gpt2" else tiny_lm()
        with pytest.warns(UserWarning, match=words):
            finetune(lm, encode(lm, ["To be, or not to be"] * 16), progress=False, callbacks=[Small()])
