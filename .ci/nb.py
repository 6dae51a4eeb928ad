#!/usr/bin/env python
"""What turns the notebooks into everything else: modules, stored outputs, README, website. See the Makefile."""

from __future__ import annotations

import argparse
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import chdir
from functools import cache
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from pprint import pformat
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote, urlsplit

import nbformat
import yaml
from documented import document, plain
from execnb.nbio import nb2str, read_nb
from fastcore.docments import DocmentTbl, _bold, _list2row, _maybe_nm
from grown import CannotGrow, grow
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbdev.clean import clean_nb
from nbdev.config import get_config
from nbdev.doclinks import _build_modidx, nbdev_export
from nbdev.process import extract_directives
from nbdev.processors import FilterDefaults, exec_show_docs
from nbdev.quarto import refresh_quarto_yml
from nbdev.showdoc import BasicMarkdownRenderer

ROOT = Path(__file__).resolve().parent.parent
NBS, DOCS, PROC = ROOT / "nbs", ROOT / "_docs", ROOT / "_proc"
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
KERNELSPEC = {"display_name": "python3", "language": "python", "name": "python3"}
PROGRESS = re.compile(r"\d%\|")  # tqdm's bar
MACHINE_PATH = re.compile(
    rf"{re.escape(str(ROOT))}\b|/(?:home|Users|root|tmp|var/folders)/|(?:site|dist)-packages/|\.venv/"
)
Json = dict[str, Any]  # a notebook, or a part of one


def listed(contents: list[Any]) -> Iterator[Path]:
    """The notebooks that a part of nbs/sidebar.yml names, in its order."""
    for entry in contents:
        if isinstance(entry, str):
            yield NBS / entry
        elif "section" in entry:
            yield from listed(entry["contents"])
        else:
            yield NBS / entry["href"]


def notebooks() -> list[Path]:
    """All notebooks of the project in reading order, which nbs/sidebar.yml decides."""
    sidebar = yaml.safe_load((NBS / "sidebar.yml").read_text(encoding="utf-8"))
    return list(listed(sidebar["website"]["sidebar"]["contents"]))


def rooms() -> list[Path]:
    """The notebooks that export a module: all that lie in a folder, a floor, other than tutorials and benchmarks."""
    return [path for path in notebooks() if path.parent not in (NBS, NBS / "tutorials", NBS / "benchmarks")]


def unlisted() -> list[Path]:
    """Notebooks that nbs/sidebar.yml does not name, which nothing here would know of."""
    found = (p for p in NBS.rglob("*.ipynb") if not any(part[0] in "._" for part in p.relative_to(NBS).parts))
    return sorted({*found}.difference(notebooks()))


def name(path: Path) -> str:
    """How messages call a file: relative to the repository where it lies inside."""
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)


def joined(text: str | list[str]) -> str:
    return text if isinstance(text, str) else "".join(text)


def directives(cell: Any) -> set[str]:
    """The `#|` lines of a code cell: `{'export'}`, `{'slow'}`, `{'eval: false'}`."""
    found = extract_directives(cell, remove=False) if cell.cell_type == "code" else {}
    return {" ".join([key, *args]).lower() for key, args in found.items()}


# Clean: what is stored in a notebook is what a reader wants to see, and the same on every machine


def tidy_output(output: Json) -> Json | None:
    """`output` without progress bars; None for what means nothing outside a live kernel (widget views)."""
    if any("widget-view" in mime for mime in output.get("data", {})):
        return None
    if output["output_type"] == "stream":
        text = joined(output["text"])
        lines = text.splitlines(keepends=True)
        seen = [line.rstrip("\r\n").rsplit("\r", 1)[-1] + "\n" * line.endswith("\n") for line in lines]
        kept = "".join(line for line in seen if not PROGRESS.search(line))
        if kept != text and not kept.strip():
            return None
        output["text"] = kept.splitlines(keepends=True)
    return output


def tidy(nb: Json) -> str:
    """The text of notebook `nb` (nbformat's JSON) as it is kept under version control."""
    nb["metadata"] = {"kernelspec": dict(KERNELSPEC)}
    for cell in nb["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = [kept for output in cell["outputs"] if (kept := tidy_output(output))]
    clean_nb(nb)
    return nb2str(nb)


def machine_paths(nb: Json) -> Iterator[str]:
    """Where outputs name folders of the machine that they were made on."""
    for n, cell in enumerate(nb["cells"]):
        for output in cell.get("outputs", []):
            text = {mime: data for mime, data in output.get("data", {}).items() if not mime.startswith("image/")}
            shown = json.dumps([text, output.get("text"), output.get("traceback")], ensure_ascii=False)
            if found := MACHINE_PATH.search(re.sub(r"base64,[\w+/=\\]+", "", shown)):
                around = shown[max(0, found.start() - 20) : found.end() + 40]
                yield f"cell {n} (id {cell.get('id')}): the output names a path of this machine: …{around}…"


def hide_private(index: Path) -> None:
    """Leave private names out of nbdev's index: no page has a place for them that a link could lead to."""
    found = runpy.run_path(str(index))["d"]
    private = re.compile(r"\._(?!_)")
    for module, names in found["syms"].items():
        found["syms"][module] = {name: at for name, at in names.items() if not private.search(name)}
    text = pformat(found, width=140, indent=2, compact=True)
    index.write_text(f"# Autogenerated by nbdev\n\nd = {text}\n", encoding="utf-8")


def exported(folder: Path) -> Path:
    """The package in its final form, written inside `folder`; what is written by hand there is copied."""
    for path in [ROOT / "settings.ini", *notebooks()]:
        (folder / name(path)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / name(path))
    get_config.cache_clear()
    with chdir(folder):
        fresh, kept = get_config().lib_path, ROOT / get_config().lib_path.name
        for init in kept.rglob("__init__.py"):
            (fresh / init.relative_to(kept)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(init, fresh / init.relative_to(kept))
        nbdev_export.__wrapped__()
        for path in fresh.rglob("[!_]*.py"):
            path.write_text(document(grow(path.read_text(encoding="utf-8"))), encoding="utf-8")
        _build_modidx()  # again: of whole classes
        hide_private(fresh / "_modidx.py")
    get_config.cache_clear()
    return fresh


def export() -> int:
    """Write ftnb/ from the notebooks, and tidy every notebook; a file that would not change is not touched."""
    for path in notebooks():
        old = path.read_text(encoding="utf-8")
        if (new := tidy(json.loads(old))) != old:
            path.write_text(new, encoding="utf-8")
            print("tidied", name(path))
    with TemporaryDirectory() as folder:
        try:
            fresh = exported(Path(folder))
        except CannotGrow as problem:
            print(f"nothing exported: {problem}")
            return 1
        for new_file in sorted(fresh.rglob("*.py")):
            file = ROOT / fresh.name / new_file.relative_to(fresh)
            if not file.exists() or file.read_bytes() != new_file.read_bytes():
                file.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(new_file, file)
                print("exported", name(file))
    for path in unlisted():
        print(f"not exported: nbs/sidebar.yml does not name {name(path)}")
    return 0


# Execute


@cache
def has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


class Runner(NotebookClient):
    """Executes a notebook in its own folder, in a fresh kernel of this Python; skipped cells keep their outputs."""

    def __init__(self, nb: Any, folder: Path, fast: bool = False, echo: bool = False):
        resources = {"metadata": {"path": str(folder)}}
        super().__init__(
            nb, timeout=None, record_timing=False, store_widget_state=False, coalesce_streams=True, resources=resources
        )
        self.fast, self.echo = fast, Echo() if echo else None

    def create_kernel_manager(self) -> Any:
        self.kernel_name = KERNELSPEC["name"]
        manager: Any = super().create_kernel_manager()
        launcher = ["-m", "ipykernel_launcher", "--log-level=ERROR", "-f", "{connection_file}"]
        manager.kernel_spec.argv = [sys.executable, *launcher]
        return manager

    def skips(self, cell: Any) -> bool:
        flags = directives(cell)
        never = "eval: false" in flags or "nbdev_export(" in cell.source
        return never or ("slow" in flags and self.fast) or ("cuda" in flags and not has_cuda())

    async def async_execute_cell(self, cell: Any, cell_index: int, *args: Any, **kwargs: Any) -> Any:
        if self.echo and cell.cell_type == "markdown":
            for heading in re.findall(r"^#+ +(.+)$", re.sub(r"```.*?```", "", cell.source, flags=re.S), flags=re.M):
                print(f"\n\033[1m{heading}\033[0m" if sys.stdout.isatty() else f"\n── {heading}", flush=True)
        return cell if self.skips(cell) else await super().async_execute_cell(cell, cell_index, *args, **kwargs)

    def process_message(self, msg: Json, cell: Any, cell_index: int) -> Any:
        if self.echo:
            self.echo(msg["msg_type"], msg["content"])
        return super().process_message(msg, cell, cell_index)


class Echo:
    """Prints what a kernel shows as a terminal can show it; a rewritten line comes in a log only now and then."""

    def __init__(self, every: float = 5.0):
        self.every, self.last, self.pending = every, 0.0, ""

    def __call__(self, kind: str, content: Json) -> None:
        if kind == "stream":
            self.line(content["text"], end="")
        elif kind in ("display_data", "update_display_data", "execute_result"):
            data = content["data"]
            text = data.get("text/markdown") or data.get("text/plain", "")
            if any("widget-view" in mime for mime in data) or text.startswith("<IPython.core.display."):
                return
            if kind == "update_display_data":
                self.rewrite(text)
            else:
                self.line("[a figure: see the page]" if text.startswith("<Figure") else text)

    def line(self, text: str, end: str = "\n") -> None:
        """Print a line that stays, after the last version of a rewritten one."""
        print(f"{self.pending}\n{text}" if self.pending else text, end=end, flush=True)
        self.last, self.pending = time.monotonic(), ""

    def rewrite(self, text: str) -> None:
        """Show a new version of the last line: over it in a terminal, in a log when a few seconds have passed."""
        if sys.stdout.isatty():
            print(f"\033[A\033[2K{text}", flush=True)
        elif time.monotonic() - self.last > self.every:
            self.pending = ""
            self.line(text)
        else:
            self.pending = text


def run_cells(runner: Runner, **env: str) -> str | None:
    """Execute; the traceback of the cell that failed, or None."""
    python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    try:
        runner.execute(env={**os.environ, "PYTHONPATH": python_path, **env})
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        return str(error)
    return None


def execute(paths: list[Path], fast: bool = False) -> int:
    """Execute notebooks in place; a notebook that fails stays as it was."""
    failed = 0
    for path in paths or notebooks():
        start = time.time()
        print(f"{name(path)} …", end=" ", flush=True)
        nb = nbformat.read(path, as_version=4)
        problem = run_cells(Runner(nb, path.parent, fast=fast), **OFFLINE)
        text = tidy(json.loads(nbformat.writes(nb)))
        problem = problem or "\n".join(machine_paths(json.loads(text)))
        if not problem:
            path.write_text(text, encoding="utf-8")
        failed += bool(problem)
        print(f"{'FAILED' if problem else 'done'} in {time.time() - start:.0f} s\n{problem}".rstrip(), flush=True)
    return int(failed > 0)


# Pages: for a reader, directives are noise


def for_reader(nb: Any) -> Any:
    """The notebook without front matter, hidden cells and directive lines."""
    cells = []
    for cell in nb.cells:
        flags = directives(cell)
        if cell.cell_type == "raw" or flags & {"hide", "include: false", "default_exp"}:
            continue
        if cell.cell_type == "code":
            cell.source = re.sub(r"^(?:#\|.*\n?)+", "", cell.source)
            cell.metadata["transient"] = {"remove_source": "echo: false" in flags}
            cell.outputs = [] if "output: false" in flags else cell.outputs
        cells.append(cell)
    nb.cells, nb.metadata["language_info"] = cells, {"name": "python"}
    return nb


def run(path: Path, out: Path) -> int:
    """Execute a copy of a notebook before the reader's eyes, and leave it and a page that needs no network in `out`."""
    from nbconvert import HTMLExporter

    start, nb = time.time(), nbformat.read(path, as_version=4)
    problem = run_cells(Runner(nb, path.parent, echo=True))
    text = tidy(json.loads(nbformat.writes(nb)))
    out.mkdir(parents=True, exist_ok=True)
    written, page = out / path.name, out / f"{path.stem}.html"
    written.write_text(text, encoding="utf-8")
    no_network = {"embed_images": True, "mathjax_url": "", "require_js_url": "", "jquery_url": "", "mermaid_js_url": ""}
    exporter = HTMLExporter(exclude_input_prompt=True, exclude_output_prompt=True, **no_network)
    page.write_text(exporter.from_notebook_node(for_reader(nbformat.reads(text, as_version=4)))[0], encoding="utf-8")
    print(f"\n{problem or ''}\n{'Failed' if problem else 'Finished'} in {time.time() - start:.0f} s")
    print(f"  notebook  {name(written)}\n  page      {name(page)}")
    return int(problem is not None)


def readme(check: bool = False) -> int:
    """README.md (and the pictures in README_files/) from nbs/index.ipynb."""
    from nbconvert import MarkdownExporter
    from traitlets.config import Config

    nb = for_reader(nbformat.read(NBS / "index.ipynb", as_version=4))
    # rich HTML would lose its style in a README
    plain = ["text/markdown", "image/svg+xml", "image/png", "image/jpeg", "text/plain"]
    exporter = MarkdownExporter(config=Config(NbConvertBase={"display_data_priority": plain}))
    body, resources = exporter.from_notebook_node(nb, resources={"output_files_dir": "README_files"})

    def from_root(link: re.Match[str]) -> str:
        return f"](nbs/{link[1]}" if (NBS / link[1].partition("#")[0]).exists() else link[0]

    body = re.sub(r"\]\(([^)#:/][^):]*)", from_root, body)
    body = re.sub(r"\n{3,}", "\n\n", body).strip()
    body = f"<!-- Made from nbs/index.ipynb by `make nbs`: edit that notebook. -->\n\n{body}\n"
    files = {"README.md": body.encode(), **resources["outputs"]}
    stale = [file for file, data in files.items() if not (ROOT / file).exists() or (ROOT / file).read_bytes() != data]
    for file in [] if check else stale:
        (ROOT / file).parent.mkdir(exist_ok=True)
        (ROOT / file).write_bytes(files[file])
    what = "is not what nbs/index.ipynb says: make nbs" if check else "written"
    print("\n".join(f"{file} {what}" for file in stale) or "README.md is up to date")
    return int(check and bool(stale))


# The website


class Cells(DocmentTbl):
    """A parameter table in which `str | None` does not end the cell."""

    def _row(self, name: str, props: Any) -> list[str]:
        return [str(x).replace("|", "\\|") if "|" in str(x) else x for x in super()._row(name, props)]

    @property
    def return_str(self) -> str:
        bold = {column: _bold(_maybe_nm(text)) for column, text in self.dm["return"].items()}
        return _list2row(self._row("**Returns**", bold))


class ParameterTable(BasicMarkdownRenderer):
    """nbdev's page of a symbol, with the table of parameters that its documentation comments describe."""

    sym: Any
    fn: str
    docs: str | None
    dm: Any

    def _repr_markdown_(self) -> str:
        # nbdev finds the source line by the name within the module
        self.fn = self.fn.removeprefix(f"{self.sym.__module__}.")
        self.docs = plain(self.docs or "")  # what the table says
        table = Cells(self.sym)
        if table.has_docment:
            self.dm = re.sub(r" +# .*", "", str(self.dm))  # the signature need not repeat the table
        return f"{super()._repr_markdown_()}\n\n{table}\n"


class ShowDocs(exec_show_docs):
    """Documents symbols from the exported module; nbdev would execute all exports and every cell with an import."""

    def begin(self) -> None:
        super().begin()
        found = [cell.directives_["default_exp"] for cell in self.nb.cells if "default_exp" in cell.directives_]
        if found:
            self.k.run_cell(f"from {get_config().lib_name}.{found[0][0]} import *")

    def __call__(self, cell: Any) -> None:
        if cell.cell_type == "code" and re.search(r"^show_doc\(", cell.source, flags=re.M):
            self.k.cell(cell)
            if self.k.exc:
                raise RuntimeError(f"cannot document: {cell.source}") from self.k.exc

    def end(self) -> None:
        """No widget state, which nbdev would store."""


class Pages(FilterDefaults):
    """nbdev's processing of a notebook for the website."""

    def base_procs(self) -> list[Any]:
        return [ShowDocs if proc is exec_show_docs else proc for proc in super().base_procs()]


def process() -> None:
    """nbs/ → _proc/, a website project in which links between pages need no host."""
    cfg = get_config()
    cfg.d["renderer"] = "nb.ParameterTable"  # this module; while nbdev executes cells, __main__ is IPython's
    refresh_quarto_yml()
    shutil.rmtree(PROC, ignore_errors=True)
    shutil.copytree(NBS, PROC, ignore=shutil.ignore_patterns("*.ipynb", "_*", ".*"))
    shutil.copy(ROOT / "_quarto.yml", PROC)
    for path in notebooks():
        nb = read_nb(path)
        Pages()(nb)
        first = nb.cells[0]
        first.source = re.sub(r"^output-file:.*\n", "", first.source, flags=re.M)  # the page has that name already
        text = nb2str(nb).replace(f"{cfg.doc_host}{cfg.doc_baseurl}/", "/")
        page = PROC / path.relative_to(NBS)
        page.parent.mkdir(exist_ok=True)
        page.write_text(text, encoding="utf-8")


def set_maths(page: Path) -> None:
    """Formulas as MathML, which browsers draw by themselves; smalldocs's KaTeX would come from a network."""
    from latex2mathml.converter import convert

    def mathml(tex: re.Match[str]) -> str:
        return convert(unescape(tex[2]), display="block" if tex[1] == "display" else "inline")

    text = re.sub(r"<(link|script)[^>]*/katex@[^>]*>(</script>)?", "", page.read_text(encoding="utf-8"))
    text = re.sub(r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>', mathml, text, flags=re.S)
    page.write_text(text, encoding="utf-8")


class Links(HTMLParser):
    """The ids and the links of a page."""

    def __init__(self, page: Path):
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            if key in ("id", "name") and value:
                self.ids.add(value)
            elif key in ("href", "src") and value:
                self.links.append(value)


def broken_links(site: Path) -> list[str]:
    """Links inside the site that lead nowhere, to a missing file or to a missing heading."""
    pages = {path.resolve(): Links(path) for path in sorted(site.rglob("*.html"))}
    broken = []
    for path, page in pages.items():
        for link in page.links:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            target = target / "index.html" if target.is_dir() else target
            no_heading = url.fragment and target in pages and unquote(url.fragment) not in pages[target].ids
            if no_heading or not target.exists():
                broken.append(f"{path.relative_to(site.resolve())}: {link}")
    return broken


def docs() -> int:
    """Build the website into _docs/, with Quarto where it is installed, else with smalldocs."""
    process()
    if quarto := shutil.which("quarto"):
        render = [quarto, "render", "--no-execute", "--metadata", "html-math-method:mathml"]
    else:
        render = [sys.executable, "-m", "smalldocs.cli", "render", "--strict"]
    if subprocess.run(render, cwd=PROC).returncode:
        return 1
    for page in [] if quarto else (PROC / DOCS.name).rglob("*.html"):
        set_maths(page)
    shutil.rmtree(DOCS, ignore_errors=True)
    shutil.move(PROC / DOCS.name, DOCS)
    broken = broken_links(DOCS)
    fine = f"{name(DOCS)}/index.html: every link inside the site leads somewhere"
    print("\n".join(["broken links:", *broken]) if broken else fine)
    return int(bool(broken))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("export", help=export.__doc__)
    sub = commands.add_parser("execute", help=execute.__doc__)
    sub.add_argument("paths", nargs="*", type=Path, metavar="NOTEBOOK", help="all, where none is named")
    sub.add_argument("--fast", action="store_true", help="leave out the cells marked `#| slow`")
    sub = commands.add_parser("run", help=run.__doc__)
    sub.add_argument("path", type=Path, metavar="NOTEBOOK")
    sub.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    sub = commands.add_parser("readme", help=readme.__doc__)
    sub.add_argument("--check", action="store_true", help="change nothing; fail where README.md is out of date")
    commands.add_parser("docs", help=docs.__doc__)
    args = vars(parser.parse_args())
    args = {key: value.resolve() if isinstance(value, Path) else value for key, value in args.items()}
    if "paths" in args:
        args["paths"] = [path.resolve() for path in args["paths"]]
    os.chdir(ROOT)  # nbdev looks for settings.ini from here
    return globals()[args.pop("command")](**args) or 0


if __name__ == "__main__":
    sys.exit(main())
