"""What the tests share: the project's paths, its notebook tool, and `--force`."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):  # processes beside each other share the cores
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / ".ci"))  # tests import the notebook tool as `nb`


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="changed notebooks, and the tests that take seconds")
    parser.addoption("--force", default="", help="notebook flags whose cells run as well, such as 'slow cuda'")
    parser.addoption("--faults", type=int, help="about so many faults in tests/test_survival.py")
    parser.addoption("--faults-seed", type=int, default=0, help="from which those faults are drawn")
    parser.addoption("--faults-table", help="a .csv file for the table of what survived")


# files of tests that take seconds
QUICK = {"test_contract", "test_grown", "test_import", "test_quality", "test_rhythm", "test_structure", "test_sync"}


def changed() -> set[str]:
    """The files that differ from the last commit, relative to the project's root."""
    git = ["git", "status", "--porcelain", "--untracked-files=all", "--no-renames"]
    lines = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return {line[3:] for line in lines}


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep together what shares a browser or a long run; with `--quick`, leave out what is slow and not touched."""
    for item in items:
        if "lab" in Path(item.path).parts or Path(item.path).stem == "test_cuda_script":
            item.add_marker(pytest.mark.xdist_group(Path(item.path).parent.name))
    if not config.getoption("--quick"):
        return
    touched = changed()
    kept = [item for item in items if Path(item.path).stem in QUICK or is_touched(item, touched)]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The table of what survived which faults, if any were injected."""
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, [])]
    found = [
        json.loads(text) for r in reports for name, text in getattr(r, "user_properties", ()) if name == "survival"
    ]
    if not found:
        return
    from survival_table import as_text, write_table

    terminalreporter.section(f"what survived (seed {config.getoption('--faults-seed')})")
    terminalreporter.write(as_text(found))
    if file := config.getoption("--faults-table"):
        write_table(Path(file), found, config.getoption("--faults-seed"))


def is_touched(item: pytest.Item, touched: set[str]) -> bool:
    """Whether a test, or the notebook that it runs, differs from the last commit."""
    notebook = getattr(item, "callspec", None) and item.callspec.params.get("path")  # type: ignore[attr-defined]
    file = notebook if isinstance(notebook, Path) else Path(item.path)
    return file.relative_to(ROOT).as_posix() in touched


@pytest.fixture(autouse=True)
def in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """nbdev finds settings.ini from the working directory; IN_TEST in the environment would switch its export off."""
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("IN_TEST", raising=False)


@pytest.fixture(scope="module")
def lm() -> Any:
    """A tiny model without a chat template."""
    from ftnb.models.from_scratch import tiny_lm

    return tiny_lm()


@pytest.fixture(scope="module")
def chat() -> Any:
    """A tiny model with one."""
    from ftnb.models.from_scratch import tiny_lm

    return tiny_lm(chat=True)
