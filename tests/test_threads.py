"""One model, several threads: what is done beside a run neither changes it nor is wrong."""

import json
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ftnb.core.errors import FTNBError
from ftnb.data.applications import translation
from ftnb.data.encoding import encode
from ftnb.evaluation.scoring import score
from ftnb.generation.chat import Chat
from ftnb.generation.likelihood import label_probs, next_tokens
from ftnb.generation.writing import generate
from ftnb.kernels.nats import held_out_loss
from ftnb.models.adapters import add_lora, freeze, merge_adapter, remove_adapter, without_adapter
from ftnb.models.from_scratch import tiny_lm
from ftnb.models.lm import active_weights_hash, check_not_training, fingerprint, identity, in_training, own_weights
from ftnb.models.loading import load_lm, save_lm
from ftnb.training.budget import token_budget
from ftnb.training.finetuning import finetune
from ftnb.training.learner import Callback
from ftnb.training.preflight import find_lr, preflight
from ftnb.training.resuming import resume
from ftnb.training.runs import Run

TRAIN = ["To be, or not to be, that is the question", "a b c d", "Ishmael"] * 8
TEXTS = {"train": TRAIN, "valid": ["Call me Ishmael."] * 3}
ROWS = [{"source": "a b", "target": "c d"}, {"source": "e", "target": "f g h"}] * 3
TASK = translation("source", "target", "German")
QUIET = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}


class Noting(Callback):
    """The model's weights after each step, as a hash."""

    def __init__(self, lm: Any) -> None:
        self.lm, self.seen = lm, {fingerprint(lm.model, adapters=True)}

    def after_step(self, learner: Any) -> None:
        self.seen.add(fingerprint(self.lm.model, adapters=True))


def model(kind: str, folder: Path | None = None) -> Any:
    lm = tiny_lm(kind, seed=1, **(QUIET if kind == "gpt2" else {}))
    return lm if folder is None else load_lm(save_lm(lm, folder / "base"))


def begin(lm: Any, noting: Any, **more: Any) -> Run:
    options: dict[str, Any] = dict(epochs=8, lr=1e-3, batch_size=4, valid_every=10, micro_tokens=128, progress=False)
    return finetune(lm, encode(lm, TEXTS), callbacks=[noting], **options | more)


def digest(run: Run) -> tuple:
    weights = fingerprint(run.lm.model, adapters=True)
    return run.losses, run.valid, weights, [m.training for m in run.lm.model.modules()], run.status


def reading(lm: Any, folder: Path) -> dict[str, Any]:
    """What reads a model."""
    data, chat = encode(lm, TEXTS), Chat(lm, max_new_tokens=4)

    def say() -> None:
        chat.turns = []
        chat("To be")

    def stream() -> None:
        for _ in Chat(lm, max_new_tokens=4).stream("To be"):
            time.sleep(0.001)

    def other() -> None:
        with without_adapter(lm):
            generate(lm, "To", 2)

    return {
        "held_out_loss": lambda: held_out_loss(lm, data.valid),
        "score": lambda: score(lm, ROWS, TASK, 4, progress=False),
        "generate": lambda: generate(lm, ["To be", "Call me"], 4), "beams": lambda: generate(lm, "To", 4, num_beams=2),
        "stream": stream, "Chat": say, "label_probs": lambda: label_probs(lm, "To", [" be", " do"]),
        "next_tokens": lambda: next_tokens(lm, "To"), "fingerprint": lambda: fingerprint(lm.model),
        "identity": lambda: identity(lm.model), "hash": lambda: active_weights_hash(lm.model),
        "save_lm": lambda: save_lm(lm, folder / "m"), "without_adapter": other, "card": lambda: repr(lm),
    }  # fmt: skip


def changing(lm: Any) -> dict[str, Any]:
    """What changes a model, and is refused while a run has it."""
    data = encode(lm, TEXTS)
    return {
        "find_lr": lambda: find_lr(lm, data), "preflight": lambda: preflight(lm, data),
        "token_budget": lambda: token_budget(lm, data), "add_lora": lambda: add_lora(lm, 2),
        "merge_adapter": lambda: merge_adapter(lm), "remove_adapter": lambda: remove_adapter(lm),
        "freeze": lambda: freeze(lm, 1), "finetune": lambda: finetune(lm, data, progress=False),
        "auto": lambda: finetune(lm, data, tokens_per_step="auto", progress=False),
    }  # fmt: skip


@pytest.mark.parametrize("kind, lora", [("gpt2", None), ("llama", 4), ("bloom", None)])
def test_beside_a_run(kind: str, lora: Any, tmp_path: Path) -> None:
    lm = model(kind, tmp_path)
    alone = digest(begin(lm, Noting(lm), lora=lora))
    lm = model(kind, tmp_path)
    noting = Noting(lm)
    run = begin(lm, noting, lora=lora, background=True)
    done: dict[str, int] = {}
    while run.thread and run.thread.is_alive():
        for name, verb in reading(lm, tmp_path).items():
            verb()
            done[name] = done.get(name, 0) + 1
        for name, verb in changing(lm).items():
            if run.done.is_set():
                break
            try:
                verb()
            except FTNBError as e:
                assert "a run in the background is training it" in str(e), name
            else:
                assert run.done.is_set(), f"{name} was let in"
                assert min(done.values()) >= 1
                return  # the run has ended meanwhile, and its model has been changed
    run.wait(60)
    assert digest(run) == alone, "the run is another one"
    assert min(done.values()) >= 1 and not in_training(lm)
    assert "ftnb" not in str(lm.model.config._attn_implementation)
    if lora is None:
        assert fingerprint(load_lm(tmp_path / "m").model) in noting.seen


def test_saved_models_are_those_of_a_step(tmp_path: Path) -> None:
    lm = model("llama")
    noting = Noting(lm)
    run = begin(lm, noting, epochs=20, background=True)
    saved = []
    while not run.done.is_set() and len(saved) < 30:
        saved.append(load_file(save_lm(lm, tmp_path / "m") / "model.safetensors"))
    run.stop()
    run.wait(60)
    for weights in saved:
        with torch.no_grad():
            for name, w in own_weights(lm.model).items():
                if name in weights:
                    w.copy_(weights[name])
        assert fingerprint(lm.model, adapters=True) in noting.seen


def test_answers_beside_a_run_are_those_of_a_step() -> None:
    lm = model("gpt2")
    rows = encode(lm, TEXTS).valid
    answers: set = set()

    class Answering(Callback):
        def after_step(self, learner: Any) -> None:
            answers.add((held_out_loss(lm, rows), generate(lm, "To be", 8)))

        before_fit = after_step

    run = begin(lm, Answering(), epochs=10, background=True)
    seen_losses, seen_texts = set(), set()
    while not run.done.is_set():
        seen_losses.add(held_out_loss(lm, rows))
        seen_texts.add(generate(lm, "To be", 8))
    run.wait(60)
    assert seen_losses <= {a[0] for a in answers} and seen_texts <= {a[1] for a in answers}


def in_threads(*functions: Any) -> list:
    """The results, or errors, of functions that begin at the same time."""
    barrier, results = threading.Barrier(len(functions)), [None] * len(functions)

    def call(i: int) -> None:
        barrier.wait()
        try:
            results[i] = functions[i]()
        except Exception as e:
            results[i] = e

    threads = [threading.Thread(target=call, args=[i], daemon=True) for i in range(len(functions))]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
        assert not t.is_alive(), "a deadlock"
    return results


def test_of_two_runs_one_begins() -> None:
    for _ in range(5):
        lm = model("llama")
        data = encode(lm, TEXTS)
        first = in_threads(*[partial(finetune, lm, data, max_steps=2, lora=2, progress=False)] * 3)
        assert sum(isinstance(r, Run) for r in first) == 1, first
        assert all(isinstance(r, (Run, FTNBError)) for r in first) and not in_training(lm)


def test_a_run_is_continued_once(tmp_path: Path) -> None:
    lm = model("llama")

    class Stop(Callback):
        def after_step(self, learner: Any) -> None:
            if learner.step == 3:
                raise KeyboardInterrupt

    run = finetune(lm, encode(lm, TEXTS), epochs=2, callbacks=[Stop()], progress=False, checkpoint=tmp_path / "r")
    again = lambda: resume(tmp_path / "r", lm=lm, progress=False)
    results = in_threads(*[lambda: resume(run, progress=False)] * 2, again)
    assert len(run.losses) == 6 or isinstance(results[2], Run)
    assert any(isinstance(r, Run) for r in results) and not in_training(lm)
    assert all(isinstance(r, (Run, FTNBError)) for r in results), results


def test_callbacks_read_but_do_not_change() -> None:
    lm, refused = model("llama"), []

    class Busy(Callback):
        def after_step(self, learner: Any) -> None:
            generate(lm, "To", 2)
            assert run.say("To", max_new_tokens=2) is not None  # the thread that would answer asks
            for name, verb in changing(lm).items():
                try:
                    verb()
                except FTNBError as e:
                    refused.append((name, str(e)))

    data, ready = encode(lm, TEXTS), threading.Event()
    busy = Busy()
    run: Any = None

    class Wait(Callback):
        def before_fit(self, learner: Any) -> None:
            ready.wait(10)

    run = finetune(lm, data, max_steps=2, callbacks=[Wait(), busy], progress=False, background=True)
    ready.set()
    run.wait(60)
    assert run.status == "finished" and len(refused) == 2 * len(changing(lm))


def test_nobody_waits_for_himself() -> None:
    lm = model("llama")
    run = finetune(lm, encode(lm, TEXTS), epochs=500, lora=2, progress=False, background=True)
    while not run.losses:
        time.sleep(0.01)
    with without_adapter(lm):
        steps = len(run.losses)
        assert isinstance(run.say("To", max_new_tokens=2), str)
        with pytest.raises(FTNBError, match="this thread holds"):
            run.wait(60)
        time.sleep(0.1)
        assert len(run.losses) <= steps + 1  # it waits
        pieces = Chat(lm, max_new_tokens=5).stream("To")
    chat = Chat(lm, max_new_tokens=50).stream("To")
    next(chat)
    steps = len(run.losses)
    deadline = time.monotonic() + 30
    while len(run.losses) < steps + 3:  # a stream that nobody reads on holds nothing
        assert time.monotonic() < deadline
        time.sleep(0.01)
    chat.close(), pieces.close()
    run.stop()
    assert run.wait(60).status == "interrupted"
    check_not_training(lm)


SIDE = """
import json, locale, logging, os, random, signal, sys, tempfile, threading, warnings
import numpy as np, torch
import ftnb
from ftnb.data.applications import summarization, translation
from ftnb.models.adapters import merge_adapter
from ftnb.models.from_scratch import tiny_lm
lm = tiny_lm('llama', seed=1)
rows = [{'source': 'a b', 'target': 'c d'}, {'source': 'e', 'target': 'f g h'}] * 3
task, long = translation('source', 'target', 'German'), summarization('source', 'target')
folder = tempfile.mkdtemp()

def state():
    numpy = np.random.get_state()
    from transformers.utils import logging as hf
    return dict(environ=dict(os.environ), python=hash(random.getstate()), numpy=[str(numpy[1].tolist()), numpy[2]],
        torch=torch.get_rng_state().tolist(), filters=[str(f) for f in warnings.filters], root=logging.root.level,
        handlers=len(logging.root.handlers), hf=[hf.get_verbosity(), hf.is_progress_bar_enabled()], cwd=os.getcwd(),
        signals=str(signal.getsignal(signal.SIGINT)), threads=[t.name for t in threading.enumerate()],
        locale=locale.setlocale(locale.LC_ALL), dtype=str(torch.get_default_dtype()), n=torch.get_num_threads(),
        grad=torch.is_grad_enabled(), mode=torch.is_inference_mode_enabled(), out=[sys.stdout is sys.__stdout__],
        recursion=sys.getrecursionlimit(), hook=str(sys.excepthook), argv=sys.argv, path=sys.path)

import tqdm, transformers
changes = {}
for verb in VERBS:
    before = state()
    exec(verb)
    after = state()
    changes |= {f'{verb}: {k}': [str(before[k]), str(after[k])] for k in before if before[k] != after[k]}
print(json.dumps({k: [x[-300:] for x in v] for k, v in changes.items()}))
"""
VERBS = [
    "from ftnb.evaluation.scoring import score; score(lm, rows, task, progress=False); "
    "score(lm, rows, long, progress=False)",
    "from ftnb.evaluation.scoring import score_texts; score_texts(['a b'] * 4, ['a c'] * 4, baseline=['c'] * 4)",
    "ftnb.finetune(lm, ftnb.encode(lm, ['a b c'] * 9), lora=2, progress=False, checkpoint=folder + '/run'); "
    "ftnb.resume(folder + '/run', progress=False); merge_adapter(lm); ftnb.load_lm(ftnb.save_lm(lm, folder + '/m'))",
    "two = ftnb.add_lora(ftnb.load_lm(ftnb.save_lm(lm, folder + '/m'))); "
    "ftnb.load_lm(ftnb.save_lm(two, folder + '/a'))",
    "ftnb.generate(lm, 'a', 4, temperature=1.); ftnb.generate(lm, 'a', 4, pattern='[ab]+'); "
    "ftnb.Chat(lm)('hello'); ftnb.label_probs(lm, 'a', ['b', 'c'])",
    "from ftnb.training.preflight import find_lr, preflight; d = ftnb.encode(lm, ['a b c'] * 9); preflight(lm, d); "
    "find_lr(lm, d, steps=10)",
]


@pytest.mark.parametrize("order", [1, -1])
def test_what_is_everybodys_stays_as_it_was(order: int) -> None:
    code = SIDE.replace("VERBS", repr(VERBS[::order]))  # what comes first imports most
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert out.returncode == 0, out.stderr[-1500:]
    assert json.loads(out.stdout.splitlines()[-1]) == {}
