"""Faults, and what a trial is: work that is killed, interrupted or out of room at one of its own events, files that are
damaged, and what may come of it. `tests/subjects.py` says what is tried, `tests/test_survival.py` tries it.

An event is a moment at which the library touches its folder, or begins something: it opens, renames or removes a file,
flushes one to the disk, writes a tensor, begins or ends a step, starts a thread. Python's audit hooks report most."""

import errno
import gc
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

IMPORTED = [
    "subjects",
    "peft",
    "gguf",
    "transformers.models.llama.modeling_llama",
    "transformers.generation",
    "datasets",
]
PROCESSES = multiprocessing.get_context("forkserver")  # a new process a trial, without importing everything again
PROCESSES.set_forkserver_preload(["ftnb.training.finetuning", "transformers.models.gpt2.modeling_gpt2", *IMPORTED])


class Killed:
    """What a process has to say that was killed."""


def _answer(pipe: Any, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        pipe.send(("value", work(*args)))
    except BaseException:
        pipe.send(("error", traceback.format_exc()))


def in_process(
    work: Callable[..., Any], *args: Any, killed_after: float | None = None, limit: float = 120, killed: Any = None
) -> Any:
    """What `work` returns in a process of its own; `killed` if that was killed."""
    read, write = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=_answer, args=(write, work, args))
    process.start()
    write.close()
    if killed_after is not None:
        process.join(killed_after)
        process.kill()
    late = not read.poll(limit)
    if late:
        process.kill()
    try:
        kind, value = read.recv()
    except EOFError:
        kind, value = "killed", killed
    process.join(limit)
    if late:
        pytest.fail(f"{work.__name__}{args} was not done after {limit} seconds")
    if kind == "error":
        pytest.fail(value)
    return value


# ---------------------------------------------------------------------------------------------------------- events

MOMENTS = ("gradient", "update", "collect_losses")  # of a learner: a step begins, changes the weights, is over
AUDITED = {"os.rename": "rename", "os.mkdir": "mkdir", "os.remove": "unlink", "os.rmdir": "rmdir", "os.link": "link"}
AUDITED |= {"os.truncate": "truncate", "sqlite3.connect": "connect"}
WRITES = {"write", "mkdir", "rename", "link", "fsync", "tensors", "connect", "truncate"}  # what a full disk refuses


class Events:
    """Notes what this process does in a folder, and has something happen at one of the events."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.act: Callable[[str, int], None] | None = None
        self.seen: list[str] = []
        self.own = threading.local()
        self.installed = False

    def arm(self, folder: Path, act: Callable[[str, int], None] | None = None) -> None:
        if not self.installed:
            sys.addaudithook(self.audit)  # for as long as the process lives
            self.wrap()
        self.installed, self.folder, self.act, self.seen = True, str(folder), act, []

    def disarm(self) -> None:
        self.folder = None

    def note(self, name: str) -> None:
        if self.folder is None or getattr(self.own, "inside", False):
            return
        self.own.inside = True
        try:
            self.seen.append(name)
            if self.act:
                self.act(name, self.seen.count(name))
        finally:
            self.own.inside = False

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        if self.folder is None or not (event == "open" or event in AUDITED):
            return
        path = args[0]
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        if not isinstance(path, (str, os.PathLike)) or self.folder not in str(path):
            return
        if event == "open":
            writes = (
                args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) if isinstance(args[2], int) else "r" not in args[1]
            )
            self.note("write" if writes else "read")
        else:
            self.note(AUDITED[event])

    def wrap(self) -> None:
        """Note what Python's audit hooks do not see."""
        import safetensors.torch
        import torch

        from ftnb.training.learner import Learner

        def noted(function: Callable[..., Any], name: str) -> Callable[..., Any]:
            def call(*args: Any, **options: Any) -> Any:
                self.note(name)
                return function(*args, **options)

            return call

        functions = {os.fsync: "fsync", torch.save: "tensors", safetensors.torch.save_file: "tensors"}
        functions |= {safetensors.torch.load_file: "read"}
        for function, name in functions.items():
            new = noted(function, name)
            for module in [m for k, m in sys.modules.items() if k.split(".")[0] in HOLDERS]:
                for key in [k for k, v in vars(module).items() if v is function]:
                    setattr(module, key, new)
        start = threading.Thread.start

        def begin(thread: threading.Thread) -> None:
            if "ftnb" in thread.name:  # those of other libraries are left to them
                self.note("thread")
            start(thread)

        threading.Thread.start = begin  # type: ignore[method-assign]
        for moment in MOMENTS:
            setattr(Learner, moment, noted(getattr(Learner, moment), moment))


HOLDERS = {"ftnb", "os", "torch", "safetensors", "transformers", "peft"}  # of the functions that are noted
EVENTS = Events()


# ---------------------------------------------------------------------------------------------------------- faults


@dataclass(frozen=True)
class Fault:
    name: str
    kind: str  # "writing": while something is written; "reading": while it is read; "kept": to files that lie there
    says: str  # what happens, for readers


FAULTS = [
    Fault("killed", "writing", "kill -9 at one of its events"),
    Fault("terminated", "writing", "SIGTERM at one of its events"),
    Fault("Ctrl-C", "writing", "an interrupt at one of its events"),
    Fault("Ctrl-C twice", "writing", "a second interrupt soon after the first"),
    Fault("full disk", "writing", "no room left, from one of its events on"),
    Fault("no thread", "writing", "the system starts no more threads"),
    Fault("read error", "reading", "a file that the disk cannot read"),
    Fault("flipped bit", "kept", "one bit of one file"),
    Fault("cut file", "kept", "a file cut short, or empty"),
    Fault("lost file", "kept", "a file that is gone"),
    Fault("other file", "kept", "a file with other contents, or a folder in its place"),
    Fault("added file", "kept", "a file or a copy that somebody put there"),
]
BY_NAME = {fault.name: fault for fault in FAULTS}


def happening(fault: str, event: tuple[str, int], chance: random.Random) -> Callable[[str, int], None]:
    """What happens at an event."""
    later = chance.randint(1, 6)  # events between two interrupts
    sticks, size = chance.random() < 0.6, chance.choice([0, 100, 4096, 20_000])
    limited = chance.random() < 0.4
    state = {"since": -1}

    def act(name: str, n: int) -> None:
        now = (name, n) == event
        state["since"] += now or state["since"] >= 0
        if fault == "killed" and now:
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault == "terminated" and now:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.sigtimedwait([], 5)  # it may need a moment to arrive
        elif now and fault.startswith("Ctrl-C") or fault == "Ctrl-C twice" and state["since"] == later:
            os.kill(os.getpid(), signal.SIGINT)
        elif fault == "full disk" and limited and now:
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        elif fault == "full disk" and not limited and name in WRITES and (now or sticks and state["since"] >= 0):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        elif fault == "read error" and now:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        elif fault == "no thread" and now:
            raise RuntimeError("can't start new thread")

    return act


def possible(fault: str, events: list[str]) -> list[str]:
    """The names of the events at which a fault can happen."""
    wanted = {"full disk": WRITES, "read error": {"read"}, "no thread": {"thread"}}.get(fault)
    return sorted({e for e in events if wanted is None or e in wanted})


def choose_event(fault: str, events: list[str], chance: random.Random) -> tuple[str, int]:
    """A kind of event, and the how many-th: rare kinds come as often as frequent ones."""
    name = chance.choice(possible(fault, events))
    return name, chance.randint(1, events.count(name))


def damage(fault: str, folder: Path, chance: random.Random) -> tuple[str, dict[Path, bytes]]:
    """Damage something in a folder; what was done, and the files that nobody may delete or change afterwards."""
    files = [f for f in sorted(folder.rglob("*")) if f.is_file() and not f.is_symlink()]
    file = chance.choice([f for f in files if f.stat().st_size] or files)
    data, name = file.read_bytes(), str(file.relative_to(folder))
    if fault == "flipped bit":
        place, bit = chance.randrange(len(data)), chance.randrange(8)
        file.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
        return f"bit {bit} of byte {place} of {name}", {}
    if fault == "cut file":
        size = chance.choice([0, chance.randrange(len(data))])
        file.write_bytes(data[:size])
        return f"{name} cut to {size} of {len(data)} bytes", {}
    if fault == "lost file":
        file.unlink()
        return f"{name} removed", {}
    if fault == "other file":
        return _exchange(file, files, name, chance), {}
    place = chance.choice(sorted({f.parent for f in files}))
    return _add(place, folder, chance)


def _exchange(file: Path, files: list[Path], name: str, chance: random.Random) -> str:
    others = [f for f in files if f.suffix == file.suffix and f != file and f.read_bytes() != file.read_bytes()]
    how = chance.choice(["[]", "null", "5", "{}", "\ud83d\ude00" * 9, "folder", *["neighbour"] * 2 * bool(others)])
    if how == "folder":
        file.unlink()
        file.mkdir()
        return f"{name} is a folder"
    if how == "neighbour":
        other = chance.choice(others)
        shutil.copyfile(other, file)
        return f"{name} has the contents of {other.name}"
    file.write_bytes(how.encode("utf-16", "surrogatepass") if len(how) > 4 else how.encode())
    return f"{name} replaced by {how[:4]!a}"


def _add(place: Path, folder: Path, chance: random.Random) -> tuple[str, dict[Path, bytes]]:
    name = chance.choice(["thesis.txt", "notes.json", ".DS_Store", "step-best", "step-old", "step-7-copy"])
    new = place / name
    where = f"{new.relative_to(folder)} added"
    steps = sorted(p for p in folder.rglob("step-*") if p.is_dir())
    if name.startswith("step-") and steps:
        new = steps[-1].with_name(name)
        shutil.copytree(steps[-1], new)
        where = f"{new.relative_to(folder)} added, a copy of {steps[-1].name}"
    else:
        new.write_bytes(b'{"mine": true}')
    kept = [new] if new.is_file() else [f for f in new.rglob("*") if f.is_file()]
    return where, {f: f.read_bytes() for f in kept}


# ---------------------------------------------------------------------------------------------------------- trials

TEMPORARY = re.compile(r"\..+-[\w-]{4,}")  # .name-XXXX: what is written aside
BUSY = ("another run is writing", "another process is writing", "is training it", "still going on")


def left_behind(folder: Path, threads: set[threading.Thread]) -> str:
    """What should not be there after some work: open files, threads, locks."""
    running = [t for t in set(threading.enumerate()) - threads if "ftnb" in t.name]
    for thread in running:
        thread.join(30)  # a run in the background goes on when its `wait` is interrupted
    gc.collect()
    links = [Path("/proc/self/fd") / n for n in os.listdir("/proc/self/fd")]
    opened = {os.readlink(link) for link in links if link.is_symlink()}
    trouble = [f"still open: {Path(p).relative_to(folder)}" for p in opened if p.startswith(f"{folder}/")]
    trouble += [f"still running: {t.name}" for t in running if t.is_alive()]
    return "; ".join(trouble)


def attempt(name: str, verb: str, folder: Path, fault: str | None, event: tuple[str, int], seed: str) -> dict[str, Any]:
    """Do something in this process, with a fault or without, and once more where the process lives on."""
    from subjects import SUBJECTS

    from ftnb.core.errors import FTNBError

    subject, chance = SUBJECTS[name], random.Random(seed)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def outcome(work: Callable[[Path], Any]) -> dict[str, Any]:
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            try:
                return {"kind": "value", "value": json.loads(json.dumps(work(folder)))}
            except FTNBError as error:
                return {"kind": "refused", "why": str(error), "held": error}
            except KeyboardInterrupt as error:
                return {"kind": "interrupted", "held": error, "why": traceback.format_exc()}
            except BaseException as error:
                return {"kind": "raw", "why": traceback.format_exc(), "held": error}

    subject.get_ready(folder)
    threads = set(threading.enumerate())
    EVENTS.arm(folder, happening(fault, event, chance) if fault else None)
    said: dict[str, Any] = {"kind": "interrupted"}
    try:
        said = outcome(getattr(subject, verb))
        EVENTS.disarm()
    except KeyboardInterrupt:  # the second one, on the way out
        EVENTS.disarm()
    said["events"] = EVENTS.seen
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    if said["kind"] != "value" and fault and chance.random() < 0.5:  # in the same kernel, where the error lives on
        said["again"] = outcome(subject.read)
        said["again"].pop("held", None)
    if fault is None or said["kind"] == "value":
        said.pop("held", None)
    said["left"] = left_behind(folder, threads)
    said.pop("held", None)
    if fault is None and verb == "read":  # and then the next writer
        said["write"] = outcome(subject.write)
        said["write"].pop("held", None)
    return said


@dataclass
class Verdict:
    subject: str
    fault: str
    seed: int
    result: str  # "identical", "refused", "failed"
    what: str = ""  # was done
    why: str = ""  # it failed, or was refused


@dataclass
class Bench:
    """A subject in a folder that always has the same path: it is put back before each trial."""

    subject: Any
    root: Path

    def __post_init__(self) -> None:
        self.here, self.before, self.after = (self.root / name for name in ("here", "before", "after"))
        self.here.mkdir(parents=True)
        self.old = in_process(prepared, self.subject.name, self.here)
        shutil.copytree(self.here, self.before)
        done = self.do("write")
        self.new, self.events = done.get("value"), done["events"]
        if done["kind"] != "value":
            pytest.fail(f"{self.subject.name}, without any fault: {done['why']}")
        self.put(self.before)
        in_process(left_half_done, self.subject.name, self.here)
        shutil.copytree(self.here, self.after)
        read = self.do("read")
        if read.get("value") != self.new:
            pytest.fail(f"{self.subject.name}, without any fault, reads {read}, not {self.new!r:.500}")
        self.reads = read["events"]

    def put(self, state: Path) -> None:
        shutil.rmtree(self.here)
        shutil.copytree(state, self.here)

    def do(self, verb: str, fault: str | None = None, event: tuple[str, int] = ("", 0), seed: str = "") -> dict:
        killed = {"kind": "killed", "events": [], "left": ""}
        return in_process(attempt, self.subject.name, verb, self.here, fault, event, seed, killed=killed)

    def can(self, fault: str) -> bool:
        events = {"writing": self.events, "reading": self.reads}.get(BY_NAME[fault].kind)
        return events is None or bool(possible(fault, events))

    def is_right(self, value: Any, between: bool) -> bool:
        """Whether something that was read is what there should be; or what there was, if it was being written."""
        if value == self.new or between and self.old is not None and value == self.old:
            return True
        return between and self.subject.is_part(self.old, value, self.new)

    def trial(self, fault: str, seed: int) -> Verdict:
        """One fault, and what came of it."""
        key = f"{self.subject.name} {fault} {seed}"
        chance, verdict = random.Random(key), Verdict(self.subject.name, fault, seed, "failed")
        kind, kept = BY_NAME[fault].kind, {}
        try:
            if kind == "kept":
                self.put(self.after)
                verdict.what, kept = damage(fault, self.here, chance)
            else:
                self.put(self.before if kind == "writing" else self.after)
                event = choose_event(fault, self.events if kind == "writing" else self.reads, chance)
                verdict.what = f"{fault} at {event[0]} {event[1]}"
                first = self.do("write" if kind == "writing" else "read", fault, event, key)
                verdict.why = self.trouble_at_once(first, fault)
            if not verdict.why:
                self.read_again(verdict, kind == "writing", kept)
        except pytest.fail.Exception as error:
            verdict.why = str(error)
        return verdict

    def trouble_at_once(self, first: dict, fault: str) -> str:
        """What was wrong while it happened: another error than an FTNBError, something left open, a wrong result."""
        if first["kind"] == "raw" or first["kind"] == "interrupted" and not fault.startswith("Ctrl-C"):
            return f"an error that is no FTNBError: {last_line(first)}"
        if first["left"]:
            return first["left"]
        if first["kind"] == "value" and not self.subject.is_done(first["value"], self.new, fault):
            return f"went on to another result: {first['value']!r:.300}"
        again = first.get("again", {})
        if again.get("kind") in ("raw", "interrupted"):
            return f"again in the same kernel, an error that is no FTNBError: {last_line(again)}"
        if any(words in again.get("why", "") for words in BUSY):
            return f"in the same kernel a lock is still held: {again['why']}"
        if again.get("kind") == "value" and not self.is_right(again["value"], True):
            return f"again in the same kernel, another result: {again['value']!r:.300}"
        return ""

    def read_again(self, verdict: Verdict, between: bool, kept: dict[Path, bytes]) -> None:
        """In another process: what is read, and what is there after the next writer."""
        read = self.do("read")
        if read["kind"] not in ("value", "refused"):
            verdict.why = f"then, an error that is no FTNBError: {last_line(read)}"
        elif read["kind"] == "value" and not self.is_right(read["value"], between):
            verdict.why = f"then, silently, another result: {read['value']!r:.300}"
        elif read["kind"] == "refused" and between and self.subject.always_there:
            verdict.why = f"neither the old nor the new is there: {read['why']}"
        else:
            verdict.result = "identical" if read["kind"] == "value" else "refused"
            verdict.why = read["left"] or (read["why"] if read["kind"] == "refused" else "")
            if read["left"]:
                verdict.result = "failed"
        if verdict.result != "failed":
            wrong = self.next_writer(read["write"])
            wrong = wrong or (self.lost(kept) if self.subject.keeps_others else "")
            if wrong:
                verdict.result, verdict.why = "failed", wrong

    def next_writer(self, done: dict) -> str:
        """The next writer gets the right thing, or an FTNBError, and clears away what others left."""
        if done["kind"] not in ("value", "refused"):
            return f"the next writer gets an error that is no FTNBError: {last_line(done)}"
        if done["kind"] == "refused":
            return ""
        if done["value"] != self.new:
            return f"the next writer gets another result: {done['value']!r:.300}"
        aside = [str(p.relative_to(self.here)) for p in self.here.rglob(".*") if TEMPORARY.fullmatch(p.name)]
        return f"the next writer leaves {', '.join(aside[:5])}" if aside else ""

    @staticmethod
    def lost(kept: dict[Path, bytes]) -> str:
        gone = [f for f, data in kept.items() if not f.is_file() or f.read_bytes() != data]
        return f"what somebody put there is gone: {gone[0].name}" if gone else ""


def last_line(said: dict) -> str:
    """The last line of a traceback, and where in the library it was."""
    lines = [line.strip() for line in said.get("why", "").strip().splitlines()] or [""]
    own = [re.sub(r'File ".*?/(ftnb/[^"]+)", line (\d+), in (\w+).*', r"\1:\2 \3", s) for s in lines if "/ftnb/" in s]
    return f"{lines[-1][:300]} [{own[-1] if own else said['kind']}]"


def prepared(name: str, folder: Path) -> Any:
    """What is there before a subject writes, and how that reads."""
    from subjects import SUBJECTS

    os.chdir(folder)
    SUBJECTS[name].get_ready(folder)
    return json.loads(json.dumps(SUBJECTS[name].prepare(folder)))


def left_half_done(name: str, folder: Path) -> None:
    """What lies in the folder when files are damaged."""
    from subjects import SUBJECTS

    os.chdir(folder)
    SUBJECTS[name].get_ready(folder)
    SUBJECTS[name].leave(folder)
