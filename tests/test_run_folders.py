"""The folder of a run: what is written first, who may write there, what is found when it has been damaged, and how a
run goes on from it. The end must be that of a run that nothing happened to, bit for bit, or an `FTNBError`."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from ftnb import add_lora, finetune, load_checkpoint, load_lm, resume, save_lm, tiny_lm
from ftnb.core.errors import FTNBError
from ftnb.data.applications import translation
from ftnb.data.encoding import encode
from ftnb.training.checkpoints import checkpoints_in
from ftnb.training.learner import Callback, Learner, StopTraining

TEXTS = ["To be, or not to be, that is the question: " + "whether 'tis nobler " * (n % 4) for n in range(24)]
HOW: dict[str, Any] = {"lr": 1e-2, "batch_size": 4, "valid_every": 2, "progress": False}


def rows(lm: Any) -> Any:
    return encode(lm, {"train": TEXTS, "valid": TEXTS[:2]})


def outcome(run: Any) -> tuple[str, list[float], list[Any]]:
    """Weights, losses and held-out losses of a run."""
    weights = b"".join(p.detach().numpy().tobytes() for p in run.lm.model.parameters())
    return hashlib.sha256(weights).hexdigest(), run.losses, run.valid


class Stop(Callback):
    """End a run after a step, in one of the ways there are."""

    def __init__(self, step: int, error: BaseException | None = None):
        self.step, self.error = step, error or KeyboardInterrupt()

    def after_step(self, learner: Learner) -> None:
        if learner.step == self.step:
            raise self.error


def without_checkpoints(folder: Path) -> Path:
    """The folder as if the run had been killed before its first checkpoint."""
    for step in checkpoints_in(folder):
        shutil.rmtree(step)
    return folder


def trained_adapter(**config: Any) -> Any:
    from peft import LoraConfig

    lm = add_lora(tiny_lm(), LoraConfig(r=4, target_modules="all-linear", **config), seed=5)
    finetune(lm, rows(lm), **HOW | {"lr": 3e-2})
    return lm


def from_a_folder(folder: Path) -> Callable[[], Any]:
    save_lm(tiny_lm(), folder)
    return lambda: load_lm(folder)


STARTS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "all weights": (tiny_lm, {}),
    "lora, seed 3": (tiny_lm, {"lora": 4, "seed": 3}),
    "lora, trained before": (trained_adapter, {"seed": 3}),
    "dora, trained before": (lambda: trained_adapter(use_dora=True), {}),
    "frozen": (tiny_lm, {"frozen": 1, "seed": 2}),
    "encoder-decoder": (lambda: tiny_lm("t5"), {"lora": 4, "seed": 3}),
}


@pytest.mark.parametrize("start", STARTS)
def test_killed_before_the_first_checkpoint(start: str, tmp_path: Path) -> None:
    """The run begins again, with what it began with."""
    make, how = STARTS[start]

    pairs = [{"source": text, "target": text[::-1]} for text in TEXTS]

    def data(lm: Any) -> Any:
        return encode(lm, pairs, translation()) if start == "encoder-decoder" else rows(lm)

    lm = make()
    whole = finetune(lm, data(lm), **HOW | how)
    lm = make()
    finetune(lm, data(lm), **HOW | how, checkpoint=tmp_path / "run")
    again = resume(without_checkpoints(tmp_path / "run"), progress=False)
    assert outcome(again) == outcome(whole)


def test_the_start_of_a_model_from_a_folder_is_found_there(tmp_path: Path) -> None:
    make = from_a_folder(tmp_path / "model")
    lm = make()
    whole = finetune(lm, rows(lm), **HOW)
    lm = make()
    finetune(lm, rows(lm), **HOW, checkpoint=tmp_path / "run")
    assert not (tmp_path / "run/run/base").exists(), "it is not copied"
    assert outcome(resume(without_checkpoints(tmp_path / "run"), progress=False)) == outcome(whole)
    second = finetune(lm, rows(lm), **HOW, checkpoint=tmp_path / "second")  # other weights than those of the folder
    again = resume(without_checkpoints(tmp_path / "second"), progress=False)
    assert outcome(again) == outcome(second)
    save_lm(tiny_lm(seed=1), tmp_path / "model")
    with pytest.raises(FTNBError, match="not the one that the run was begun with"):
        resume(without_checkpoints(tmp_path / "run"), progress=False)


def files_of(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


class Pause(Callback):
    """Wait in the first step until the test lets go."""

    def __init__(self) -> None:
        self.reached, self.go = threading.Event(), threading.Event()

    def before_step(self, learner: Learner) -> None:
        self.reached.set()
        self.go.wait(60)


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    """Refused before it writes anything: while the first one runs, and after it was stopped without a checkpoint."""
    lm, other = tiny_lm(), tiny_lm()
    whole = outcome(finetune(tiny_lm(), rows(lm), **HOW))
    pause = Pause()
    run = finetune(lm, rows(lm), **HOW, checkpoint=tmp_path, callbacks=[pause], background=True)
    assert pause.reached.wait(60)
    before = files_of(tmp_path)
    with pytest.raises(FTNBError, match="another run is writing"):
        finetune(other, encode(other, ["other rows"] * 9), lr=1.0, checkpoint=tmp_path, progress=False)
    with pytest.raises(FTNBError, match="another run is writing"):
        resume(tmp_path, progress=False)
    assert files_of(tmp_path) == before
    pause.go.set()
    assert outcome(run.wait(60)) == whole
    with pytest.raises(FTNBError, match="earlier run"):
        finetune(other, rows(other), **HOW, checkpoint=without_checkpoints(tmp_path))
    assert {k: v for k, v in files_of(tmp_path).items() if k != ".lock"} == {
        k: v for k, v in before.items() if k != ".lock"
    }
    assert outcome(resume(tmp_path, progress=False)) == whole


def test_every_file_of_the_start_is_checked(tmp_path: Path) -> None:
    """One bit, the end, or all of each file: nothing is trained on what is left."""
    lm = trained_adapter()
    finetune(lm, rows(lm), **HOW, checkpoint=tmp_path / "run")
    chance = np.random.default_rng(0)
    for name, content in files_of(tmp_path / "run" / "run").items():
        file = tmp_path / "run" / "run" / name
        bit = int(chance.integers(8 * len(content)))
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        for spoiled in (bytes(flipped), content[: len(content) // 2], b"", b"[]", b"null", None):
            file.unlink()
            if spoiled is not None:
                file.write_bytes(spoiled)
            for read in (resume, load_checkpoint):
                try:
                    read(tmp_path / "run")
                except FTNBError as error:
                    assert name in str(error) or "checksums.json" in str(error), error
                else:
                    assert name.endswith("checksums.json"), f"{name}: bit {bit} was not noticed"  # a space in the list
            file.write_bytes(content)
    assert resume(tmp_path / "run", progress=False).status == "finished"


def test_a_run_that_ended_early_stays_finished(tmp_path: Path) -> None:
    class Worse(Callback):
        """Have held-out losses rise after the fourth step."""

        def after_step(self, learner: Learner) -> None:
            if learner.step > 4:
                learner.optimizer.param_groups[0]["lr"] = 5.0

    lm = tiny_lm()
    for name, more in (
        ("patience", {"patience": 1, "callbacks": [Worse()]}),
        ("own", {"callbacks": [Stop(6, StopTraining())]}),
    ):
        for every in (1, 2, 50):
            folder, lm = tmp_path / f"{name}{every}", tiny_lm()
            run = finetune(lm, rows(lm), **HOW | {"epochs": 9}, checkpoint=folder, checkpoint_every=every, **more)
            assert run.status == "finished" and len(run.losses) < 54
            first, files = outcome(run), files_of(folder)
            for _ in range(3):
                again = resume(folder, progress=False)
                assert (outcome(again), again.status) == (first, "finished")
                assert (
                    outcome(again)[0]
                    == hashlib.sha256(
                        b"".join(p.detach().numpy().tobytes() for p in load_checkpoint(folder).model.parameters())
                    ).hexdigest()
                )
            assert files_of(folder) == files


class Keeps(Callback):
    """Remembers something."""

    def __init__(self, what: Any):
        self.what, self.given = what, None

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self.what}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.given = state["kept"]


@pytest.mark.parametrize("odd", [np.float32(1), np.ones(2), Path("x"), object, {"a": [np.int64(3)]}, {np.str_("k"): 1}])
def test_a_state_that_could_not_be_read_is_refused_at_once(odd: Any, tmp_path: Path) -> None:
    lm = tiny_lm()
    with pytest.raises(FTNBError, match="callback Keeps 1.*could not be read again") as error:
        finetune(lm, rows(lm), **HOW, checkpoint=tmp_path / "run", callbacks=[Keeps(odd)])
    assert "x.item()" in str(error.value)
    lm = tiny_lm()
    fine = {"a": [1, 2.5, "x", b"x", None, True, torch.ones(2), (1,), {2}, torch.float32]}
    run = finetune(
        lm, rows(lm), **HOW, checkpoint=tmp_path / "two", checkpoint_every=1, callbacks=[Keeps(fine), Stop(3)]
    )
    assert run.status == "interrupted"
    kept = Keeps(None)
    assert resume(tmp_path / "two", progress=False, callbacks=[kept]).status == "finished"
    assert repr(kept.given) == repr(fine)


def test_only_numbered_folders_are_checkpoints(tmp_path: Path) -> None:
    lm = tiny_lm()
    finetune(lm, rows(lm), **HOW, checkpoint=tmp_path, checkpoint_every=1, callbacks=[Stop(3)])
    shutil.copytree(tmp_path / "step-00000002", tmp_path / "step-best")
    shutil.copytree(tmp_path / "step-00000002", tmp_path / "step-99.bak")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = resume(tmp_path, progress=False)
    assert outcome(run) == outcome(finetune(tiny_lm(), rows(lm), **HOW))
    assert (tmp_path / "step-best").is_dir() and (tmp_path / "step-99.bak").is_dir()


def test_a_new_checkpoint_is_kept_beside_damaged_newer_ones(tmp_path: Path) -> None:
    lm = tiny_lm()
    finetune(lm, rows(lm), **HOW, checkpoint=tmp_path, checkpoint_every=1, callbacks=[Stop(3)])
    for n in (4, 5):
        shutil.copytree(tmp_path / "step-00000003", tmp_path / f"step-{n:08}")
        (tmp_path / f"step-{n:08}" / "state.pt").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="damaged"):
        run = resume(tmp_path, progress=False, callbacks=[Stop(4)])
    assert run.checkpoint == str(tmp_path / "step-00000004") and Path(run.checkpoint).is_dir()
    with pytest.warns(UserWarning, match="step-00000005 is damaged"):
        assert outcome(resume(tmp_path, progress=False)) == outcome(finetune(tiny_lm(), rows(lm), **HOW))


def stream(lm: Any, texts: list[str], **shuffle: Any) -> Any:
    made = datasets.Dataset.from_list([{"text": text} for text in texts]).to_iterable_dataset()
    return encode(lm, made.shuffle(buffer_size=8, **shuffle) if shuffle else made)


STREAM: dict[str, Any] = {"lr": 1e-2, "batch_size": 4, "max_steps": 12, "progress": False}


@pytest.mark.parametrize("at", [0, 3, 6, 8])
def test_other_streams_are_refused(at: int, tmp_path: Path) -> None:
    lm = tiny_lm()
    texts = [f"{n}: {text}" for n, text in enumerate(TEXTS)]
    whole = finetune(tiny_lm(), stream(lm, texts, seed=1), **STREAM)
    options = STREAM | {"checkpoint": tmp_path, "checkpoint_every": 1, "callbacks": [Stop(at or 1)]}
    finetune(lm, stream(lm, texts, seed=1), **options)
    if not at:
        without_checkpoints(tmp_path)
    other = [*texts[:-1], "another last row"]
    others = [stream(lm, texts, seed=2), stream(lm, texts), stream(lm, texts[::-1], seed=1), rows(lm)]
    others += [stream(lm, other, seed=1)] * (at == 6)  # one row differs among those that were read in this epoch
    for given in others:
        with pytest.raises(FTNBError, match="other rows than when the run began"):
            resume(tmp_path, data=given, progress=False)
    assert outcome(resume(tmp_path, data=stream(lm, texts, seed=1), progress=False)) == outcome(whole)


def test_another_number_of_threads_is_said(tmp_path: Path) -> None:
    lm, threads = tiny_lm(), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        stopped = finetune(lm, rows(lm), **HOW, checkpoint=tmp_path, checkpoint_every=1, callbacks=[Stop(3)])
        torch.set_num_threads(2)
        for what in (tmp_path, stopped):
            with pytest.warns(UserWarning, match="threads 1 → 2.*last bits"):
                run = resume(what, progress=False)
            assert "threads 1 → 2" in repr(run)
        assert "threads 1 → 2" in repr(resume(tmp_path, progress=False)), "it is remembered"
        torch.set_num_threads(1)
        lm = tiny_lm()
        finetune(lm, rows(lm), **HOW, checkpoint=tmp_path / "begun")
        torch.set_num_threads(2)
        with pytest.warns(UserWarning, match="threads 1 → 2"):  # also where no step was kept
            resume(without_checkpoints(tmp_path / "begun"), progress=False)
    finally:
        torch.set_num_threads(threads)


def test_a_folder_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `run/` with Python files and an `auto_map`, and with a kernel's name, is refused or read without them."""
    from ftnb.core.files import write_checksums

    lm, bad = tiny_lm(), tmp_path / "bad"
    finetune(lm, rows(lm), **HOW, checkpoint=tmp_path / "run", checkpoint_every=1, callbacks=[Stop(2)])
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    for changes in (
        {"auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}, "model_type": "evil"},
        {"auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}},
        {"attn_implementation": "someone/kernel", "_attn_implementation": "someone/kernel"},
        {"experts_implementation": "someone/kernel"},
    ):
        shutil.rmtree(bad, ignore_errors=True)
        shutil.copytree(tmp_path / "run", bad)
        model = bad / "run" / "model"
        (model / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
        config = json.loads((model / "config.json").read_text()) | changes
        (model / "config.json").write_text(json.dumps(config))
        tokenizer = json.loads((model / "tokenizer_config.json").read_text())
        tokenizer["auto_map"] = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
        (model / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        (bad / "run" / "checksums.json").unlink()
        write_checksums(bad / "run")
        for read in (load_checkpoint, lambda folder: resume(folder, progress=False)):
            with contextlib.suppress(FTNBError):
                read(bad)
        assert not (tmp_path / "ran").exists()
        shutil.rmtree(tmp_path / "plain", ignore_errors=True)
        save_lm(tiny_lm(), tmp_path / "plain")
        (tmp_path / "plain" / "checksums.json").unlink(missing_ok=True)
        shutil.copytree(model, tmp_path / "plain", dirs_exist_ok=True)
        with contextlib.suppress(FTNBError):
            assert load_lm(tmp_path / "plain").model.config._attn_implementation in ("sdpa", "eager")
        assert not (tmp_path / "ran").exists()


def test_locks_are_released_whatever_happens(tmp_path: Path) -> None:
    """A callback that fails at the end, an interrupt in the last write, an error before the first step."""

    class Fails(Callback):
        def after_fit(self, learner: Learner) -> None:
            raise RuntimeError("at the end")

    class Interrupts(Callback):
        def after_fit(self, learner: Learner) -> None:
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGINT)

    class Before(Callback):
        def before_fit(self, learner: Learner) -> None:
            raise RuntimeError("before")

    lm = tiny_lm()
    whole = outcome(finetune(tiny_lm(), rows(lm), **HOW))
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    errors: list[BaseException] = []  # they, and their tracebacks, live on
    try:
        for n, callbacks in enumerate(
            ([Fails(), Stop(3)], [Interrupts(), Stop(3)], [Interrupts(), Fails()], [Before()])
        ):
            folder, lm = tmp_path / str(n), tiny_lm()
            with pytest.raises((RuntimeError, KeyboardInterrupt)) as error:
                finetune(lm, rows(lm), **HOW, checkpoint=folder, checkpoint_every=50, callbacks=callbacks)
            errors.append(error.value)
            steps = [c.name[-1] for c in checkpoints_in(folder)]
            assert steps == ([] if n == 3 else ["6"] if n == 2 else ["3"]), "the last checkpoint is there"
            assert outcome(resume(folder, progress=False)) == whole
    finally:
        signal.signal(signal.SIGINT, handler)
    assert len(errors) == 4 and str(errors[0]) == "at the end"


def test_a_checkpoint_is_read_while_its_run_goes_on(tmp_path: Path) -> None:
    lm = tiny_lm()
    run = finetune(lm, rows(lm), **HOW | {"epochs": 500}, checkpoint=tmp_path, checkpoint_every=1, background=True)
    end = time.monotonic() + 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        while time.monotonic() < end and run.status == "running":
            if checkpoints_in(tmp_path):
                assert load_checkpoint(tmp_path).name == lm.name
    run.stop()
    run.wait(60)


@pytest.mark.parametrize("name", ["", "  ", "a\0b", "x" * 300, "/dev/null", "file"])
def test_folders_that_cannot_be(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    lm = tiny_lm()
    with pytest.raises(FTNBError):
        finetune(lm, rows(lm), **HOW, checkpoint=name)
    for read in (resume, load_checkpoint):
        with pytest.raises(FTNBError):
            read(name)
    assert [f.name for f in tmp_path.iterdir()] == ["file"] and not (tmp_path / "file").read_bytes()
