"""Drives a real JupyterLab in headless Chromium, as a person would: cells, the toolbar, buttons in outputs, themes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat

ROOT = Path(__file__).resolve().parent.parent.parent
WAIT = 90.0  # seconds for anything that a test waits for
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
ARGS += ["--disable-component-update", "--disable-sync"]


def chromium() -> str | None:
    """Where Chromium is installed; the environment's CHROMIUM has the first word."""
    return next((found for n in (os.environ.get("CHROMIUM", ""), *NAMES) if n and (found := shutil.which(n))), None)


def until(what: Callable[[], Any], why: str, wait: float = WAIT) -> Any:
    """The first true value of `what()`; a failure that says `why` if there is none in time."""
    end = time.monotonic() + wait
    while not (found := what()):
        assert time.monotonic() < end, f"not within {wait:.0f} s: {why}"
        time.sleep(0.1)
    return found


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def jupyter_lab(folder: Path) -> Iterator[str]:
    """A JupyterLab of its own, with all that it reads and writes in `folder`; its URL, with the token."""
    port, token, log = free_port(), secrets.token_hex(16), folder / "jupyter.log"
    own = {"CONFIG": "config", "DATA": "data", "RUNTIME": "runtime"}
    env = {k: v for k, v in os.environ.items() if not k.startswith("JUPYTER") and k != "IN_TEST"}
    env |= {f"JUPYTER_{what}_DIR": str(folder / name) for what, name in own.items()}
    env |= {f"JUPYTERLAB_{what}_DIR": str(folder / what.lower()) for what in ("SETTINGS", "WORKSPACES")}
    env |= {"IPYTHONDIR": str(folder / "ipython"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    env["PYTHONPATH"] = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)
    env.setdefault("OMP_NUM_THREADS", "1")
    options = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.open_browser": False,
        "ServerApp.allow_root": True,
        "ServerApp.root_dir": folder / "work",
        "IdentityProvider.token": token,
        "LabApp.expose_app_in_browser": True,
        "LabApp.news_url": None,
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        "LabApp.extension_manager": "readonly",
    }
    (folder / "work").mkdir()
    quiet = folder / "settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))  # and it does not ask whether it may
    command = [sys.executable, "-m", "jupyterlab", *(f"--{k}={v}" for k, v in options.items())]
    with log.open("w") as out:
        server = subprocess.Popen(command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert server.poll() is None, f"jupyter lab has ended:\n{log.read_text()[-2000:]}"
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            return urllib.request.urlopen(f"{url}/api/status?token={token}", timeout=5).status == 200
        return False

    try:
        until(ready, "jupyter lab answers")
        yield f"{url}/lab?token={token}"
    finally:
        server.terminate()  # it ends its kernels
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


class Lab:
    """JupyterLab in a page of a browser."""

    def __init__(self, page: Any, url: str, work: Path) -> None:
        self.page, self.url, self.work = page, url, work
        page.set_default_timeout(WAIT * 1000)
        self.start()

    def start(self) -> None:
        """Load JupyterLab."""
        self.page.goto(self.url)
        self.page.wait_for_function("!!window.jupyterapp")
        self.page.evaluate("async () => { await jupyterapp.restored }")

    def command(self, name: str, **args: Any) -> None:
        """Execute a command of JupyterLab, and wait until it is done."""
        self.page.evaluate("async ([name, args]) => { await jupyterapp.commands.execute(name, args) }", [name, args])

    def theme(self, name: str) -> None:
        """Switch to 'JupyterLab Light' or 'JupyterLab Dark'."""
        self.command("apputils:change-theme", theme=name)
        self.page.wait_for_selector(f'body[data-jp-theme-name="{name}"]', state="attached")
        self.page.wait_for_selector("#jupyterlab-splash", state="detached")

    def notebook(self, name: str, first: str) -> Notebook:
        """Write a notebook of one cell, open it, and wait for its kernel."""
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(first)])
        nb.metadata["kernelspec"] = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
        nbformat.write(nb, self.work / name)
        self.open(name)
        return Notebook(self, self.work / name)

    def reload(self, notebook: Notebook) -> None:
        """Load the page again, and open a notebook in it; its kernel goes on."""
        self.page.goto("about:blank")
        self.start()
        self.open(notebook.path.name)

    def open(self, name: str) -> None:
        """Open a notebook, and wait for its kernel."""
        self.page.evaluate(
            """async path => {
                window.panel = await jupyterapp.commands.execute('docmanager:open', {path});
                await panel.context.ready;
                await panel.revealed;
                await panel.sessionContext.ready;
                await panel.sessionContext.session.kernel.info;
            }""",
            name,
        )


class Notebook:
    """The open notebook."""

    def __init__(self, lab: Lab, path: Path) -> None:
        self.lab, self.page, self.path = lab, lab.page, path
        self.panel = self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")

    def add(self, source: str) -> int:
        """Add a cell at the end; its number."""
        return self.page.evaluate(
            """source => {
                panel.content.model.sharedModel.addCell({cell_type: 'code', source, metadata: {trusted: true}});
                return panel.content.widgets.length - 1;
            }""",
            source,
        )

    def start(self, cell: int | str) -> Cell:
        """Have a cell run, the one of this number or a new one of this source; do not wait for it."""
        n = self.add(cell) if isinstance(cell, str) else cell
        self.page.evaluate(
            """n => {
                panel.content.activeCellIndex = n;
                panel.content.deselectAll();
                void jupyterapp.commands.execute('notebook:run-cell');
            }""",
            n,
        )
        return Cell(self, n)

    def run(self, cell: int | str) -> Cell:
        """Have a cell run, to its end."""
        ran = self.start(cell)
        until(lambda: ran.done, f"cell {ran.n} ends")
        return ran

    def ask(self, expression: str) -> str:
        """What the kernel prints for an expression, without a cell."""
        return self.page.evaluate(
            """async ([code, wait]) => {
                const future = panel.sessionContext.session.kernel.requestExecute({code, store_history: false});
                let said = '';
                future.onIOPub = message => { said += message.content.text ?? message.content.evalue ?? '' };
                const late = new Promise((_, fail) => setTimeout(() => fail(new Error(code + ': no answer')), wait));
                await Promise.race([future.done, late]);
                return said.trim();
            }""",
            [f"print({expression})", WAIT * 1000],
        )

    def interrupt(self) -> None:
        """Click ■ in the toolbar."""
        self.panel.locator('.jp-NotebookPanel-toolbar [data-jp-item-name="interrupt"]').click()

    def is_busy(self) -> bool:
        return self.page.evaluate("panel.sessionContext.session.kernel.status === 'busy'")

    def save(self) -> str:
        """Save the notebook; the text of the file."""
        self.lab.command("docmanager:save")
        self.page.wait_for_function("!panel.context.model.dirty")
        return self.path.read_text(encoding="utf-8")


class Cell:
    """A cell of an open notebook, and what is seen below it."""

    def __init__(self, notebook: Notebook, n: int) -> None:
        self.page, self.n = notebook.page, n
        self.node = notebook.panel.locator(f'.jp-Cell[data-windowed-list-index="{n}"]')
        self.outputs = self.node.locator(".jp-Cell-outputArea")

    @property
    def done(self) -> bool:
        """Whether it has run, to the end."""
        state = "panel.content.widgets[n].model"
        return self.page.evaluate(f"n => {state}.executionState === 'idle' && {state}.executionCount !== null", self.n)

    @property
    def text(self) -> str:
        """What is to be read below it."""
        below = "panel.content.widgets[n].outputArea.node"  # in the page, or scrolled away
        return self.page.evaluate(f"n => {below}.innerText", self.n)

    def number(self, pattern: str) -> int:
        """The number that a pattern's group finds in the text; -1: none."""
        found = re.search(pattern, self.text)
        return int(found[1].replace(",", "")) if found else -1

    def show(self) -> Cell:
        """Scroll to it."""
        self.page.evaluate("async n => { await panel.content.scrollToItem(n) }", self.n)
        self.node.scroll_into_view_if_needed()
        return self

    def button(self, text: str) -> Any:
        """A button of the control panel."""
        return self.show().outputs.locator("button.ftnb-control", has_text=text)

    def picture(self, path: Path) -> None:
        """Save a screenshot of it."""
        self.show().node.screenshot(path=str(path))
