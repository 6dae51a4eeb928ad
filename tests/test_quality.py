"""Lint and types, as tests, so that one run of pytest counts everything."""

import subprocess
import sys

import nb
import pytest

# mypy holds ftnb to its own annotations; following torch and transformers as well takes minutes, and reports their stubs.
CHECKS = {
    "ruff": ["ruff", "check", "--output-format=concise", "ftnb", "tests", ".ci", "setup.py"],
    "mypy": ["mypy", "--ignore-missing-imports", "--check-untyped-defs", "--follow-imports=skip", "ftnb", ".ci/nb.py"],
}


@pytest.mark.parametrize("tool", CHECKS)
def test_quality(tool: str) -> None:
    done = subprocess.run([sys.executable, "-m", *CHECKS[tool]], cwd=nb.ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.fail(done.stdout + done.stderr, pytrace=False)
