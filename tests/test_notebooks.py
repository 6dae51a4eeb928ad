"""Every notebook is a test: it runs from top to bottom, in a process of its own, as nbdev runs it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import nb
import pytest
from nbdev.config import get_config

TIMEOUT = 600  # seconds a notebook
TEST_NB = """
import sys; from pathlib import Path; from nbdev.test import test_nb
path, root, skip, force = sys.argv[1:]
passed, _ = test_nb(Path(path), skip_flags=skip.split(), force_flags=force.split(), basepath=root)
sys.exit(not passed)
"""


@pytest.mark.parametrize("path", nb.notebooks(), ids=nb.name)
def test_notebook(path: Path, request: pytest.FixtureRequest) -> None:
    flags = [get_config().tst_flags, request.config.getoption("--force")]
    process = subprocess.Popen(
        [sys.executable, "-c", TEST_NB, str(path), str(nb.ROOT), *flags],
        env={**os.environ, **nb.OFFLINE, "MPLBACKEND": "agg"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with whatever processes the notebook started
        tail = process.communicate()[0][-4000:]
        pytest.fail(f"not finished after {TIMEOUT} s; its last output:\n{tail}", pytrace=False)
    if process.returncode:
        pytest.fail(f"exit status {process.returncode}\n{output[-8000:]}", pytrace=False)
