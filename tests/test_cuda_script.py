"""The CUDA script works, as far as that can be seen without CUDA: every branch, on tiny models, on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = "nbs/benchmarks/cuda_check.py"
PARTS = (
    "about attention fallback trees cross-entropy bf16 sync compile filled memory resume float16 overheads profile "
    "speed table"
).split()


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        capture_output=True,
        text=True,
        timeout=540,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess, list[dict]]:
    out = tmp_path_factory.mktemp("cuda")
    found = run("--device", "cpu", "--tiny", OUT=str(out))
    assert (out / "cuda.jsonl").is_file(), found.stdout + found.stderr
    return found, [json.loads(line) for line in (out / "cuda.jsonl").read_text(encoding="utf-8").splitlines()]


def test_parts(done: tuple) -> None:
    assert list(dict.fromkeys(r["part"] for r in done[1])) == PARTS


def test_checks(done: tuple) -> None:
    found, rows = done
    failed = {(r["part"], r["what"]): r["words"] for r in rows if r.get("status") == "FAILED"}
    assert not failed
    assert found.returncode == 0
    assert {r["status"] for r in rows[:-1]} <= {"ok", "FAILED", "note", "skipped"}
    ok = {(r["part"], r["what"]) for r in rows if r.get("status") == "ok"}
    names = ("llama", "gpt2", "qwen3", "mistral", "gemma2")
    assert {("attention", name) for name in names} | {("sync", "control"), ("memory", "llama")} <= ok


def test_table(done: tuple) -> None:
    found, rows = done
    table = rows[-1]["lines"]
    assert "\n".join(table) in found.stdout
    seen = {tuple(line[at:to].strip() for at, to in ((0, 20), (20, 26), (26, 45))) for line in table[2:]}
    assert {("smollm2-135m", "full", "ftnb"), ("llama-1b", "LoRA", "ftnb"), ("gpt2-124m", "full", "ftnb")} <= seen
    speeds = [r["numbers"] for r in rows if r["part"] == "speed" and r.get("status") == "ok"]
    assert all(n["rate"] > 0 and 0.3 < n["share"] <= 1 and n["tokens"] == speeds[0]["tokens"] for n in speeds)


def test_without_cuda() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is CUDA")
    found = run("--quick")
    assert (found.returncode, "There is no CUDA here" in found.stdout) == (2, True)


def test_is_a_plain_script() -> None:
    text = Path(SCRIPT).read_text(encoding="utf-8")
    assert "/home/" not in text and "/work/" not in text
