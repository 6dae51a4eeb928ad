"""Blind rating in a real JupyterLab: with keys alone, over a reload and a restart, in both themes."""

import json
from pathlib import Path
from typing import Any

import pytest
from labdriver import Cell, Lab, Notebook, until
from test_lab import CONTRAST, STICKS_OUT

SETUP = """
from ftnb.people.ratings import open_ratings, rate
from ftnb.evaluation.scoring import score_texts

asked = [f'What is {i} and {i}?' for i in range(12)]
written = lambda how: [how(2 * i) for i in range(12)]
systems = {'grumbler': written(lambda n: f'{n}.'), 'charmer': written(lambda n: f'That makes <b>{n}</b>, dear!')}
one, two = (score_texts(x, asked, ('chrf',), None, asked, name, 100) for name, x in systems.items())
"""
RESTART = "async () => { await panel.sessionContext.session.kernel.restart() }"
NAMES = ("grumbler", "charmer")


@pytest.fixture(scope="module")
def rating(lab: Lab) -> Notebook:
    """A notebook whose systems are ready to be rated."""
    notebook = lab.notebook("rate.ipynb", SETUP.strip())
    notebook.page.set_viewport_size({"width": 1280, "height": 900})
    first = notebook.run(0)
    assert not first.text, first.text
    return notebook


def screen(cell: Cell) -> Any:
    """The rating screen below a cell."""
    found = cell.outputs.locator(".ftnb-rate")
    until(lambda: found.count() == 1, "the screen is there")
    return found


def has_focus(cell: Cell) -> bool:
    return screen(cell).evaluate("node => node.contains(document.activeElement)")


def press(cell: Cell, key: str, then: str) -> None:
    """Press a key, and wait for what the screen says then of how far it is."""
    cell.page.keyboard.press(key)
    count = cell.outputs.locator(".ftnb-count")
    until(lambda: count.inner_text() == then, f"{key} leads to {then!r}, not {count.inner_text()!r}")


def check_blind(cell: Cell) -> None:
    """Nothing that the browser has tells whose texts these are."""
    page, models = cell.outputs.inner_html(), []
    for model in cell.page.evaluate(
        """async () => {
            const kernel = panel.sessionContext.session.kernel, said = [];
            const future = kernel.requestExecute({code: `
import ipywidgets, json
print(json.dumps([w.get_state() for w in ipywidgets.widget.Widget.widgets.values()], default=str))`,
                store_history: false});
            future.onIOPub = m => { if (m.content.text) said.push(m.content.text) };
            await future.done;
            return said;
        }"""
    ):
        models.append(model)
    assert "ftnb-rate" in page and any("What is" in m for m in models)
    for name in NAMES:
        assert name not in page and not any(name in m for m in models)


def test_rated_with_keys(rating: Notebook, shots: Path) -> None:
    """Ten items with keys, a reload, a restart, the rest, the result."""
    cell = rating.run("r = rate(one, two, file='keys.db', rater='anna')\nr")
    until(lambda: has_focus(cell), "the screen has the focus")
    cells = rating.page.evaluate("panel.content.widgets.length")
    for i, key in enumerate(("ArrowLeft", "3", "a", "ArrowRight", "t", "2", "ArrowDown", "b", "s")):
        check_blind(cell) if i in (0, 5) else None
        press(cell, key, f"{i + 2} of 12")
        assert has_focus(cell), f"{key} takes the focus away"
    press(cell, "Backspace", "9 of 12")
    press(cell, "1", "10 of 12")
    press(cell, "B", "11 of 12")
    choices = "A B A B tie tie tie B A B"
    assert rating.ask("' '.join(r.to_pandas()['choice'])") == choices
    assert rating.page.evaluate("panel.content.widgets.length") == cells, "a key reached JupyterLab"
    text = rating.save()
    assert not any(name in json.dumps(json.loads(text)["cells"][cell.n]) for name in NAMES)
    outputs = json.loads(text)["cells"][cell.n]["outputs"]
    assert any("10 of 12 items rated by anna" in "".join(o["data"].get("text/html", "")) for o in outputs)

    rating.lab.reload(rating)  # the page, and then the kernel
    cell = Cell(rating, cell.n).show()
    until(lambda: "10 of 12 items rated by anna" in cell.text, "what was stored is shown")
    rating.page.evaluate(RESTART)
    until(lambda: rating.ask("'r' in globals()") == "False", "a new kernel")
    cell = rating.run("from ftnb.people.ratings import open_ratings\nr = open_ratings('keys.db', rater='anna')\nr")
    until(lambda: cell.outputs.locator(".ftnb-count").inner_text() == "11 of 12", "it goes on at item 11")
    until(lambda: has_focus(cell), "the screen has the focus")
    check_blind(cell)
    press(cell, "ArrowRight", "12 of 12")
    press(cell, "ArrowRight", "All 12 are rated")
    press(cell, "u", "12 of 12")
    press(cell, "ArrowLeft", "All 12 are rated")
    cell.picture(shots / "rate-over.png")
    rating.page.keyboard.press("Enter")
    until(lambda: "Ratings of grumbler and charmer on 12 rows" in cell.text, "the result is shown")
    cell.picture(shots / "rate-result.png")
    assert "charmer over grumbler" in cell.text and "anna" in cell.text and "12 of 12 items" in cell.text
    assert rating.ask("' '.join(r.to_pandas()['choice'])") == f"{choices} B A"
    stored = json.loads(rating.save())["cells"][cell.n]["outputs"]
    assert "widget-view" not in json.dumps(stored) and "charmer over grumbler" in json.dumps(stored)


def test_criteria_with_keys(rating: Notebook) -> None:
    """Marks from 1 to 5 for each criterion; nothing is sent before all are there; and buttons do the same."""
    rating.run(SETUP.strip())
    cell = rating.run("m = rate(one, two, criteria=('fluency', 'adequacy'), file='marks.db', rows=3)\nm")
    until(lambda: has_focus(cell), "the screen has the focus")
    rating.page.keyboard.press("4")
    rating.page.keyboard.press("Enter")
    until(lambda: "Not yet rated: adequacy" in cell.text, "it says what is missing")
    rating.page.keyboard.press("2")
    chosen = cell.outputs.locator("[aria-checked=true]")
    assert chosen.all_inner_texts() == ["4", "2"]
    rating.page.keyboard.press("ArrowUp")
    rating.page.keyboard.press("5")
    press(cell, "Enter", "2 of 6")
    assert rating.ask("m.to_pandas()[['fluency', 'adequacy']].values.tolist()") == "[[5, 2]]"
    assert not chosen.count()
    row = cell.outputs.locator(".ftnb-row")
    row.nth(1).locator("button").nth(0).click()
    row.nth(0).locator("button").nth(2).click()
    assert chosen.all_inner_texts() == ["3", "1"] and has_focus(cell)
    cell.outputs.locator("button", has_text="next").click()
    until(lambda: cell.outputs.locator(".ftnb-count").inner_text() == "3 of 6", "a click does the same")
    assert has_focus(cell)


def test_a_full_disk_is_seen(rating: Notebook) -> None:
    """What cannot be stored is not counted, and the screen says why."""
    rating.run(SETUP.strip())
    cell = rating.run("r = rate(one, two, file='gone.db')\nr")
    until(lambda: has_focus(cell), "the screen has the focus")
    rating.ask("__import__('os').remove('gone.db')")
    rating.page.keyboard.press("a")
    until(lambda: "gone.db" in cell.outputs.locator(".ftnb-note").inner_text(), "the error is shown")
    assert cell.outputs.locator(".ftnb-count").inner_text() == "1 of 12"


LONG = """
asked = ['Write a story about a lighthouse keeper who is afraid of the dark.\\nIt should end well.', '请写一首短诗。']
tale = 'The lamp had gone out again, and old Marten did not dare to climb the stairs. '
poem = '大海无边无际，\\n浪花轻轻歌唱。'
systems = {'a': [tale * 3, poem], 'b': ['So' + 'o' * 200 + '! ' + tale * 60, poem + '\\n' + poem]}
long = [score_texts(x, ['', ''], ('chrf',), None, asked, name, 100) for name, x in systems.items()]
"""
TEXTS = (".ftnb-count", ".ftnb-prompt", ".ftnb-text", ".ftnb-name", ".ftnb-criterion", ".ftnb-scale", "button")


def check_looks(cell: Cell, where: str) -> None:
    """Everything can be read, and nothing sticks out."""
    seen = screen(cell.show())
    for what in TEXTS:
        for element in seen.locator(what).all():
            if element.is_visible():
                found = element.evaluate(f"element => ({CONTRAST})(element, 'color')")
                assert found > 4.5, f"{where}: {what} has a contrast of {found:.1f}"
    out = cell.outputs.evaluate(STICKS_OUT)
    assert not out, f"{where}: {out} sticks out"


def test_looks(rating: Notebook, shots: Path) -> None:
    """Both themes, a wide and a narrow window, long texts, Chinese."""
    lab: Lab = rating.lab
    rating.run(f"{SETUP.strip()}\n{LONG}")
    cells = {
        "pairs": rating.run("rate(*long, file='long.db', rater='me')"),
        "criteria": rating.run("rate(*long, file='long.db', criteria=('fluency', 'adequacy', 'factuality'))"),
    }
    assert screen(cells["pairs"]).bounding_box()["height"] < 800, "long texts scroll"
    try:
        for theme in ("JupyterLab Light", "JupyterLab Dark"):
            lab.theme(theme)
            for width in (1280, 760):
                lab.page.set_viewport_size({"width": width, "height": 900})
                for name, cell in cells.items():
                    screen(cell.show()).focus()
                    cell.picture(shots / f"rate-{name}-{theme.split()[1].lower()}-{width}.png")
                    check_looks(cell, f"{theme}, {width} pixels, {name}")
    finally:
        lab.page.set_viewport_size({"width": 1280, "height": 900})
        lab.theme("JupyterLab Light")
    focus = screen(cells["pairs"].show())
    focus.focus()
    assert focus.evaluate("node => getComputedStyle(node).boxShadow") != "none", "the focus can be seen"
    sides = focus.locator(".ftnb-text")
    rating.page.keyboard.press("PageDown")
    until(lambda: max(s.evaluate("node => node.scrollTop") for s in sides.all()) > 50, "texts scroll with keys")
