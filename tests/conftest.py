"""What the tests share: the project's paths, its notebook tool, and `--force`."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / ".ci"))  # tests import the notebook tool as `nb`


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--force", default="", help="notebook flags whose cells run as well, such as 'slow cuda'")


@pytest.fixture(autouse=True)
def in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """nbdev finds settings.ini from the working directory; IN_TEST in the environment would switch its export off."""
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("IN_TEST", raising=False)
