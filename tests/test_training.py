"""Runs that end badly: killed, interrupted, out of memory, on a full disk, on a damaged checkpoint. None may lose more
than it must, and each must end with the weights of a run that nothing happened to, bit for bit."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from faults import in_process
from subjects import TEXTS, StopAt, digest

from ftnb import finetune, load_lm, resume, save_lm, score, tiny_lm
from ftnb.core.errors import FTNBError
from ftnb.data.applications import summarization
from ftnb.data.encoding import encode
from ftnb.training.checkpoints import checkpoints_in, newest_checkpoint
from ftnb.training.learner import Callback, Learner

EVERY = 2  # steps between checkpoints


def begin(**options: Any) -> Any:
    """A run of 24 steps, with dropout."""
    torch.set_num_threads(1)  # many small processes
    lm = tiny_lm("gpt2", resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1)
    settings: dict[str, Any] = {"epochs": 2, "lr": 1e-2, "batch_size": 2, "valid_every": 5, "progress": False}
    return finetune(lm, encode(lm, {"train": TEXTS, "valid": TEXTS[:2]}), **settings | options)


def undisturbed() -> str:
    return digest(begin())


@pytest.fixture(scope="module")
def expected() -> str:
    return in_process(undisturbed)


class Steps(Callback):
    """Notes each step in a file, for those who come after."""

    def __init__(self, folder: Path):
        self.file = folder.with_suffix(".steps")

    def after_step(self, learner: Learner) -> None:
        with self.file.open("a") as f:
            print(learner.step, file=f)


def kill_at(event: int) -> None:
    """Kill this process when it flushes or renames a file, or begins or ends a step, for the `event`-th time."""
    count = iter(range(1, event + 1))

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(count, event) == event:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    os.fsync, os.rename, torch.save = counted(os.fsync), counted(os.rename), counted(torch.save)
    for moment in ("gradient", "update", "collect_losses"):
        setattr(Learner, moment, counted(getattr(Learner, moment)))


def begin_or_resume(folder: Path, event: int | None) -> str:
    """Go on with a run, or begin it; die at an event."""
    torch.set_num_threads(1)
    if event:
        kill_at(event)
    if (folder / "run").exists():  # with or without a checkpoint
        return digest(resume(folder, callbacks=[Steps(folder)], progress=False))
    return digest(begin(checkpoint=folder, checkpoint_every=EVERY, callbacks=[Steps(folder)]))


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def test_kill_9(tmp_path: Path, expected: str) -> None:
    """At least 24 kills at random moments, many of them within the writing of a checkpoint."""
    chance, kills, runs = random.Random(0), 0, 0
    while kills < 24:
        folder, finished = tmp_path / f"run{runs}", None
        while finished is None:
            timed = {"killed_after": chance.uniform(0.3, 3)} if chance.random() < 0.2 else {}
            event = None if timed else chance.randrange(20, 90)
            finished = in_process(begin_or_resume, folder, event, **timed)
            if finished:
                break
            kills += 1
            steps = folder.with_suffix(".steps")
            done = int(steps.read_text().split()[-1]) if steps.exists() else 0
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # a checkpoint that is there is whole
                kept = step_of(newest_checkpoint(folder)) if checkpoints_in(folder) else 0
            assert done - kept <= EVERY, "more was lost than the steps since the last checkpoint"
        assert finished == expected
        runs += 1
    assert not list(tmp_path.rglob(".step-*")), "what killed processes left behind is cleared away"


def interrupted(shares: list[float]) -> tuple[str, int]:
    """Press Ctrl-C at random moments, go on each time; moments are shares of the time that a whole run takes."""
    start = time.perf_counter()
    begin()
    whole = time.perf_counter() - start
    run, times = begin(callbacks=[StopAt(1)]), 0
    for share in shares:
        timer = threading.Timer(share * whole, os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            resume(run)
            times += run.status == "interrupted"
            while timer.is_alive():  # it must not come later, where nobody expects it
                time.sleep(0.01)
        except KeyboardInterrupt:
            pass  # before the loop began, or after it ended
    return digest(resume(run)), times


def test_interrupted_anywhere(expected: str) -> None:
    """At least ten times while steps are computed, whether the machine is quick or slow."""
    chance, times, runs = random.Random(1), 0, 0
    while times < 10:
        end, n = in_process(interrupted, [chance.uniform(0.02, 0.3) for _ in range(30)])
        assert end == expected
        times, runs = times + n, runs + 1
        assert runs <= 10, f"only {times} interruptions in {runs} runs"


def on_a_full_disk(folder: Path) -> tuple[str, list[str], list[str]]:
    """No file may become larger than a few kB after the fourth step."""

    class Full(Callback):
        def before_step(self, learner: Learner) -> None:
            if learner.step == 5:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = begin(checkpoint=folder, checkpoint_every=EVERY, callbacks=[Full()])
    return digest(run), [str(w.message) for w in caught], [c.name for c in checkpoints_in(folder)]


def test_full_disk(tmp_path: Path, expected: str) -> None:
    end, messages, kept = in_process(on_a_full_disk, tmp_path / "run")
    assert end == expected, "training itself goes on"
    assert kept == ["step-00000004", "step-00000002"] and step_of(newest_checkpoint(tmp_path / "run")) == 4
    assert len(messages) == 11
    assert all("no checkpoint could be written" in text and "step-00000004" in text for text in messages)
    assert not list((tmp_path / "run").glob(".step-*"))
    assert in_process(begin_or_resume, tmp_path / "run", None) == expected


@pytest.fixture(scope="module")
def half_done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("half") / "run"
    in_process(half_a_run, folder)
    return folder


def half_a_run(folder: Path) -> None:
    begin(checkpoint=folder, checkpoint_every=EVERY, callbacks=[StopAt(8)])


def spoil(file: Path, how: str) -> None:
    data = file.read_bytes()
    if how == "gone":
        file.unlink()
    else:
        middle = len(data) // 2
        rest = b"" if how == "cut" else bytes([data[middle] ^ 1]) + data[middle + 1 :]
        file.write_bytes(data[:middle] + rest)


@pytest.mark.parametrize("how", ["cut", "one bit", "gone"])
@pytest.mark.parametrize("name", ["weights.safetensors", "state.pt", "checksums.json"])
def test_damaged_checkpoint(name: str, how: str, half_done: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(half_done, folder)
    assert [step_of(c) for c in checkpoints_in(folder)] == [8, 6]
    spoil(folder / "step-00000008" / name, how)
    with pytest.warns(UserWarning, match="step-00000008 is damaged .*; the one before it is used"):
        assert step_of(newest_checkpoint(folder)) == 6
    spoil(folder / "step-00000006" / name, how)
    with pytest.warns(UserWarning), pytest.raises(FTNBError, match="no whole checkpoint"):
        newest_checkpoint(folder)


def test_resumed_after_damage(half_done: Path, tmp_path: Path, expected: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(half_done, folder)
    spoil(folder / "step-00000008" / "weights.safetensors", "cut")
    assert in_process(begin_or_resume, folder, None) == expected


def test_a_folder_with_checkpoints_is_not_begun_again(half_done: Path) -> None:
    before = sorted(half_done.rglob("*"))
    with pytest.raises(FTNBError, match="an earlier run.*resume"):
        begin(checkpoint=half_done)
    assert sorted(half_done.rglob("*")) == before


def with_little_memory() -> tuple[list[str], float, float, int | None]:
    """The same step with a limit on the process's memory, and with plenty of it in one piece."""
    lm = tiny_lm(context=4096, attn_implementation="eager")
    data = encode(lm, ["word " * 200 for _ in range(32)], max_len=1024)
    options: dict[str, Any] = {"batch_size": 32, "micro_tokens": 10**6, "share_prefixes": False}
    options |= {"progress": False, "lr": 1e-3}

    class Little(Callback):
        def before_step(self, learner: Learner) -> None:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + 120 * 2**20
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = finetune(lm, data, callbacks=[Little()], **options)  # first: a step before it would leave memory to reuse
    resource.setrlimit(resource.RLIMIT_AS, (resource.getrlimit(resource.RLIMIT_AS)[1],) * 2)
    whole = finetune(tiny_lm(context=4096), data, **options).losses[0]
    return [str(w.message) for w in caught], whole, run.losses[0], run.learner.token_limit


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits on a process's memory are Linux's")
def test_out_of_memory() -> None:
    messages, whole, halved, limit = in_process(with_little_memory)
    assert any("out of memory; from now on at most" in text for text in messages), messages
    assert halved == pytest.approx(whole, rel=1e-5) and limit is not None and limit < 32 * 1001


def interrupted_while_waiting() -> tuple[list[str], str, str]:
    """Press Ctrl-C in `run.wait()`: the run goes on, and nobody else may train its model meanwhile."""
    run = begin(epochs=5000, background=True)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        run.wait(60)
    refusals = []
    for action in (lambda: resume(run), lambda: finetune(run.lm, encode(run.lm, TEXTS))):
        with pytest.raises(FTNBError) as error:
            action()
        refusals.append(str(error.value))
    before = run.status
    run.stop()
    return refusals, before, run.wait(60).status


def test_interrupted_while_waiting() -> None:
    refusals, before, after = in_process(interrupted_while_waiting)
    assert "still going on" in refusals[0] and "is training it" in refusals[1]
    assert (before, after) == ("running", "interrupted")


SCRIPT = """
import sys, time
sys.path.insert(0, "tests")
from test_training import begin
run = begin(epochs=5000, background=True, checkpoint=sys.argv[1], checkpoint_every=10_000)
while len(run.losses) < 3: time.sleep(0.01)
"""


def test_a_script_that_ends(tmp_path: Path) -> None:
    """A run in the background ends in order with the script that began it, and leaves a checkpoint."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, tmp_path / "run"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert step_of(newest_checkpoint(tmp_path / "run")) >= 3


def two_runs_in_a_folder(folder: Path) -> str:
    first = begin(epochs=5000, background=True, checkpoint=folder, checkpoint_every=2)
    while not checkpoints_in(folder):
        time.sleep(0.01)
    with pytest.raises(FTNBError) as error:
        resume(folder)
    first.stop()
    first.wait(60)
    return str(error.value)


def test_two_runs_in_a_folder(tmp_path: Path) -> None:
    assert "another run is writing its checkpoints there" in in_process(two_runs_in_a_folder, tmp_path / "run")


def test_a_model_from_a_folder_is_found_again_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cards and scores show its last part; what it is loaded by is kept, whole."""

    class Two(Callback):
        def after_step(self, learner: Learner) -> None:
            if learner.step == 2:
                raise KeyboardInterrupt

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    save_lm(tiny_lm(), "models/base.v2")
    lm = load_lm("models/../models/base.v2/")
    assert lm.name == "base.v2" and repr(lm).startswith("LM base.v2")
    data = encode(lm, TEXTS)
    options: dict[str, Any] = {"lora": 2, "checkpoint": "runs/one", "checkpoint_every": 1, "progress": False}
    run = finetune(lm, data, callbacks=[Two()], **options)
    assert run.status == "interrupted" and not (tmp_path / "runs/one/run/base").exists()
    save_lm(lm, "adapters/first")
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = resume(tmp_path / "runs/one", progress=False)
    assert (again.status, again.lm.name, len(again.losses)) == ("finished", "base.v2", 3)
    adapted = load_lm("../adapters/first")
    assert (adapted.name, adapted.source) == ("first", lm.source)
    task = summarization("text", "summary")
    assert score(adapted, [{"text": "a", "summary": "b"}], task, max_new_tokens=2, progress=False).name == "first"


def flow(lm: Any) -> Any:
    """Twenty-four rows as a shuffled stream."""
    rows = datasets.Dataset.from_list([{"text": text + "!" * n} for n, text in enumerate(TEXTS)])
    return encode(lm, rows.to_iterable_dataset(num_shards=3).shuffle(seed=1, buffer_size=5))


class Watch(Callback):
    """Notes the rows of each epoch by their lengths, and may press ■."""

    def __init__(self, stop: int = 0) -> None:
        self.stop, self.epochs = stop, {}

    def after_step(self, learner: Learner) -> None:
        lengths = [n for batch in learner.batches for n in batch.lengths]
        self.epochs.setdefault(learner.epoch, []).extend(lengths)
        if learner.step == self.stop:
            raise KeyboardInterrupt


STREAM: dict[str, Any] = {"lr": 1e-2, "batch_size": 4, "max_steps": 20, "progress": False}


@pytest.mark.parametrize("at", [4, 6, 11, 18])
def test_a_shuffled_stream_goes_on_in_its_epoch(at: int, tmp_path: Path) -> None:
    whole, first, second = tiny_lm(), tiny_lm(), tiny_lm()
    watch = Watch()
    run = finetune(whole, flow(whole), callbacks=[watch], **STREAM)
    orders = [watch.epochs[epoch] for epoch in range(3)]
    assert sorted(orders[0]) == sorted(orders[1]) and len({tuple(order) for order in orders}) == 3
    assert run.status == "finished" and "read 4 times" in repr(run)
    options = STREAM | {"checkpoint": tmp_path / "run", "checkpoint_every": 1}
    assert finetune(first, flow(first), callbacks=[Watch(at)], **options).status == "interrupted"
    again = resume(tmp_path / "run", lm=second, data=flow(second), progress=False)
    assert digest(again) == digest(run)


def test_a_stream_that_is_used_up_says_so() -> None:
    lm, rows = tiny_lm(), iter([{"text": text} for text in TEXTS])
    data = encode(lm, datasets.IterableDataset.from_generator(lambda: rows))
    with pytest.warns(UserWarning, match="gave no rows when it was read again"):
        run = finetune(lm, data, **STREAM)
    assert (run.status, len(run.losses)) == ("finished", 6)
    with pytest.raises(FTNBError, match="no row of the stream can be used"):
        finetune(lm, data, **STREAM)
