"""Check and measure ftnb's whole CUDA path, in one go and without a network: models get random weights.

    python nbs/benchmarks/cuda_check.py --quick              # checks and the main measurements, in about 8 minutes
    python nbs/benchmarks/cuda_check.py --only sync compile  # single parts, see --list
    python nbs/benchmarks/cuda_check.py --device cpu --tiny  # every branch on tiny models: does the script work?

Each line says ok, FAILED, note or skipped, with the numbers; the last lines are the table of measurements. JSON lines
go to --out, or to `cuda.jsonl` in the folder $OUT. What is missing (TRL, liger-kernel, cut-cross-entropy) is skipped.
"""

from __future__ import annotations

import argparse, contextlib, dataclasses, functools, gc, importlib.util, inspect, io, json, os, resource, statistics
import subprocess, sys, tempfile, time, traceback, warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
if Path(sys.path[0]) == Path(__file__).resolve().parent:
    sys.path[0] = str(ROOT)  # a checkout that is not installed; and torch looks for a package `cuda`, which is not this
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # lets the check of `resume` ask for determinism
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import datasets
import numpy as np
import torch
import torch.nn.functional as F

from ftnb import Callback, Encoded, finetune, free_text, held_out_loss, lora_config, new_lm, resume
from ftnb.core.machine import version_of
from ftnb.data.batches import IGNORE, pack, pack_shared
from ftnb.kernels import attention, loss as loss_kernel
from ftnb.kernels.attention import compute_context
from ftnb.kernels.loss import linear_cross_entropy
from ftnb.kernels.nats import can_pack, packed_loss, padded_loss
from ftnb.models.from_scratch import byte_tokenizer
from ftnb.models.lm import LM, count_parameters
from ftnb.training import learner, setup

# dense bf16 TFLOP/s, as the vendor states them
PEAKS = {"H100 PCIe": 756, "H100": 989, "H200": 989, "A100": 312, "L40S": 362, "L4": 121, "A10": 125}
Found = Iterator[tuple[str, "bool | str", str, dict]]  # what, ok or a status, in words, numbers


@dataclass
class Job:
    """What is asked for, and what is found."""

    device: torch.device
    tiny: bool
    quick: bool
    repeats: int
    until: float  # by `time.monotonic`: nothing is begun after it
    out: Path | None
    rows: list[dict] = field(default_factory=list)

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def record(self, part: str, what: str, ok: bool | str, words: str, numbers: dict | None = None) -> None:
        """Print a line, and keep it."""
        status = ok if isinstance(ok, str) else "ok" if ok else "FAILED"
        print(f"{status:<8}{part}: {what}: {words}", flush=True)
        self.rows.append(dict(part=part, what=what, status=status, words=words, numbers=numbers or {}))
        if self.out:
            with self.out.open("a") as f:
                f.write(json.dumps(self.rows[-1]) + "\n")

    def wait(self) -> None:
        """Until the GPU has done what it was told."""
        if self.cuda:
            torch.cuda.synchronize()


# Models and rows


def small_lm(job: Job, architecture: str, autocast: torch.dtype | None = torch.bfloat16, **config: Any) -> LM:
    """A random model that is small, but has the shapes (heads of 64, grouped keys) that kernels care about."""
    width, layers, heads = (64, 2, 4) if job.tiny else (512, 4, 8)
    if architecture != "gpt2":
        config = dict(intermediate_size=2 * width, num_key_value_heads=2, head_dim=width // heads) | config
    lm = new_lm(architecture, layers=layers, width=width, heads=heads, context=1024, device=job.device, **config)
    return dataclasses.replace(lm, placement=dataclasses.replace(lm.placement, autocast=autocast))


def uneven_rows(n: int, mean: int, longest: int, vocabulary: int, seed: int = 0, prompts: bool = False) -> list[dict]:
    """Rows of lognormal lengths, the longest among them; each counts up in a step of its own, which can be learned."""
    chance = np.random.default_rng(seed)
    sizes = chance.lognormal(0, 0.8, n)
    sizes = np.clip(sizes * mean / sizes.mean(), 8, longest).astype(int)
    sizes[n // 2] = longest
    rows = []
    for size in sizes:
        ids = ((np.arange(size) * chance.integers(1, 7) + chance.integers(vocabulary)) % (vocabulary - 5) + 5).tolist()
        unlearned = size // 3 if prompts else 0
        rows.append({"input_ids": ids, "labels": [IGNORE] * unlearned + ids[unlearned:]})
    return rows


def encoded(lm: LM, rows: list[dict], valid: list[dict] | None = None) -> Encoded:
    """Token rows as `encode` returns them."""
    empty = {"input_ids": [], "labels": []}
    some = datasets.Dataset.from_list(valid) if valid else datasets.Dataset.from_dict(empty)
    return Encoded(datasets.Dataset.from_list(rows), some, {}, lm.tokenizer, free_text())


def check_rows(job: Job, n: int = 32, seed: int = 0) -> list[dict]:
    """Rows for the checks."""
    mean, longest = (24, 60) if job.tiny else (200, 800)
    return uneven_rows(n, mean, longest, 250, seed, prompts=True)


def train(lm: LM, data: Encoded, **settings: Any) -> Any:
    """`finetune`, quietly."""
    return finetune(lm, data, progress=False, **settings)


# Forcing a path


@torch.compiler.disable
def varlen_by_hand(
    q: Any, k: Any, v: Any, starts: Any, longest: int, keys: tuple | None, scale: float, window: int | None
) -> Any:
    """What the CUDA kernel computes, so that its callers can be tried without one."""
    lengths = starts.diff().tolist()
    if keys:
        k, v = (t.index_select(2, keys[0]) for t in (k, v))
    of_keys = keys[1].diff().tolist() if keys else lengths
    pieces = zip(q.split(lengths, 2), k.split(of_keys, 2), v.split(of_keys, 2))
    done = [attention._document_attention(*p, scale, None, window, 0.0) for p in pieces if p[0].shape[2]]
    return torch.cat(done, 2).transpose(1, 2)


@contextlib.contextmanager
def forced(job: Job, varlen: bool) -> Iterator[Counter]:
    """Use the one-kernel attention (on a CPU a stand-in), or the fallback for older cards; count the kernel's calls."""
    calls: Counter = Counter()
    real = attention._varlen if job.cuda else varlen_by_hand

    def counted(*args: Any) -> Any:
        calls["varlen"] += 1
        return real(*args)

    usable = mock.patch.object(attention, "_use_varlen", lambda device: varlen)
    with usable, mock.patch.object(attention, "_varlen", counted):
        yield calls


def loss_and_gradient(
    lm: LM, rows: list[dict], packed: bool, shape: tuple | None = None, shared: bool = False
) -> tuple[float, torch.Tensor]:
    """The mean loss of a batch and its gradient, all parameters in one vector, in float64 on the CPU."""
    batch = next(pack_shared(rows, (), 10**9)) if shared else pack(rows, shape=shape)
    batch = batch.to(lm.device)
    lm.model.zero_grad()
    with compute_context(lm, packed):
        loss = (packed_loss if packed else padded_loss)(lm.model, batch) / batch.supervised
        loss.backward()
    grads = [p.grad.flatten().cpu().double() for p in lm.model.parameters() if p.grad is not None]
    return loss.item(), torch.cat(grads)


def off(a: torch.Tensor, b: torch.Tensor) -> float:
    """How far `a` is from `b`, relative to `b`."""
    return ((a - b).norm() / b.norm()).item()


# The checks

NARROW = {"sliding_window": 16}
ARCHITECTURES: dict[str, dict] = {"llama": {}, "gpt2": {}, "qwen3": {}, "mistral": NARROW, "gemma2": NARROW}


def exact(lm: LM) -> LM:
    """The same model without autocast."""
    return dataclasses.replace(lm, placement=dataclasses.replace(lm.placement, autocast=None))


def compared(job: Job, lm: LM, rows: list[dict]) -> dict:
    """The packed model beside the padded one, in both formats; distances are to the padded float32 model."""
    reference, gradient = loss_and_gradient(exact(lm), rows, packed=False)
    full, padded = loss_and_gradient(exact(lm), rows, packed=True)[1], loss_and_gradient(lm, rows, packed=False)[1]
    with contextlib.nullcontext() if job.cuda else forced(job, varlen=True):
        fits = can_pack(lm)
    with forced(job, varlen=True) as calls:
        loss, mine = loss_and_gradient(lm, rows, packed=True)
    return dict(gradient=off(mine, gradient), padded=off(padded, gradient), fp32=off(full, gradient), packs=fits,
                loss=loss, reference=reference, calls=calls["varlen"])


def check_attention(job: Job) -> Found:
    """(1) Packed rows are no further from the padded float32 model than the padded bfloat16 model is."""
    rows = check_rows(job, 8)
    for name, config in ARCHITECTURES.items():
        lm = small_lm(job, name, **config)
        lm.model.eval()  # no dropout
        n = compared(job, lm, rows)
        apart = abs(n["loss"] / n["reference"] - 1)
        ok = n["packs"] and n["fp32"] < 1e-4 and n["gradient"] < 1.5 * n["padded"] + 1e-3 and apart < 5e-3
        ok = ok and bool(n["calls"]) == (name != "gemma2")  # the kernel has no soft cap
        refused = "" if n["packs"] else ", REFUSED by can_pack"
        kernel = ("one kernel" if n["calls"] else "document by document") + refused
        usual = f"padded bf16 {n['padded']:.1e}, packed fp32 {n['fp32']:.1e}"
        yield name, ok, f"{kernel}; gradient off by {n['gradient']:.1e} ({usual}), loss by {apart:.1e}", n


def check_fallback(job: Job) -> Found:
    """(2) Older cards attend document by document: the same numbers."""
    rows = check_rows(job, 8, seed=1)
    for name in ("llama", "mistral"):
        lm = small_lm(job, name, **ARCHITECTURES[name])
        with forced(job, varlen=True) as calls:
            loss, gradient = loss_and_gradient(lm, rows, packed=True)
        with forced(job, varlen=False) as none:
            other, fallback = loss_and_gradient(lm, rows, packed=True)
        far = off(fallback, gradient)
        ok = far < 2e-2 and abs(other / loss - 1) < 2e-3 and calls["varlen"] > 0 and not none["varlen"]
        words = f"gradient off by {far:.1e}, loss by {abs(other / loss - 1):.1e}"
        yield name, ok, words, dict(gradient=far, loss=loss, other=other)


def check_trees(job: Job) -> Found:
    """(2b) What rows begin with alike is computed once: the same numbers, by the kernel and piece by piece."""
    begin, rows = check_rows(job, 1, seed=5)[0], check_rows(job, 8, seed=3)
    rows = [{k: begin[k][:40] + row[k] for k in row} for row in rows]
    for name, config in ARCHITECTURES.items():
        lm = small_lm(job, name, **config)
        lm.model.eval()  # no dropout
        separate, gradient = loss_and_gradient(lm, rows, packed=True)
        for varlen in (True, False):
            with forced(job, varlen) as calls:
                loss, mine = loss_and_gradient(lm, rows, packed=True, shared=True)
            far, apart = off(mine, gradient), abs(loss / separate - 1)
            kernel = "one kernel" if calls["varlen"] else "piece by piece"
            ok = far < 2e-2 and apart < 2e-3 and bool(calls["varlen"]) == (varlen and name != "gemma2")
            words = f"{kernel}; gradient off by {far:.1e}, loss by {apart:.1e}"
            yield f"{name}, {kernel}", ok, words, dict(gradient=far, loss=loss, separate=separate)


def check_filled(job: Job) -> Found:
    """(6b) Batches filled up to one shape, as `compile=True` makes them, also where the kernel cannot be used."""
    rows = check_rows(job, 6, seed=2)
    shape = (sum(len(r["input_ids"]) for r in rows) + 16, 9)
    for name, training in (("llama", False), ("gemma2", False), ("gpt2", True)):
        lm = small_lm(job, name)
        lm.model.train(training)  # GPT-2 drops attention weights in training, which the kernel cannot do
        with forced(job, varlen=True):
            loss, gradient = loss_and_gradient(lm, rows, packed=True)
            try:
                filled, other = loss_and_gradient(lm, rows, packed=True, shape=shape)
            except RuntimeError as e:
                yield name, False, f"a batch of fixed shape fails: {str(e)[:90]}", dict(error=str(e)[:500])
                continue
        far = off(other, gradient)
        words = f"gradient off by {far:.1e}, loss {loss:.4f} and {filled:.4f}"
        yield name, far < 2e-2 or training, words, dict(gradient=far)


def timed(job: Job, work: Callable[[], Any], times: int) -> tuple[float, float]:
    """Median milliseconds, and peak GiB beside what was there before."""
    seen, before = [], 0
    for n in range(times + 1):  # the first one warms up
        job.wait()
        if job.cuda:
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        work()
        job.wait()
        seen += [time.perf_counter() - start] if n else []
    peak = torch.cuda.max_memory_allocated() - before if job.cuda else 0
    return 1e3 * statistics.median(seen), peak / 2**30


def plain_loss(h: torch.Tensor, w: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The ordinary computation: all logits at once."""
    return F.cross_entropy(F.linear(h, w).float(), t, reduction="sum")


def under_autocast(job: Job, loss: Callable) -> Callable:
    """A loss as training computes it: float32 operands, bfloat16 products."""

    def cast(*args: torch.Tensor) -> torch.Tensor:
        with torch.autocast(job.device.type, torch.bfloat16, cache_enabled=False):
            return loss(*args)

    return cast


def gathered_in_16(loss: Callable) -> Callable:
    """A candidate: as under autocast, but the output matrix's gradient comes from bfloat16 products, in float32."""

    def accumulate(gz: Any, h: Any, weight: Any, gh: Any, gw: Any, gb: Any, at: int) -> None:
        gz, h = gz.bfloat16(), h.bfloat16()
        gh[at : at + len(h)] = gz @ weight
        with torch.autocast(gw.device.type, enabled=False):
            if gw.is_cuda:
                torch.addmm(gw, gz.T, h, out_dtype=gw.dtype, out=gw)
            else:
                gw += gz.T @ h

    def patched(*args: torch.Tensor) -> torch.Tensor:
        with mock.patch.object(loss_kernel, "_accumulate", accumulate):
            return loss(*args)

    return patched


def liger_loss() -> Callable | None:
    """liger-kernel's fused linear cross-entropy, if it is installed."""
    try:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy as fused
    except Exception:  # it may be there and not load
        return None
    first = lambda x: x[0] if isinstance(x, tuple) else x
    return lambda h, w, t: first(fused(h, w, t, reduction="sum"))


def cut_loss() -> Callable | None:
    """cut-cross-entropy, if it is installed."""
    try:
        from cut_cross_entropy import linear_cross_entropy as cut
    except Exception:
        return None
    return lambda h, w, t: cut(h, w, t, reduction="sum")


def loss_ways(job: Job) -> dict[str, tuple[Callable | None, torch.dtype]]:
    """Name: how it is computed, and from operands of which format."""
    half, full = torch.bfloat16, torch.float32
    chunked = lambda n: functools.partial(linear_cross_entropy, chunk=n)
    ways: dict[str, tuple[Callable | None, torch.dtype]] = {
        "F.cross_entropy, fp32": (plain_loss, full), "ftnb, fp32": (linear_cross_entropy, full),
        "F.cross_entropy, autocast": (under_autocast(job, plain_loss), full),
        "ftnb, autocast": (under_autocast(job, linear_cross_entropy), full),
        "F.cross_entropy, bf16": (plain_loss, half), "ftnb, bf16": (linear_cross_entropy, half)}
    # candidates for ftnb, not what it does: larger chunks, and the output matrix's gradient from 16-bit products
    sizes = (16,) if job.tiny else (512, 2048)
    ways |= {f"ftnb, bf16, chunks of {n}": (chunked(n), half) for n in sizes}
    ways["ftnb, autocast, 16-bit gradient"] = under_autocast(job, gathered_in_16(linear_cross_entropy)), full
    ways |= {f"ftnb, autocast, 16-bit gradient, chunks of {n}": (under_autocast(job, gathered_in_16(chunked(n))), full)
             for n in sizes}
    return ways | {"liger-kernel, bf16": (liger_loss() if job.cuda else None, half),
                   "cut-cross-entropy, bf16": (cut_loss() if job.cuda else None, half)}


def operands(job: Job, size: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, an output matrix and targets, all random."""
    positions, hidden, vocabulary = size
    make = torch.Generator(job.device).manual_seed(0)
    draw = functools.partial(torch.randn, device=job.device, generator=make)
    targets = torch.randint(vocabulary, (positions,), device=job.device, generator=make)
    return draw(positions, hidden), draw(vocabulary, hidden) * hidden**-0.5, targets


def gradients(loss: Callable, h: torch.Tensor, w: torch.Tensor, t: torch.Tensor) -> tuple[float, Any, Any]:
    """Mean loss and both gradients."""
    h, w = h.detach().requires_grad_(), w.detach().requires_grad_()
    total = loss(h, w, t)
    gh, gw = torch.autograd.grad(total, (h, w))
    return total.detach() / len(t), gh, gw


def tried(job: Job, loss: Callable, near: float, given: tuple, reference: tuple) -> tuple[bool, str, dict]:
    """Distance, time and memory of one way."""
    mine = gradients(loss, *given)
    far = max(off(a.float(), b.float()) for a, b in zip(mine[1:], reference[1:]))
    apart = abs(mine[0].item() / reference[0].item() - 1)
    del mine
    ms, gib = timed(job, lambda: gradients(loss, *given), 2 if job.tiny else 8)
    words = f"gradients off by {far:.1e}; {ms:.2f} ms, {gib:.2f} GiB"
    return far < near and apart < 1e-2, words, dict(gradient=far, loss=apart, ms=ms, gib=gib)


def check_cross_entropy(job: Job) -> Found:
    """(3) The loss without a logits matrix, beside others: the same gradients; time and memory of each."""
    for size in [(64, 32, 300)] if job.tiny else [(4096, 2048, 128256), (4096, 768, 50257)]:
        h, w, t = operands(job, size)
        reference, speed = gradients(plain_loss, h, w, t), {}
        for name, (loss, dtype) in loss_ways(job).items():
            what, near = f"{name} {size}", 1e-4 if name.endswith("fp32") else 2e-2
            if loss is None:
                yield what, "skipped", "not installed, or no CUDA", {}
                continue
            try:
                ok, words, n = tried(job, loss, near, (h.to(dtype), w.to(dtype), t), reference)
            except Exception as e:  # one that fails must not end the others
                ours = name in ("ftnb, fp32", "ftnb, bf16", "ftnb, autocast")
                yield what, False if ours else "note", repr(e)[:150], {}
                continue
            speed[name] = n["ms"]
            yield what, ok, words, n
        in_16 = {k: v for k, v in speed.items() if "fp32" not in k}
        yield f"fastest {size}", "note", min(in_16, key=in_16.__getitem__), speed


def check_bf16(job: Job) -> Found:
    """(4) Training in bfloat16 ends where training in float32 does."""
    losses = {}
    for name, fmt in (("fp32", None), ("bf16", torch.bfloat16)):
        lm = small_lm(job, "llama", fmt)
        data = encoded(lm, check_rows(job, 64), check_rows(job, 16, seed=9))
        before = held_out_loss(lm, data.valid)
        train(lm, data, epochs=1 if job.tiny else 5, lr=1e-3)
        losses[name] = held_out_loss(exact(lm), data.valid)
    gap = abs(losses["bf16"] / losses["fp32"] - 1)
    words = f"{before:.4f} → fp32 {losses['fp32']:.4f}, bf16 {losses['bf16']:.4f} ({gap:.1e} apart)"
    yield "held-out loss", gap < 2e-2 and losses["bf16"] < before, words, losses | dict(before=before)


# Does the host wait?


def our_line() -> str:
    """Which lines of ftnb, and of what it calls, are being run."""
    frames = [f for f in traceback.extract_stack() if Path(f.filename) != Path(__file__)]
    ours = [f for f in frames if ROOT / "ftnb" in Path(f.filename).parents][-1:]
    last = [f for f in frames if "/torch/" not in f.filename and not f.filename.endswith("warnings.py")][-1:]
    return " → ".join(dict.fromkeys(f"{Path(f.filename).name}:{f.lineno} {f.line}" for f in [*ours, *last]))


class Waits(torch.utils._python_dispatch.TorchDispatchMode):
    """On a CPU: collect the operations that would have the host wait for a GPU."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.records: Counter = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.__name__.split(".")[0] in self.NAMES and not (line := our_line()).startswith("batches.py"):
            self.records[line] += 1  # batches are laid out on the CPU, whatever the device
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def watched(job: Job) -> Iterator[Counter]:
    """Collect the lines at which the host waits for the GPU."""
    if not job.cuda:
        with Waits() as mode:
            yield mode.records
        return
    seen: Counter = Counter()

    def record(message: Any, *args: Any, **kwargs: Any) -> None:
        if "called a synchronizing" in str(message):
            seen[our_line()] += 1

    with warnings.catch_warnings(), mock.patch.object(warnings, "showwarning", record):
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield seen
        finally:
            torch.cuda.set_sync_debug_mode("default")


class Watching(Callback):
    """Watch steps, once the first ones have made what they need."""

    def __init__(self, job: Job, first: int = 3, last: int = 7):
        self.job, self.first, self.last, self.stack = job, first, last, contextlib.ExitStack()
        self.records: Counter = Counter()

    def after_step(self, learner: Any) -> None:
        if learner.step == self.first:
            self.records = self.stack.enter_context(watched(self.job))
        if learner.step == self.last:
            self.stack.close()

    def after_fit(self, learner: Any) -> None:
        self.stack.close()


@contextlib.contextmanager
def waiting_allowed(job: Job) -> Iterator[None]:
    """What the learner does by design, one step late: have a look at the losses that have come."""
    get = learner._PendingLoss.get

    def quiet(self: Any) -> list[float]:
        if not job.cuda:
            return get(self)
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("default")
        try:
            return get(self)
        finally:
            torch.cuda.set_sync_debug_mode(mode)

    with mock.patch.object(learner._PendingLoss, "get", quiet):
        yield


def check_sync(job: Job) -> Found:
    """(5) Within a step the host never waits for the GPU."""
    with watched(job) as control:
        torch.ones(1, device=job.device).item()
    yield "control", bool(control), "a line that waits is noticed", dict(control)
    for name, settings in (("llama", {}), ("gpt2", {}), ("llama", {"lora": 8}), ("llama", {"frozen": 1, "epochs": 2})):
        lm, watching = small_lm(job, name, **{"attention_dropout": 0.0} if name == "llama" else {}), Watching(job)
        data = encoded(lm, check_rows(job, 64))
        with waiting_allowed(job):
            train(lm, data, callbacks=[watching], **settings)
        what = f"{name} {settings or ''}".strip()
        lines = "; ".join(f"{n}x {line}" for line, n in watching.records.most_common(4))
        yield what, not watching.records, lines or "no wait in 4 steps", dict(watching.records)
    if job.cuda:
        yield from sync_error(job)


def sync_error(job: Job) -> Found:
    """The same, where waiting is an error."""

    class Strict(Callback):
        def after_step(self, learner: Any) -> None:
            torch.cuda.set_sync_debug_mode("error" if 3 <= learner.step < 7 else "default")

    lm = small_lm(job, "llama")
    try:
        with waiting_allowed(job):
            train(lm, encoded(lm, check_rows(job, 64)), callbacks=[Strict()])
        yield "as an error", True, "a run went through", {}
    except RuntimeError as e:
        at = [f for f in traceback.extract_tb(e.__traceback__) if Path(f.filename) != Path(__file__)][-1]
        yield "as an error", False, f"{Path(at.filename).name}:{at.lineno} {at.line}: {str(e)[:80]}", {}
    finally:
        torch.cuda.set_sync_debug_mode("default")


# Compilation, memory, continuing, float16


class Recompiles(Callback):
    """Count how many graphs have been compiled, step by step."""

    def __init__(self) -> None:
        self.records: list[int] = []

    def after_step(self, learner: Any) -> None:
        self.records.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@contextlib.contextmanager
def as_on_cuda(job: Job) -> Iterator[None]:
    """On a CPU: filled-up batches and the one-kernel attention, as there; the compiler stops short of machine code."""
    if job.cuda:
        yield
        return
    real, steps = torch.compile, setup.Steps
    simple = mock.patch.object(torch, "compile", lambda model, **_: real(model, backend="eager"))
    filled = mock.patch.object(setup, "Steps", lambda data, s, packed, *_: steps(data, s, packed, s.compile))
    with simple, filled, forced(job, varlen=True):
        yield


def eager_and_compiled(job: Job, body: Callable) -> tuple[list[float], list[float], list[int], float]:
    """Losses of both, graphs after each step, seconds of the compiled run; `body` is called with what is compiled."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    real, seen, losses = attention.compile_body, Recompiles(), []
    for yes in (False, True):
        lm, start = small_lm(job, "llama"), time.perf_counter()
        data = encoded(lm, check_rows(job, 48))
        with as_on_cuda(job), mock.patch.object(setup, "compile_body", lambda model: body(real(model))):
            losses.append(train(lm, data, lr=1e-4, compile=yes, callbacks=[seen] * yes).losses)
    return *losses, seen.records, time.perf_counter() - start  # type: ignore[return-value]


def check_compile(job: Job) -> Found:
    """(6) Compiled: nothing is compiled again after the first step, and the losses are those of eager training."""
    hidden = lambda body: lambda **given: body(**given)  # something whose truth can be asked for
    for what, body in (("as it is", lambda body: body), ("in a function", hidden)):
        try:
            eager, losses, graphs, seconds = eager_and_compiled(job, body)
        except Exception as e:
            yield what, False, f"{type(e).__name__}: {str(e)[:150]}", {}
            continue
        gap = max(abs(a / b - 1) for a, b in zip(losses, eager))
        again, breaks = graphs[-1] - graphs[0], dict(torch._dynamo.utils.counters["graph_break"])
        ok = gap < 5e-3 and graphs[0] > 0 and not again
        words = f"{graphs[0]} graphs after a step, {again} more after {len(graphs)}, {sum(breaks.values())} breaks"
        yield what, ok, f"{words}; losses {gap:.1e} apart; {seconds:.0f} s", dict(graphs=graphs, breaks=breaks, gap=gap)
        return


@contextlib.contextmanager
def little_memory(job: Job, share: float, most: int) -> Iterator[None]:
    """A GPU with less memory; on a CPU, a loss that takes no more than so many tokens at a time."""
    if job.cuda:
        torch.cuda.set_per_process_memory_fraction(share, job.device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, job.device)
        return
    real = setup.packed_loss

    def hungry(model: Any, batch: Any, **how: Any) -> Any:
        if batch.computed > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, batch, **how)

    with mock.patch.object(setup, "packed_loss", hungry):
        yield


def fresh_memory(job: Job) -> None:
    """Give back what nobody uses."""
    gc.collect()
    if job.cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def memory_run(job: Job, micro_tokens: int) -> tuple[Any, int, list[str]]:
    """A run of few large steps; what was reserved at most, and its warnings."""
    fresh_memory(job)
    lm = small_lm(job, "llama", intermediate_size=128 if job.tiny else 4096)
    data = encoded(lm, check_rows(job, 64))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run = train(lm, data, batch_size=32, micro_tokens=micro_tokens)
    peak = torch.cuda.max_memory_reserved() if job.cuda else 0
    return run, peak, [str(w.message) for w in told]


def check_memory(job: Job) -> Found:
    """(7) Memory runs out: the run goes on in smaller batches, warns, and the losses are the same."""
    large, small = (10_000, 200) if job.tiny else (64_000, 1000)
    (few, low), high = ((run := memory_run(job, small))[0].losses, run[1]), memory_run(job, large)[1]
    del run
    total = torch.cuda.get_device_properties(job.device).total_memory if job.cuda else 1
    with little_memory(job, (low + high) / 2 / total, most=3 * small):
        run, peak, told = memory_run(job, large)
    gap = max(abs(a / b - 1) for a, b in zip(run.losses, few))
    warned = [w for w in told if "out of memory" in w]
    words = (f"{low / 2**30:.2f} GiB with {small} tokens at a time, {high / 2**30:.2f} with {large}; limited half-way: "
             f"{run.status}, {run.learner.token_limit} tokens, losses {gap:.1e} apart, warnings: {len(warned)}")
    yield "llama", run.status == "finished" and bool(warned) and gap < 5e-3, words, dict(
        low=low, high=high, peak=peak, most=run.learner.token_limit, gap=gap, warned=warned)


class Interrupt(Callback):
    """As if somebody had pressed ■."""

    def __init__(self, step: int):
        self.step = step

    def after_step(self, learner: Any) -> None:
        if learner.step == self.step:
            raise KeyboardInterrupt


def weights(lm: LM) -> torch.Tensor:
    """All weights in one vector."""
    return torch.cat([p.detach().flatten().cpu().double() for p in lm.model.parameters()])


def whole_and_resumed(job: Job) -> tuple[float, float]:
    """How far a second whole run, and an interrupted and resumed one, are from a whole run."""
    begin = lambda: small_lm(job, "llama", torch.bfloat16 if job.cuda else None)  # as `resume` would choose
    ends = []
    for _ in range(2):
        lm = begin()
        train(lm, encoded(lm, check_rows(job, 48)), lr=1e-3)
        ends.append(weights(lm))
    with tempfile.TemporaryDirectory() as folder:
        lm = begin()
        run = train(lm, encoded(lm, check_rows(job, 48)), lr=1e-3, checkpoint=folder, callbacks=[Interrupt(3)])
        assert (run.status, run.learner.step) == ("interrupted", 3)
        ends.append(weights(resume(folder, progress=False).lm))
    return tuple((end - ends[0]).abs().max().item() for end in ends[1:])  # type: ignore[return-value]


def check_resume(job: Job) -> Found:
    """(8) Interrupted and resumed is bit-identical, unless kernels are not deterministic: whole runs differ too."""
    for what, strict in (("as it is", False), ("deterministic kernels", True)):
        torch.use_deterministic_algorithms(strict, warn_only=True)
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                twice, resumed = whole_and_resumed(job)
        finally:
            torch.use_deterministic_algorithms(False)
        refused = sorted({str(w.message)[:90] for w in told if "deterministic" in str(w.message)})
        words = f"resumed: a weight differs by up to {resumed:.1e}" if resumed else "bit-identical"
        words += f"; NOT DETERMINISTIC: two whole runs differ by up to {twice:.1e}" if twice else ""
        numbers = dict(whole=twice, resumed=resumed, refused=refused)
        yield what, resumed <= 4 * twice, "; ".join([words, *refused]), numbers


def check_float16(job: Job) -> Found:
    """(9) float16 with a GradScaler."""
    lm = small_lm(job, "llama", torch.float16)
    data = encoded(lm, check_rows(job, 64))
    run = train(lm, data, lr=1e-3)
    scaler, finite = run.learner.scaler, all(np.isfinite(run.losses)) and bool(weights(lm).isfinite().all())
    if scaler is None:
        yield "llama", False, "there is no GradScaler", {}
        return
    first, last = run.losses[0], run.losses[-1]
    words = f"losses {first:.4f} → {last:.4f} in {len(run.losses)} steps, scale {scaler.get_scale():.0f}"
    yield "llama", finite and last < first, words, dict(losses=run.losses)


def check_overheads(job: Job) -> Found:
    """What the host does beside the GPU: per batch, per step, and the speed that a run reports."""
    lm = small_lm(job, "llama")
    rows = check_rows(job, 32)

    def switching() -> None:
        with attention.packed_attention(lm.model):
            pass

    works = {"switching attention, a batch": switching, "packing 8 rows": lambda: pack(rows[:8])}
    for what, work in works.items():
        ms, _ = timed(job, work, 20)
        yield what, "note", f"{ms:.3f} ms", dict(ms=ms)
    start = time.perf_counter()
    run = train(lm, encoded(lm, rows))
    job.wait()
    took = time.perf_counter() - start
    words = f"run.seconds {run.seconds:.3f}, by the clock {took:.3f} (setting up included)"
    yield "reported time", "note", words, dict(said=run.seconds, took=took, steps=len(run.losses))


class Profiled(Callback):
    """Profile a few steps."""

    def __init__(self, job: Job, first: int, last: int):
        kinds = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * job.cuda
        self.job, self.first, self.last, self.profile = job, first, last, torch.profiler.profile(activities=kinds)
        self.seconds = 0.0

    def after_step(self, learner: Any) -> None:
        if learner.step in (self.first, self.last):
            self.job.wait()
        if learner.step == self.first:
            self.profile.start()
            self.seconds = time.perf_counter()
        if learner.step == self.last:
            self.seconds = time.perf_counter() - self.seconds
            self.profile.stop()


def check_profile(job: Job) -> Found:
    """Where the time of a step goes, on the SmolLM2 shape: how busy the GPU is, and with what."""
    lm = shaped_lm("smollm2-135m", job.tiny, str(job.device))
    first, last, mean, longest = (1, 2, 24, 60) if job.tiny else (4, 8, 300, 2048)
    seen = Profiled(job, first, last)
    train(lm, encoded(lm, uneven_rows(8 * (last + 1), mean, longest, 250)), callbacks=[seen])
    spent = lambda e: e.self_device_time_total if job.cuda else e.self_cpu_time_total
    events = [e for e in seen.profile.key_averages() if spent(e) and (not job.cuda or e.device_type.name == "CUDA")]
    events.sort(key=spent, reverse=True)
    steps, busy = last - first, sum(map(spent, events)) / 1e6
    yield "busy", "note", f"{busy / steps * 1e3:.1f} ms of {seen.seconds / steps * 1e3:.1f} ms a step (profiled)", dict(
        busy=busy, seconds=seen.seconds, calls=sum(e.count for e in events))
    for e in events[:10]:
        share = spent(e) / 1e6 / busy
        yield e.key[:70], "note", f"{share:.1%}, {e.count // steps} a step", dict(share=share, count=e.count)


CHECKS: dict[str, Callable[[Job], Found]] = {
    "attention": check_attention, "fallback": check_fallback, "trees": check_trees,
    "cross-entropy": check_cross_entropy,
    "bf16": check_bf16, "sync": check_sync, "compile": check_compile, "filled": check_filled, "memory": check_memory,
    "resume": check_resume, "float16": check_float16, "overheads": check_overheads, "profile": check_profile}

# The measurements

LLAMA = dict(hidden_act="silu", tie_word_embeddings=True, max_position_embeddings=2048)
SMOLLM2 = dict(vocab_size=49152, hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
               intermediate_size=1536)
LLAMA_1B = dict(vocab_size=128256, hidden_size=2048, num_hidden_layers=16, num_attention_heads=32,
                num_key_value_heads=8, intermediate_size=8192)
SHAPES: dict[str, tuple[str, dict]] = {  # name: model type and configuration; GPT-2 gets room for the longest row
    "smollm2-135m": ("llama", LLAMA | SMOLLM2), "llama-1b": ("llama", LLAMA | LLAMA_1B),
    "gpt2-124m": ("gpt2", dict(n_positions=2048, attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0)),
    "gpt2-124m, dropout": ("gpt2", dict(n_positions=2048))}
SMALL = {"gpt2": dict(vocab_size=300, n_embd=64, n_layer=2, n_head=4), "llama": dict(
    vocab_size=300, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=128)}


def shaped_lm(name: str, tiny: bool, device: str) -> LM:
    """A random model of a known shape."""
    from transformers import AutoConfig

    kind, config = SHAPES[name]
    whole = AutoConfig.for_model(kind, **config | (SMALL[kind] if tiny else {}))
    with torch.device(device):  # a billion random numbers are quickest drawn where they are needed
        return new_lm(whole, byte_tokenizer(), device=device)


class Clock(Callback):
    """Time and tokens after the first steps, which warm up."""

    def __init__(self, wait: Callable[[], None], warm: int):
        self.wait, self.warm, self.marks = wait, warm, []

    def mark(self, tokens: int) -> None:
        self.wait()
        self.marks.append((time.perf_counter(), tokens))

    def after_step(self, learner: Any) -> None:
        if learner.step == self.warm:
            self.mark(learner.tokens)

    def after_fit(self, learner: Any) -> None:
        self.mark(learner.tokens)


class Counting:
    """A collator that notes how many tokens each batch has."""

    def __init__(self, collate: Callable):
        self.collate, self.tokens = collate, []

    def __call__(self, examples: list[dict]) -> Any:
        self.tokens.append(sum(len(e["input_ids"]) for e in examples))
        return self.collate(examples)


def by_ftnb(lm: LM, rows: list[dict], clock: Clock, lora: bool, **settings: Any) -> tuple[int, str]:
    """`finetune`."""
    run = finetune(lm, encoded(lm, rows), lora=8 if lora else None, progress=False, callbacks=[clock], **settings)
    return len(run.losses), f"{'packed' if run.packed else 'PADDED'}; it says {run.tokens_per_s:,.0f} tokens/s"


def followed(trainer: Any, clock: Clock) -> tuple[int, str]:
    """Run one of transformers' trainers, with marks at the same moments."""
    from transformers import TrainerCallback

    counting = trainer.data_collator = Counting(trainer.data_collator)

    class Marks(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step in (clock.warm, state.max_steps):
                clock.mark(sum(counting.tokens[:state.global_step]))

    trainer.add_callback(Marks())
    trainer.train()
    return trainer.state.global_step, type(trainer).__name__


def common(lm: LM, batch_size: int = 8) -> dict:
    """Settings that transformers' and TRL's trainers share; the learning rate does not change the speed."""
    cpu = lm.device.type == "cpu"
    return dict(output_dir=tempfile.mkdtemp(), report_to="none", save_strategy="no", disable_tqdm=True,
                num_train_epochs=1, per_device_train_batch_size=batch_size, bf16=not cpu, use_cpu=cpu, seed=0,
                logging_steps=10**6)


def by_trl(lm: LM, rows: list[dict], clock: Clock, lora: bool, **settings: Any) -> tuple[int, str]:
    """TRL's SFTTrainer; it sees rows that are tokenized, and learns every token."""
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(**common(lm, settings.pop("batch_size", 8)), **settings)
    data = datasets.Dataset.from_list([{"input_ids": r["input_ids"]} for r in rows])
    return followed(SFTTrainer(lm.model, args=config, train_dataset=data, processing_class=lm.tokenizer,
                               peft_config=lora_config(8) if lora else None), clock)


def by_trainer(lm: LM, rows: list[dict], clock: Clock, lora: bool) -> tuple[int, str]:
    """transformers' Trainer."""
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    model: Any = lm.model
    if lora:
        from peft import get_peft_model

        model = get_peft_model(model, lora_config(8))
    data = datasets.Dataset.from_list([r | {"attention_mask": [1] * len(r["labels"])} for r in rows])
    return followed(Trainer(model, TrainingArguments(**common(lm)), data_collator=DataCollatorForSeq2Seq(lm.tokenizer),
                            train_dataset=data), clock)


def ways(tiny: bool) -> dict[str, Callable]:
    """Name: how a model is trained. TRL's own limit of 1,024 tokens would cut rows, so it is lifted."""
    n, longest = (256, 64) if tiny else (16384, 2048)
    best = dict(gradient_checkpointing=False)
    part = functools.partial
    return {
        "ftnb": by_ftnb, "TRL": part(by_trl, max_length=longest),
        "ftnb, full steps": part(by_ftnb, tokens_per_step=n, micro_tokens=n),
        "TRL, padding-free": part(by_trl, padding_free=True, max_length=None, **best),
        "TRL, packing": part(by_trl, packing=True, max_length=longest, batch_size=n // longest, **best),
        "Trainer": by_trainer, "ftnb, compiled": part(by_ftnb, tokens_per_step=n, micro_tokens=n, compile=True)}


def installed(way: str) -> bool:
    """Whether what a way needs can be imported."""
    needs = ["trl"] if way.startswith("TRL") else ["accelerate"] if way == "Trainer" else []
    return all(importlib.util.find_spec(name) for name in needs)


def worker(shape: str, way: str, lora: bool, rows: int, tiny: bool, device: str) -> dict:
    """Train once, and measure."""
    cuda = torch.device(device).type == "cuda"
    lm = shaped_lm(shape, tiny, device)
    mean, longest, vocabulary = (24, 64, 250) if tiny else (300, 2048, lm.model.config.vocab_size)
    some = uneven_rows(rows, mean, longest, vocabulary)
    tokens, parameters = sum(len(r["input_ids"]) for r in some), count_parameters(lm.model)
    steps = tokens / ((256 if tiny else 16384) if "full" in way or "packing" in way or "compiled" in way else 8 * mean)
    clock = Clock(torch.cuda.synchronize if cuda else lambda: None, warm=max(1, min(8, int(steps / 4))))
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    taken, words = ways(tiny)[way](lm, some, clock, lora)
    (start, before), (end, after) = clock.marks[0], clock.marks[-1]
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return dict(rate=(after - before) / (end - start), gib=peak / 2**30, steps=taken, tokens=tokens, words=words,
                parameters=parameters, share=(after - before) / tokens)


def in_own_process(job: Job, **what: Any) -> dict:
    """`worker` in a process of its own, so that its memory is its own."""
    code = [sys.executable, str(Path(__file__).resolve()), "--worker", json.dumps(what)]
    done = subprocess.run(code, capture_output=True, text=True, timeout=max(60.0, job.until - time.monotonic() + 60))
    if done.returncode or "RESULT" not in done.stdout:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no result"])[-1][:200])
    return json.loads(done.stdout.rpartition("RESULT")[2])


def matmul_peak(job: Job) -> float:
    """TFLOP/s of a large bfloat16 matrix product of random numbers."""
    n = 64 if job.tiny else 8192
    a, b = (torch.randn(n, n, device=job.device).bfloat16() for _ in range(2))
    ms, _ = timed(job, lambda: [a @ b for _ in range(10)], 7)
    return 10 * 2 * n**3 / ms * 1e-9


def stated_peak(job: Job) -> float | None:
    """What the vendor states, if it is known here."""
    name = torch.cuda.get_device_name() if job.cuda else ""
    return next((peak for part, peak in PEAKS.items() if all(w in name for w in part.split())), None)


def cases(job: Job) -> list[tuple[str, bool, list[str]]]:
    """Shape, adapter or not, ways; what matters most comes first."""
    every = [w for w in ways(job.tiny) if w != "ftnb, compiled"]
    if not job.quick:
        more = [*every, "ftnb, compiled"]
        return [(shape, lora, every if lora else more) for shape in SHAPES for lora in (False, True)]
    few = ["ftnb", "TRL", "ftnb, full steps", "TRL, padding-free"]
    return [("smollm2-135m", False, every), ("llama-1b", False, few), ("llama-1b", True, few[:2] + few[3:]),
            ("gpt2-124m", False, few[:2]), ("smollm2-135m", True, few[:2])]


def one_measurement(job: Job, shape: str, way: str, lora: bool, alone: bool) -> dict | None:
    """A result, or None, with a line that says why."""
    what = f"{shape}{', LoRA' * lora}, {way}"
    if not installed(way):
        job.record("speed", what, "skipped", "not installed")
        return None
    rows = 24 if job.tiny else 384 if shape == "llama-1b" else 1024
    arguments = dict(shape=shape, way=way, lora=lora, rows=rows, tiny=job.tiny, device=str(job.device))
    try:
        if alone:
            return in_own_process(job, **arguments)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return worker(**arguments)
    except Exception as e:  # one that fails (out of memory, say) must not end the others
        status = "FAILED" if way.startswith("ftnb") else "note"
        job.record("speed", what, status, f"{type(e).__name__}: {str(e).splitlines()[0][:160] if str(e) else ''}")
        return None


def measure(job: Job) -> list[dict]:
    """Every way, in alternating order; single results are noted as they come."""
    found, longest = [], 0.0
    plan = [(shape, lora, way) for shape, lora, some in cases(job) for n in range(job.repeats)
            for way in some[:: 1 - 2 * (n % 2)]]
    for shape, lora, way in plan:
        what, start = f"{shape}{', LoRA' * lora}, {way}", time.monotonic()
        if start + longest > job.until:
            job.record("speed", what, "skipped", "no time left")
            continue
        result = one_measurement(job, shape, way, lora, alone=not job.tiny or not found)
        longest = max(longest, time.monotonic() - start)
        if result:
            found.append(dict(shape=shape, lora=lora, way=way) | result)
            words = f"{result['rate']:,.0f} tokens/s, {result['gib']:.2f} GiB, {result['steps']} steps"
            job.record("speed", what, "ok", f"{words}; {result['words']}", result)
    return found


def table(found: list[dict], measured: float, stated: float | None) -> Iterator[str]:
    """Medians; MFU counts 6 flop a parameter and token (LoRA: 4, as the base has no weight gradients)."""
    yield f"bf16 peak: stated {stated or 'unknown'}, measured {measured:.3g} TFLOP/s; MFU against stated, measured"
    yield f"{'model':<20}{'':<6}{'way':<19}{'tokens/s':>10}{'MFU':>15}{'GiB':>7}{'runs':>5}{'ftnb is':>9}"
    groups: dict[tuple, list[dict]] = {}
    for r in found:
        groups.setdefault((r["shape"], r["lora"], r["way"]), []).append(r)
    middle = {k: statistics.median(r["rate"] for r in v) for k, v in groups.items()}
    for (shape, lora, way), runs in sorted(groups.items(), key=lambda g: list(SHAPES).index(g[0][0])):
        rate, ours = middle[shape, lora, way], middle.get((shape, lora, "ftnb"))
        flops = (4 if lora else 6) * runs[0]["parameters"] * rate / 1e12
        use = " ".join(f"{flops / peak:6.1%}" if peak else "     ?" for peak in (stated, measured))
        faster = f"{ours / rate:.2f}x" if ours else ""
        gib, part = statistics.median(r["gib"] for r in runs), "LoRA" if lora else "full"
        yield f"{shape:<20}{part:<6}{way:<19}{rate:>10,.0f}{use:>15}{gib:>7.2f}{len(runs):>5}{faster:>9}"


# Putting it together


def run_check(job: Job, name: str) -> None:
    """One check; what it raises is a failure, and does not end the others."""
    start = time.monotonic()
    if start > job.until:
        return job.record(name, "", "skipped", "no time left")
    try:
        for what, ok, words, numbers in CHECKS[name](job):
            job.record(name, what, ok, words, numbers)
    except Exception as e:
        at = traceback.extract_tb(e.__traceback__)[-1]
        where = f"{Path(at.filename).name}:{at.lineno} {at.line}"
        job.record(name, "", False, f"{type(e).__name__}: {str(e)[:200]} ({where})")
    fresh_memory(job)
    return print(f"        {name}: {time.monotonic() - start:.1f} s", flush=True)


def run_speed(job: Job) -> None:
    """The measurements, with their table."""
    measured, stated = matmul_peak(job), stated_peak(job)
    job.record("speed", "peak", "note", f"stated {stated}, measured {measured:.3g} TFLOP/s in bf16", dict(
        stated=stated, measured=measured))
    fresh_memory(job)
    lines = list(table(measure(job), measured, stated))
    print("\n" + "\n".join(lines), flush=True)
    if job.out:
        with job.out.open("a") as f:
            f.write(json.dumps(dict(part="table", lines=lines)) + "\n")


def arguments() -> argparse.Namespace:
    """What the command line says."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device", default="cuda", help="cuda, or cpu to try the script itself")
    p.add_argument("--tiny", action="store_true", help="tiny models; their numbers mean nothing")
    p.add_argument("--quick", action="store_true", help="fewer models and repeats, about 8 minutes")
    p.add_argument("--only", nargs="+", choices=[*CHECKS, "speed"], help="parts to run")
    p.add_argument("--list", action="store_true", help="list the parts")
    p.add_argument("--repeats", type=int, help="of every measurement; 3, with --quick 1")
    p.add_argument("--minutes", type=float, help="begin nothing after so many; with --quick 8")
    p.add_argument("--out", type=Path, help="file for JSON lines")
    p.add_argument("--worker", help=argparse.SUPPRESS)
    return p.parse_args()


def about(job: Job) -> None:
    """What this was run with."""
    names = ("transformers", "peft", "trl", "triton", "liger-kernel", "cut-cross-entropy", "flash-attn")
    versions = {"torch": torch.__version__} | {p: v for p in names if (v := version_of(p))}
    try:
        from torch.nn.attention.varlen import varlen_attn

        takes = ", ".join(inspect.signature(varlen_attn).parameters)
    except ImportError:
        takes = "missing"
    words = f"{', '.join(f'{k} {v}' for k, v in versions.items())}; varlen_attn takes {takes}"
    job.record("about", torch.cuda.get_device_name() if job.cuda else "cpu", "note", words, versions)


def main() -> int:
    """The exit status: 1 if something failed."""
    a = arguments()
    if a.list:
        print(*CHECKS, "speed")
        return 0
    if a.worker:
        print("RESULT", json.dumps(worker(**json.loads(a.worker))))
        return 0
    if a.device != "cpu" and not torch.cuda.is_available():
        print("There is no CUDA here; --device cpu --tiny tries the script itself.")
        return 2
    out = a.out or (Path(os.environ["OUT"]) / "cuda.jsonl" if os.environ.get("OUT") else None)
    minutes = a.minutes or (8 if a.quick else 10**4)
    job = Job(torch.device(a.device), a.tiny, a.quick or a.tiny, a.repeats or (1 if a.quick or a.tiny else 3),
              time.monotonic() + 60 * minutes, out)
    about(job)
    for name in a.only or CHECKS:
        if name in CHECKS:
            run_check(job, name)
    if not a.only or "speed" in a.only:
        run_speed(job)
    counts = Counter(r["status"] for r in job.rows)
    print(", ".join(f"{n} {status}" for status, n in counts.items()))
    return int(counts["FAILED"] > 0)


if __name__ == "__main__":
    sys.exit(main())
