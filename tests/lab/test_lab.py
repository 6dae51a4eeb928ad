"""The live view of a run in a real JupyterLab: it moves, obeys buttons, is stored, and can be read in both themes."""

import json
from pathlib import Path
from typing import Any

from labdriver import Cell, Lab, Notebook, until

STEP = r"step ([\d,]+) of"
SLOWLY = "Slow.seconds = 0.3\n"  # 160 steps take most of a minute at least, unless they are stopped


def test_stopped_and_continued(notebook: Notebook) -> None:
    cell = notebook.start(f"{SLOWLY}run = finetune(lm, data, epochs=40, **shown)")
    until(lambda: cell.number(STEP) >= 5, "the live view counts steps")
    first, seen = cell.number(STEP), cell.show().outputs
    line, dots = seen.locator("svg polyline"), seen.locator("svg circle")
    until(lambda: line.count() == 1 and dots.count() >= 2, "a line of losses, dots for held-out losses")
    assert "written after step 0" in cell.text and "left" in cell.text
    drawn, bar = line.get_attribute("points"), seen.locator("div[style*='background:#3b82f6']")
    width = bar.bounding_box()["width"]
    until(lambda: cell.number(STEP) >= first + 5, "it goes on counting")
    until(lambda: cell.number(r"(?s)step 0\n.*written after step (\d+)") >= 4, "it shows what the model writes now")
    until(lambda: line.get_attribute("points") != drawn, "the line grows")
    until(lambda: bar.bounding_box()["width"] > width, "the bar grows")
    assert not cell.done

    notebook.interrupt()
    until(lambda: cell.done, "■ ends the cell")
    assert cell.text.startswith("interrupted: "), cell.text
    assert "Traceback" not in cell.text
    stopped = int(notebook.ask("len(run.losses)"))
    assert notebook.ask("run.status") == "interrupted" and cell.number(r"interrupted: (\d+) of 160") == stopped

    then = notebook.run("Slow.seconds = 0\nrun2 = resume(run)")
    assert notebook.ask("run2.status, len(run2.losses)") == "finished 160", then.text
    assert then.text.startswith("finished: 160 of 160 steps"), "a run that goes on is shown where it was asked to"
    assert cell.number(r"interrupted: (\d+) of 160") == stopped, "and what was shown before stays"


def test_in_the_background(notebook: Notebook) -> None:
    cell = notebook.run(f"{SLOWLY}run = finetune(lm, data, epochs=40, background=True, **shown)")
    assert notebook.ask("run.status") == "running", "the cell has ended, the run has not"
    until(lambda: cell.number(STEP) >= 2, "the live view counts steps")
    assert "2" in notebook.run("1 + 1").text
    assert notebook.ask("run.status") == "running"

    cell.button("pause").click()
    until(lambda: notebook.ask("run.status") == "paused", "pause")
    until(lambda: "paused: " in cell.text, "the live view says so")
    resting = int(notebook.ask("len(run.losses)"))
    assert cell.number(r"paused: (\d+) of 160 steps") == resting

    cell.show().outputs.locator("input").fill("Is <b>this</b> it? ")
    cell.button("say it").click()
    said = cell.outputs.locator(".widget-html")
    until(lambda: "Is <b>this</b> it?" in said.inner_text(), "the model says something, escaped")
    assert int(notebook.ask("len(run.losses)")) == resting, "it rests"

    cell.button("go on").click()
    until(lambda: cell.number(STEP) > resting, "it goes on")
    until(lambda: int(notebook.ask("len(run.losses)")) > resting + 2, "it goes on")
    cell.button("stop").click()
    until(lambda: notebook.ask("run.status") == "interrupted", "stop")
    until(lambda: "interrupted: " in cell.text, "the live view says so")
    until(lambda: not cell.show().outputs.locator("button").count(), "buttons that do nothing any more go away")
    assert "Is <b>this</b> it?" in cell.text, "what was said stays"


def test_a_failure_in_the_background_is_seen(notebook: Notebook) -> None:
    fail = "class Fail(Callback):\n    def after_step(self, learner): raise ValueError('<out of> luck')\n"
    cell = notebook.run(f"{fail}run = finetune(lm, data, background=True, callbacks=[Fail()])")
    until(lambda: "ValueError: <out of> luck" in cell.text, "the error is shown")
    assert "failed: 1 of 2 steps" in cell.text


def test_stored(notebook: Notebook) -> None:
    """The saved file has all that was seen, as plain HTML; it needs neither a kernel nor the state of a widget."""
    front = notebook.run("Slow.seconds = 0\nrun = finetune(lm, data, epochs=5, **shown)")
    back = notebook.run("lm = tiny_lm()\nrun = finetune(lm, data, epochs=5, background=True, **shown)")
    until(lambda: "finished: 20 of 20 steps" in back.text, "the run in the background ends")
    until(lambda: not back.show().outputs.locator("button").count(), "its buttons go away")
    text = notebook.save()
    cells = json.loads(text)["cells"]
    for n in (front.n, back.n):
        data = cells[n]["outputs"][0]["data"]
        page, plain = "".join(data["text/html"]), "".join(data["text/plain"])
        assert all(part in page for part in ("<svg", "<polyline", "<circle", "written after step 20")), page
        assert plain.startswith("finished: 20 of 20 steps, loss ") and plain in page
        assert len(json.dumps(cells[n])) < 20_000
        assert "widget-view" not in json.dumps(cells[n]["outputs"])
    assert "widgets" not in json.loads(text)["metadata"]


# How an element stands out from what is behind it (WCAG: text should have 4.5, graphics 3)
CONTRAST = """(element, property) => {
    const light = color => color.map(c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const numbers = color => color.match(/[\\d.]+/g).map(Number);
    let behind = element;
    while (behind && (numbers(getComputedStyle(behind).backgroundColor)[3] ?? 1) < 1) behind = behind.parentElement;
    const [a, b] = [numbers(getComputedStyle(element)[property]), numbers(getComputedStyle(behind).backgroundColor)]
        .map(color => light(color.slice(0, 3))).sort((a, b) => b - a);
    return (a + 0.05) / (b + 0.05);
}"""


# What is wider than the output area (a line of input scrolls, and inline elements have no width of their own)
STICKS_OUT = """area => {
    const right = area.getBoundingClientRect().right + 1;
    const edge = e => e.getBoundingClientRect().right + Math.max(0, e.scrollWidth - e.clientWidth - 1);
    return [...area.querySelectorAll('.jp-OutputArea-output *:not(input)')]
        .filter(e => e.clientWidth && edge(e) > right).map(e => e.outerHTML.slice(0, 200));
}"""


def check_looks(cell: Cell, where: str) -> None:
    """Everything can be read, and nothing sticks out."""
    seen: Any = cell.show().outputs
    texts = {"svg text": "fill", ".jp-RenderedHTML > div": "color", "small": "color", ".widget-html div": "color"}
    for what, style in texts.items():
        for element in seen.locator(what).all():
            found = element.evaluate(f"element => ({CONTRAST})(element, '{style}')")
            assert found > 4.5, f"{where}: {what} has a contrast of {found:.1f}"
    for what, style in {"svg polyline": "stroke", "svg circle": "fill"}.items():
        found = seen.locator(what).first.evaluate(f"element => ({CONTRAST})(element, '{style}')")
        assert found > 3, f"{where}: {what} has a contrast of {found:.1f}"
    out = seen.evaluate(STICKS_OUT)
    assert not out, f"{where}: {out} sticks out"


def test_looks(lab: Lab, notebook: Notebook, shots: Path) -> None:
    """Both themes, a wide and a narrow window, and a word that is longer than a line."""
    cell = notebook.run(f"{SLOWLY}run = finetune(lm, data, epochs=40, background=True, **shown)")
    until(lambda: cell.number(STEP) >= 5, "the live view counts steps")
    cell.button("pause").click()
    until(lambda: "paused: " in cell.text, "pause")
    cell.outputs.locator("input").fill("So" + "o" * 300)
    cell.button("say it").click()
    until(lambda: "ooo" in cell.outputs.locator(".widget-html").inner_text(), "the model says something")
    long = notebook.run(
        "from ftnb.core.display import loss_curve\nfrom ftnb.training.progress import live_view\n"
        "from IPython.display import HTML\n"
        "HTML(live_view('step 2 of 3', 0.7, loss_curve([3., 2.], [(0, 3.)]), [(0, ['e' * 300]), (2, ['2\\nlines'])]))"
    )
    tops = [b.bounding_box()["y"] for b in cell.show().outputs.locator("button").all()]
    assert len(tops) == 4 and max(tops) - min(tops) < 1, "the buttons are in a row"
    try:
        for theme in ("JupyterLab Light", "JupyterLab Dark"):
            lab.theme(theme)
            for width in (1280, 760):
                lab.page.set_viewport_size({"width": width, "height": 900})
                for name, seen in {"live": cell, "long": long}.items():
                    seen.picture(shots / f"{name}-{theme.split()[1].lower()}-{width}.png")
                    check_looks(seen, f"{theme}, {width} pixels, {name}")
    finally:
        lab.page.set_viewport_size({"width": 1280, "height": 900})
        lab.theme("JupyterLab Light")
