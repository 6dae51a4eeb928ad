"""What faults are injected into (`tests/faults.py`): each kind of thing that the library writes and reads again."""

import hashlib
import json
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from faults import EVENTS

from ftnb import (
    encode,
    finetune,
    generate,
    load_lm,
    load_scores,
    open_ratings,
    rate,
    resume,
    save_lm,
    score_texts,
    tiny_lm,
)
from ftnb.core.errors import FTNBError
from ftnb.models.loading import random_gpt2
from ftnb.training.checkpoints import checkpoints_in
from ftnb.training.learner import Callback, Learner

TEXTS = ["To be, or not to be, that is the question: " + "whether 'tis nobler " * (n % 4) for n in range(24)]


def hashed(*parts: bytes) -> str:
    return " ".join(hashlib.sha256(part).hexdigest()[:16] for part in parts)


def digest(run: Any) -> str:
    """A name for what came out of a run: hashes of weights, losses, and held-out losses."""
    weights = b"".join(p.detach().numpy().tobytes() for p in run.lm.model.parameters())
    return hashed(weights, json.dumps(run.losses).encode(), json.dumps(run.valid).encode())


class StopAt(Callback):
    """Press Ctrl-C after a step."""

    def __init__(self, step: int):
        self.step = step

    def after_step(self, learner: Learner) -> None:
        if learner.step == self.step:
            raise KeyboardInterrupt


class KillAt(StopAt):
    """Kill this process after a step."""

    def after_step(self, learner: Learner) -> None:
        if learner.step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class Subject:
    """Something that is written to a folder, and read again."""

    always_there = True  # the old or the new, also while it is being written
    keeps_others = True  # files that somebody puts beside its own

    def __init__(self, name: str) -> None:
        self.name = name

    def get_ready(self, folder: Path) -> None:
        """What belongs to the process, not to the folder."""
        torch.set_num_threads(1)  # many small processes
        os.environ["FTNB_CACHE"] = str(folder / "cache")

    def prepare(self, folder: Path) -> Any:
        """What is there before; how it reads, or None."""

    def write(self, folder: Path) -> Any:
        """Write, or go on with writing; what is there in the end."""

    def leave(self, folder: Path) -> None:
        """What lies there when files are damaged."""
        self.write(folder)

    def read(self, folder: Path) -> Any:
        """What is there."""

    def is_part(self, old: Any, value: Any, new: Any) -> bool:
        """Whether something is right between the old and the new."""
        return False

    def is_done(self, value: Any, new: Any, fault: str) -> bool:
        """Whether what `write` gave in spite of a fault is right."""
        return value == new


class Training(Subject):
    """A run of six steps with two checkpoints and held-out losses; it is begun, or gone on with."""

    def __init__(self, name: str, lm: Callable[[Path], Any] | None = None, kill: int = 5, **options: Any) -> None:
        super().__init__(name)
        self.options: dict[str, Any] = {"lr": 1e-2, "batch_size": 4, "valid_every": 2, "progress": False}
        self.options |= {"checkpoint_every": 2} | options
        self.model, self.kill = lm or dropping, kill

    def data(self, lm: Any) -> Any:
        return encode(lm, {"train": TEXTS, "valid": TEXTS[:2]})

    def given(self) -> dict[str, Any]:
        """What `resume` must be given."""
        return {}

    def answer(self, run: Any) -> Any:
        while run.thread and not run.done.is_set():
            try:
                run.wait(60)
            except KeyboardInterrupt:  # it goes on
                continue
        if run.error:
            raise run.error
        return [run.status, len(run.losses), digest(run)]

    def begin(self, folder: Path, **more: Any) -> Any:
        lm = self.model(folder)
        return finetune(lm, self.data(lm), checkpoint=folder / "run", **self.options | more)

    def write(self, folder: Path) -> Any:
        run = folder / "run"
        begun = (run / "run").exists() or checkpoints_in(run)
        return self.read(folder) if begun else self.answer(self.begin(folder))

    def read(self, folder: Path) -> Any:
        run = folder / "run"
        if not (run / "run").exists() and not checkpoints_in(run):  # it died before anything was there
            return self.answer(self.begin(folder))
        background = self.options.get("background", False)
        return self.answer(resume(run, progress=False, background=background, **self.given()))

    def leave(self, folder: Path) -> None:
        run = self.begin(folder, callbacks=[KillAt(self.kill)])
        if run.thread:
            run.wait(60)

    def is_done(self, value: Any, new: Any, fault: str) -> bool:
        return value == new or fault.startswith("Ctrl-C") and value[0] == "interrupted"


def dropping(folder: Path) -> Any:
    return tiny_lm("gpt2", resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1)


class Adapted(Training):
    """A run on an adapter that was trained before."""

    def prepare(self, folder: Path) -> None:
        lm = load_lm(save_lm(tiny_lm(), folder / "base"))
        finetune(lm, self.data(lm), lora=4, lr=1e-2, progress=False)
        save_lm(lm, folder / "adapter")


class Streamed(Training):
    def data(self, lm: Any) -> Any:
        rows = datasets.Dataset.from_list([{"text": text + "!" * n} for n, text in enumerate(TEXTS)])
        return encode(lm, rows.to_iterable_dataset(num_shards=3).shuffle(seed=1, buffer_size=5))

    def given(self) -> dict[str, Any]:
        lm = tiny_lm()
        return {"lm": lm, "data": self.data(lm)}


def content(lm: Any) -> Any:
    """What a model is: its weights, its tokens, its settings."""
    weights = b"".join(p.detach().numpy().tobytes() for _, p in sorted(lm.model.named_parameters()))
    settings = lm.model.generation_config.to_dict() if lm.model.can_generate() else {}
    settings.pop("transformers_version", None)
    tokens = [lm.tokenizer(text).input_ids for text in TEXTS[:3]]
    return [hashed(weights), settings, tokens, lm.tokenizer.eos_token, lm.tokenizer.chat_template]


class Saved(Subject):
    """A model, saved over an older one."""

    def prepare(self, folder: Path) -> Any:
        save_lm(tiny_lm(seed=1), folder / "model")
        return self.read(folder)

    def write(self, folder: Path) -> Any:
        save_lm(tiny_lm(chat=True), folder / "model")
        return self.read(folder)

    def read(self, folder: Path) -> Any:
        return content(load_lm(folder / "model"))


class SavedAdapter(Saved):
    def save(self, folder: Path, seed: int) -> Any:
        lm = load_lm(folder / "base")
        run = finetune(lm, encode(lm, TEXTS[:8]), lora=2, lr=1e-2, seed=seed, progress=False)
        if run.status == "interrupted":  # then there is nothing to save yet
            raise KeyboardInterrupt
        save_lm(lm, folder / "model")
        return self.read(folder)

    def prepare(self, folder: Path) -> Any:
        save_lm(tiny_lm(), folder / "base")
        return self.save(folder, 1)

    def write(self, folder: Path) -> Any:
        return self.save(folder, 0)


class RandomGPT2(Saved):
    def prepare(self, folder: Path) -> Any:
        random_gpt2(folder / "model", seed=1, n_layer=1, n_embd=8, n_head=1)
        return self.read(folder)

    def write(self, folder: Path) -> Any:
        random_gpt2(folder / "model", n_layer=1, n_embd=8, n_head=1)
        return self.read(folder)


def write_gguf(file: Path) -> None:
    """The smallest Llama that transformers reads: one layer of width 32, a vocabulary of 8 words."""
    from gguf import GGUFWriter

    out = GGUFWriter(str(file), "llama")
    out.add_block_count(1), out.add_context_length(64), out.add_embedding_length(32), out.add_feed_forward_length(32)
    out.add_head_count(2), out.add_head_count_kv(2), out.add_layer_norm_rms_eps(1e-5), out.add_vocab_size(8)
    out.add_tokenizer_model("gpt2")
    out.add_token_list([*"abcdef", "ab", "<|endoftext|>"]), out.add_token_merges(["a b"])
    out.add_token_types([1] * 7 + [3]), out.add_eos_token_id(7)
    draw = np.random.default_rng(0).normal
    names = [f"blk.0.{part}.weight" for part in ("attn_q", "attn_k", "attn_v", "attn_output")]
    names += [f"blk.0.ffn_{part}.weight" for part in ("up", "gate", "down")]
    for name, *shape in (("token_embd.weight", 8, 32), ("output.weight", 8, 32), *((name, 32, 32) for name in names)):
        out.add_tensor(name, draw(size=shape).astype(np.float32))
    for name in ("output_norm.weight", "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight"):
        out.add_tensor(name, draw(size=32).astype(np.float32))
    out.write_header_to_file(), out.write_kv_data_to_file(), out.write_tensors_to_file(), out.close()


class GGUF(Subject):
    """The cache of a model that was converted; the file itself is somebody else's, and lies elsewhere."""

    keeps_others = False  # what is in a cache can be made again

    def file(self, folder: Path) -> Path:
        return folder.parent / "tiny.gguf"

    def prepare(self, folder: Path) -> None:
        write_gguf(self.file(folder))

    def write(self, folder: Path) -> Any:
        lm = load_lm(self.file(folder))
        return [content(lm)[0], lm.tokenizer("abcab").input_ids]

    read = write


class EncodeCache(Subject):
    keeps_others = False

    def write(self, folder: Path) -> Any:
        data = encode(tiny_lm(), {"train": TEXTS, "valid": TEXTS[:2]}, cache=True)
        rows = [data.train["input_ids"][:], data.train["labels"][:], data.valid["input_ids"][:]]
        return [hashed(json.dumps(rows).encode()), repr(data)]

    read = write


class Answers(Subject):
    def write(self, folder: Path) -> Any:
        lm = tiny_lm()
        options: dict[str, Any] = {"temperature": 1.0, "seed": 3, "progress": False}
        return generate(lm, TEXTS[:6], 5, file=folder / "answers.jsonl", **options)

    read = write


def scored(seed: int) -> Any:
    texts = [f"{text} {n * seed}" for n, text in enumerate(TEXTS[:6])]
    return score_texts(texts, TEXTS[:6], metrics=("chrf", "exact_match"))


class SavedScores(Subject):
    kind = "csv"

    def content(self, scores: Any) -> Any:
        return [scores.values, scores.intervals, scores.rows.to_list()]

    def prepare(self, folder: Path) -> Any:
        scored(1).save(folder / f"scores.{self.kind}")
        return self.read(folder)

    def write(self, folder: Path) -> Any:
        scored(0).save(folder / f"scores.{self.kind}")
        return self.read(folder)

    def read(self, folder: Path) -> Any:
        return self.content(load_scores(folder / f"scores.{self.kind}"))


class SavedRatings(Subject):
    """A comparison of which two verdicts were stored, and the others come."""

    def verdicts(self, ratings: Any) -> Any:
        lines = ratings.to_pandas().drop(columns=["seconds", "at"]).to_dict("records")
        return [sorted(json.dumps(line, default=str) for line in lines), list(ratings.progress)]

    def rate(self, ratings: Any, most: int) -> Any:
        while (item := ratings.next()) and most:
            ratings.record(item, "AB"[str(item.B) > item.A], 1.0)
            most -= 1
        return ratings

    def prepare(self, folder: Path) -> Any:
        return self.verdicts(self.rate(rate(scored(0), scored(1), file=folder / "ratings.db"), 2))

    def write(self, folder: Path) -> Any:
        return self.verdicts(self.rate(open_ratings(folder / "ratings.db"), 99))

    def read(self, folder: Path) -> Any:
        return self.verdicts(open_ratings(folder / "ratings.db"))

    def is_part(self, old: Any, value: Any, new: Any) -> bool:
        return set(old[0]) <= set(value[0]) <= set(new[0])


class Sheet(Subject):
    """A sheet that is filled in. `read` has no file to go by but the sheet, and asks for what it says."""

    always_there = False  # there is none before the first

    def ratings(self, folder: Path) -> Any:
        return rate(scored(0), scored(1), file=Path(tempfile.mkdtemp()) / "ratings.db")

    def write(self, folder: Path) -> Any:
        file = folder / "sheet.csv"
        if not file.exists():
            self.ratings(folder).to_csv(file)
        return self.read(folder)

    def leave(self, folder: Path) -> None:
        self.write(folder)

    def read(self, folder: Path) -> Any:
        if not (folder / "sheet.csv").exists():
            raise FTNBError("sheet", "it was not written", "Write it.")  # nothing is there: it appears whole or not
        filled = self.ratings(folder).from_csv(folder / "sheet.csv", "anna")
        EVENTS.disarm()  # what follows is not the library
        return [len(filled.to_pandas()), (folder / "sheet.csv").read_text("utf-8-sig")]

    def is_part(self, old: Any, value: Any, new: Any) -> bool:
        return False


def lora(folder: Path) -> Any:
    return tiny_lm()


def trained_adapter(folder: Path) -> Any:
    return load_lm(folder / "adapter")


ALL: list[Subject] = [
    Training("full run, dropout"),
    Training("adapter, seed 3", lora, lora=4, seed=3),
    Adapted("adapter trained before", trained_adapter),
    Training("frozen layers", frozen=1),
    Training("early stop", patience=1, lr=0.01, valid_every=1, epochs=3),
    Streamed("stream", lora, max_steps=6, valid_every=None),
    Training("adafactor, cosine", optimizer="adafactor", schedule="cosine", label_smoothing=0.1),
    Training("background run", background=True),
    Training("no checkpoint yet", lora, kill=3, lora=2, seed=1, checkpoint_every=1000),
    Saved("saved model"),
    SavedAdapter("saved adapter"),
    RandomGPT2("random GPT-2"),
    GGUF("GGUF cache"),
    EncodeCache("encode cache"),
    Answers("answer file"),
    SavedScores("saved scores"),
    SavedRatings("ratings"),
    Sheet("sheet"),
]
SUBJECTS = {subject.name: subject for subject in ALL}
SKIPPED: dict[tuple[str, str], str] = {  # cells in which nothing can be promised, and why
    ("sheet", fault): "a sheet is for people to edit" for fault in ("flipped bit", "cut file", "other file")
}
