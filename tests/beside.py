"""Every public verb beside a background run: the run must end as it does alone, the verb must be right or refused."""

import json
import os
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from subjects import TEXTS, content, digest, hashed, scored

from ftnb import (
    Chat,
    compare,
    doctor,
    encode,
    find_lr,
    finetune,
    generate,
    label_probs,
    load_lm,
    load_scores,
    merge_adapter,
    metric,
    open_ratings,
    preflight,
    rate,
    resume,
    rows_needed,
    sample_data,
    save_lm,
    score,
    show_tokens,
    stream,
    tiny_lm,
)
from ftnb.core.errors import FTNBError
from ftnb.core.machine import choose_device, seeded
from ftnb.core.texts import normalize_text
from ftnb.data.applications import dialogue, free_text, sentiment, summarization, translation
from ftnb.evaluation.metrics import text_metric
from ftnb.generation.likelihood import next_tokens
from ftnb.generation.windows import playground, strategies
from ftnb.kernels.nats import held_out_loss
from ftnb.models.adapters import add_lora, lora_config, without_adapter
from ftnb.models.from_scratch import new_lm, train_tokenizer
from ftnb.models.loading import random_gpt2
from ftnb.people.judge import judge
from ftnb.training.callbacks import HeldOut
from ftnb.training.learner import Callback, Learner
from ftnb.training.resuming import load_checkpoint

ROWS = [{"text": text, "summary": text[:9]} for text in TEXTS[:4]]
QUIET: dict[str, Any] = {"progress": False}


def model(lora: int | None = None) -> Any:
    """A model with dropout, and a chat template."""
    lm = tiny_lm("gpt2", chat=True, resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1)
    return add_lora(lm, lora) if lora else lm


class Weights(Callback):
    """Notes the weights that there were between two steps."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.end = ""

    def note(self, learner: Learner) -> None:
        parameters = sorted(learner.model.named_parameters())
        self.seen.add(hashed(b"".join(p.detach().numpy().tobytes() for _, p in parameters)))

    before_fit = after_step = note

    def after_fit(self, learner: Learner) -> None:
        """What came out, before the model is free for others."""
        held_out = next(c for c in learner.callbacks if isinstance(c, HeldOut))
        run = SimpleNamespace(lm=SimpleNamespace(model=learner.model), losses=learner.losses, valid=held_out.records)
        self.end = digest(run)


class Place:
    """What verbs work on."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.weights, self.lora = folder, Weights(), None
        folder.mkdir(parents=True, exist_ok=True)
        self.a, self.b = scored(0), scored(1)
        self.a.save(folder / "scores.csv")
        rate(self.a, self.b, file=folder / "ratings.db")
        self.run: Any = None

    def begin(self, background: bool, lora: int | None = None) -> Any:
        lm = model(lora)
        data = encode(lm, {"train": TEXTS, "valid": TEXTS[:2]})
        options: dict[str, Any] = {"epochs": 3, "lr": 1e-2, "batch_size": 2, "valid_every": 7}
        options |= {"checkpoint": self.folder / f"run-{background}", "callbacks": [self.weights]} if background else {}
        self.run = finetune(lm, data, background=background, **options, **QUIET)
        return self.run

    def saved(self, lm: Any) -> Any:
        """A model that is saved while it is trained is the model between two steps."""
        at = self.folder / f"saved-{id(lm)}"
        found = content(load_lm(save_lm(lm, at)))[0]
        if self.run and lm is self.run.lm:
            assert found in self.weights.seen, "the model was saved in the middle of a step"
            return True
        return found


def data_of(lm: Any) -> Any:
    return encode(lm, {"train": TEXTS[:6], "valid": TEXTS[:2]})


def drawn(seed: int) -> Any:
    torch.manual_seed(seed)
    return [torch.rand(3).tolist() for _ in range(40)]


Verb = Callable[[Place, Any], Any]
READING: dict[str, Verb] = {  # of any model, also of the one in training
    "generate": lambda p, lm: generate(lm, TEXTS[:3], 6, **QUIET),
    "generate, sampled": lambda p, lm: generate(lm, TEXTS[:3], 6, temperature=1.0, **QUIET),
    "generate, beams": lambda p, lm: generate(lm, TEXTS[:2], 4, num_beams=2, **QUIET),
    "stream": lambda p, lm: "".join(stream(lm, "To be", 6)),
    "Chat": lambda p, lm: Chat(lm, max_new_tokens=5)("Hello"),
    "label_probs": lambda p, lm: label_probs(lm, TEXTS[:3], [" yes", " no"]),
    "next_tokens": lambda p, lm: repr(next_tokens(lm, "To be")),
    "strategies": lambda p, lm: repr(strategies(lm, "To be", 4)),
    "playground": lambda p, lm: type(playground(lm, "To be", 4)).__name__,
    "score": lambda p, lm: score(lm, ROWS, summarization("text", "summary"), 3, **QUIET).rows["prediction"][:],
    "score, free text": lambda p, lm: score(lm, TEXTS[:3], free_text(), **QUIET).values,
    "held_out_loss": lambda p, lm: held_out_loss(lm, data_of(lm).valid),
    "encode": lambda p, lm: [data_of(lm).report, data_of(lm).train["input_ids"][:]],
    "show_tokens": lambda p, lm: repr(show_tokens(data_of(lm), 1)),
    "save_lm": lambda p, lm: p.saved(lm),
    "judge": lambda p, lm: len(judge(lm, p.a, p.b, file=p.folder / f"judged{id(lm)}.db").to_pandas()),
    "LM": lambda p, lm: repr(lm)[:20],
}
CHANGING: dict[str, Verb] = {  # refused for the model in training, or without any effect on it
    "find_lr": lambda p, lm: len(find_lr(lm, data_of(lm), steps=10).losses),
    "preflight": lambda p, lm: type(preflight(lm, data_of(lm))).__name__,
    "finetune": lambda p, lm: finetune(fresh(p, lm), data_of(lm), lr=1e-2, **QUIET).losses,
    "finetune, lora": lambda p, lm: finetune(fresh(p, lm), data_of(lm), lora=2, lr=1e-2, **QUIET).losses,
    "add_lora": lambda p, lm: content(add_lora(fresh(p, lm), 2))[0],
    "merge_adapter": lambda p, lm: content(merge_adapter(lm if training(p, lm) else model(2)))[0],
    "without_adapter": lambda p, lm: switched_off(lm if training(p, lm) else model(2)),
    "resume": lambda p, lm: resume(p.run.checkpointer.folder, **QUIET).status if training(p, lm) else "",
}
ELSEWHERE: dict[str, Verb] = {  # nothing to do with a model in training
    "tiny_lm": lambda p, lm: content(tiny_lm("gpt2", seed=3))[0],
    "new_lm": lambda p, lm: content(new_lm("llama", layers=1, width=32, heads=2, seed=2))[0],
    "random_gpt2": lambda p, lm: content(load_lm(random_gpt2(p.folder / "gpt2", n_layer=1, n_embd=8, n_head=1)))[0],
    "train_tokenizer": lambda p, lm: train_tokenizer(TEXTS, 300)(TEXTS[0]).input_ids,
    "load_lm": lambda p, lm: content(load_lm(save_lm(tiny_lm(seed=4), p.folder / "other"))),
    "finetune beside it": lambda p, lm: digest(finetune(other := model(), data_of(other), lr=1e-2, **QUIET)),
    "load_checkpoint": lambda p, lm: checkpoint_is_whole(p) if p.run and p.run.thread else True,
    "score_texts": lambda p, lm: scored(0).values,
    "compare": lambda p, lm: repr(compare(p.a, p.b)),
    "rows_needed": lambda p, lm: repr(rows_needed(5, disagreement=0.3)),
    "normalize_text": lambda p, lm: normalize_text("e\u0301\u200b"),
    "metric": lambda p, lm: metric("chrf").compute(predictions=TEXTS[:3], references=TEXTS[1:4]),
    "load_scores": lambda p, lm: load_scores(p.folder / "scores.csv").values,
    "rate": lambda p, lm: rate(p.a, p.b, file=p.folder / "ratings.db").progress,
    "open_ratings": lambda p, lm: open_ratings(p.folder / "ratings.db").progress,
    "doctor": lambda p, lm: type(doctor()).__name__,
    "choose_device lora_config text_metric": lambda p, lm: [
        str(choose_device().device),
        lora_config(4).r,
        type(text_metric("bleu")).__name__,
    ],
    "seeded": lambda p, lm: seeded_draw(),
    "sample_data": lambda p, lm: sample_data("sentiment")["test"][0],
    "dialogue free_text sentiment summarization translation": lambda p, lm: [
        *map(repr, (dialogue(), free_text(), summarization("text", "summary"))),
        repr(sentiment("text", "label", ["good", "bad"])),
        repr(translation("text", "summary", "English", "German")),
    ],
    "torch.rand": lambda p, lm: drawn(5),
    "numpy.random": lambda p, lm: [np.random.seed(1), np.random.rand(3).tolist()][1],
}
VERBS = READING | CHANGING | ELSEWHERE
REASONS = {  # public names that are not called beside a run, and why
    "FTNBError": "the error itself",
    "Task Encoded Run Scores Comparison Comparisons RowsNeeded": "what verbs give or take",
    "Completion Ratings TextMetric Decoding": "these, too",
    "Callback Learner StopTraining Monitor Tracker ScoreMonitor": "parts of a run",
    "chat_window": "a window; what it does is Chat",
    "hub_metric": "its script comes from a network",
    "benchmark": "its rows come from a network",
}
NOT_TRIED = {name: why for names, why in REASONS.items() for name in names.split()}


def training(p: Place, lm: Any) -> bool:
    return p.run is not None and lm is p.run.lm


def fresh(p: Place, lm: Any) -> Any:
    """The model in training; instead of another one, a new one each time."""
    return lm if training(p, lm) else model()


def switched_off(lm: Any) -> Any:
    with without_adapter(lm):
        return generate(lm, "To be", 4, **QUIET)


def seeded_draw() -> Any:
    with seeded(3):
        return torch.rand(3).tolist()


def checkpoint_is_whole(p: Place) -> bool:
    """The newest checkpoint of the run, if it has one, is what the model was after a step."""
    if not p.run.checkpoint:
        return True
    assert content(load_checkpoint(p.run.checkpointer.folder))[0] in p.weights.seen, "no state of the run"
    return True


def plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def alone(folder: Path, lora: int | None) -> str:
    torch.set_num_threads(1)
    return digest(Place(folder).begin(False, lora))


def beside(verb: str, folder: Path, lora: int | None, expected: str) -> dict[str, Any]:
    """Do something again and again while a run trains in the background; what was wrong, if anything was."""
    torch.set_num_threads(1)
    os.environ["FTNB_CACHE"] = str(folder / "cache")
    os.chdir(folder.parent)
    place, work, other = Place(folder), VERBS[verb], model()
    said: dict[str, Any] = {"calls": 0, "refused": 0, "wrong": ""}

    def call(lm: Any, want: Any) -> None:
        said["calls"] += 1
        try:
            got = plain(work(place, lm))
            if want is not None and got != want:
                said["wrong"] = said["wrong"] or f"another answer than alone: {got!r:.100}, not {want!r:.100}"
        except FTNBError as error:
            said["refused"], said["why"] = said["refused"] + 1, str(error)
        except BaseException as error:
            said["wrong"] = said["wrong"] or f"{type(error).__name__}: {error}"[:300]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = plain(work(place, other))
        run = place.begin(True, lora)
        while not run.done.is_set():
            if verb not in ELSEWHERE:
                call(run.lm, None)
            call(other, want)
            time.sleep(0.002)  # let the run have its turn
    try:
        run.wait(60)
    except BaseException as error:
        said["wrong"] = f"the run ended with {type(error).__name__}: {error}"[:300]
    if not said["wrong"] and (end := place.weights.end) != expected:
        said["wrong"] = f"the run ended otherwise: {end}, not {expected}"
    left = [t.name for t in threading.enumerate() if t is not threading.main_thread() and "ftnb" in t.name]
    return said | {"wrong": said["wrong"] or (f"still running: {left}" if left else "")}
