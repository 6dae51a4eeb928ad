"""One JupyterLab, one browser and one kernel for all of these tests."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from labdriver import ARGS, Lab, Notebook, chromium, jupyter_lab, until

SETUP = """
import time
from ftnb import *

class Slow(Callback):
    seconds = 0.
    def after_step(self, learner): time.sleep(self.seconds)

texts = ['To be, or not to be, that is the question'] * 16
data = encode(tiny_lm(), {'train': texts, 'valid': texts[:2]})
shown = dict(lr=1e-2, batch_size=4, valid_every=4, samples='To be', callbacks=[Slow()])
"""


def lacking() -> str:
    """What must be installed before these tests can run; '' if nothing."""
    packages = [p for p in ("jupyterlab", "ipywidgets", "playwright") if importlib.util.find_spec(p) is None]
    what = [f"pip install {' '.join(packages)}"] * bool(packages)
    return " and ".join(what + ["install chromium (or name it: CHROMIUM=...)"] * (chromium() is None))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    if missing := lacking():
        said = f"JupyterLab cannot be tested in a browser: {missing}"
        pytest.fail(said, pytrace=False) if os.environ.get("CI") == "true" else pytest.skip(said)
    from playwright.sync_api import sync_playwright

    folder = tmp_path_factory.mktemp("lab")
    with jupyter_lab(folder) as url, sync_playwright() as player:
        browser = player.chromium.launch(executable_path=chromium(), args=ARGS)
        try:
            yield Lab(browser.new_page(viewport={"width": 1280, "height": 900}), url, folder / "work")
        finally:
            browser.close()


@pytest.fixture(scope="module")
def kernel(lab: Lab) -> Notebook:
    """A notebook whose first cell has been run."""
    notebook = lab.notebook("live.ipynb", SETUP.strip())
    first = notebook.run(0)
    assert not first.text, first.text
    return notebook


@pytest.fixture
def notebook(kernel: Notebook) -> Iterator[Notebook]:
    """The same, with a model that knows nothing, and with nothing that goes on when the test is over."""
    kernel.ask("globals().update(lm=tiny_lm(), run=None)")
    yield kernel
    if kernel.is_busy():
        kernel.interrupt()
        until(lambda: not kernel.is_busy(), "the kernel is free again")
    kernel.ask("run and run.controls and run.stop()")


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    """Where screenshots go: LAB_SHOTS, or nowhere that lasts."""
    folder = Path(os.environ.get("LAB_SHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
