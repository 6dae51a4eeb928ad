"""Hebrew and Arabic run from right to left wherever a text is shown, and what frames them stays where it is."""

from pathlib import Path
from typing import Any

import pytest
from labdriver import Cell, Lab, Notebook, until

# a text, and the direction of each of its lines
TEXTS = {
    "שלום עולם! הנה GPT-2, גרסה 1.5 (בטא).": "rtl",
    "مرحبا بالعالم: الدالة print(x) تطبع 42.": "rtl",
    "Hello שלום, this is English (1).": "ltr",
    "12 + 30 = 42": "ltr",
    "你好，世界": "ltr",
}
HEBREW, ARABIC, ENGLISH, *_ = TEXTS
MIXED = f"{HEBREW}\n{ENGLISH}\n- {ARABIC}\n```\nx = [1, 2]  # קוד\n```"
SETUP = f"""
from ftnb import *
from ftnb.core.display import html_table, text_html, direct_inputs
from ftnb.evaluation.scoring import score_texts
from ftnb.generation.chat import transcript
from ftnb.generation.windows import ChatWindow, Strategies, _columns
from ftnb.generation.likelihood import _probability_bars
from ftnb.generation.writing import _underlined
from ftnb.people.ratings import rate
from ftnb.training.progress import live_view
from IPython.display import HTML, display
TEXTS, MIXED = {[*TEXTS]!r}, {MIXED!r}
page = lambda name, html: display(HTML(f'<div id="{{name}}">{{html}}</div>'))
lm = tiny_lm(chat=True)
"""
# the innermost elements that hold a text, and how they are laid out
FOUND = """(area, text) => [...area.querySelectorAll('*')]
    .filter(e => e.textContent.includes(text) && ![...e.children].some(c => c.textContent.includes(text)))
    .map(e => { const s = getComputedStyle(e); return [s.direction, s.unicodeBidi, s.textAlign]; })"""
# where the first line that holds a text lies in its element: how much room is left of it and right of it
ROOM = """(area, text) => {
    const walk = document.createTreeWalker(area, NodeFilter.SHOW_TEXT);
    for (let node; (node = walk.nextNode()); ) {
        const at = node.data.indexOf(text);
        if (at < 0) continue;
        const range = document.createRange();
        range.setStart(node, at);
        range.setEnd(node, at + text.length);
        const line = range.getBoundingClientRect(), box = node.parentElement.getBoundingClientRect();
        const style = getComputedStyle(node.parentElement);
        const [left, right] = [parseFloat(style.paddingLeft), parseFloat(style.paddingRight)];
        return [line.left - box.left - left, box.right - line.right - right];
    }
}"""


@pytest.fixture(scope="module")
def shown(lab: Lab) -> Notebook:
    notebook = lab.notebook("direction.ipynb", SETUP.strip())
    notebook.page.set_viewport_size({"width": 1280, "height": 900})
    first = notebook.run(0)
    assert not first.text, first.text
    return notebook


def check(area: Any, where: str, bidi: str = "plaintext") -> None:
    """Each text has its own direction."""
    for text, direction in TEXTS.items():
        found = area.evaluate(FOUND, text)
        assert found, f"{where}: no {text!r}"
        for own, how, align in found:
            assert own == direction, f"{where}: {text!r} runs {own}"
            assert how == bidi and align == "start", f"{where}: {how}, {align}"


def check_lines(area: Any, where: str) -> None:
    """In a text of several lines each line begins on its own side."""
    for line in MIXED.split("\n"):
        right = any("\u0590" < c < "\u0700" for c in line) and not line.startswith(("x", "Hello"))
        left_room, right_room = area.evaluate(ROOM, line)
        near, far = (right_room, left_room) if right else (left_room, right_room)
        assert near < 2 and far > -2, (
            f"{where}: {line!r} has {left_room:.0f} pixels on its left, {right_room:.0f} on its right"
        )


PAGES = {
    "cells": "html_table([(t, i) for i, t in enumerate(TEXTS)], ['text', 'שורה'], 'A table')",
    "head": "html_table([['1'] * len(TEXTS)], TEXTS)",
    "text": "''.join(map(text_html, TEXTS))",
    "chat": "transcript([dict(role='user' if i % 2 else 'assistant', content=t) for i, t in enumerate(TEXTS)])",
    "ways": "_columns(dict(zip('abcde', TEXTS)))",
    "samples": "live_view('step 2 of 3', 0.7, '', [(0, TEXTS[:3]), (2, TEXTS[3:])])",
    "scores": "score_texts(TEXTS, TEXTS, ('chrf',), prompts=TEXTS)._repr_html_()",
}


def test_every_view(shown: Notebook, shots: Path) -> None:
    cell = shown.run("\n".join(f"page({name!r}, {code})" for name, code in PAGES.items()))
    for name in PAGES:
        area = cell.outputs.locator(f"#{name}")
        until(lambda area=area: area.count() == 1, f"{name} is there: {cell.text}")
        area.evaluate("e => e.querySelectorAll('details').forEach(d => d.open = true)")
        check(area, name)
        area.screenshot(path=shots / f"direction-{name}.png")
    names = cell.outputs.locator("#chat b")
    assert {b.evaluate("e => getComputedStyle(e).direction") for b in names.all()} == {"ltr"}
    numbers = cell.outputs.locator("#cells td:nth-child(2)").all()
    assert {b.evaluate("e => getComputedStyle(e).direction") for b in numbers} == {"ltr"}


def test_lines_of_one_text(shown: Notebook, shots: Path) -> None:
    code = {
        "cell": "html_table([(MIXED, 'x' * 30)])",
        "text": "text_html(MIXED)",
        "chat": "transcript([dict(role='assistant', content=MIXED)])",
        "ways": "_columns({'greedy': MIXED})",
        "sample": "live_view('step 2 of 3', 0.7, '', [(0, [MIXED])])",
    }
    cell = shown.run("\n".join(f"page('lines-{name}', {html})" for name, html in code.items()))
    for name in code:
        area = cell.outputs.locator(f"#lines-{name}")
        until(lambda area=area: area.count() == 1, f"{name} is there: {cell.text}")
        area.screenshot(path=shots / f"direction-lines-{name}.png")
        check_lines(area, name)


def test_tokens(shown: Notebook, shots: Path) -> None:
    """The spans of tokens join to a line that runs to the left; their underlines are below them."""
    cell = shown.run(
        "rows = [{'prompt': TEXTS[0], 'completion': TEXTS[1]}, {'prompt': 'Hello', 'completion': TEXTS[0]}]\n"
        "data = encode(lm, rows)\n"
        "page('tokens', show_tokens(data, 2)._repr_html_())\n"
        "words = [[w + ' ' for w in t.split()] for t in TEXTS[:3]]\n"
        "page('underlined', ''.join(_underlined(w, [-(i % 6.) for i, _ in enumerate(w)]) for w in words))\n"
        "page('bars', _probability_bars([' שלום', 'مرحبا', ' x', '1'], [.5, .2, .1, .1], [0., 0., 0., 0.], TEXTS[0]))"
    )
    until(lambda: cell.outputs.locator("#bars").count() == 1, f"it is there: {cell.text}")
    for name in ("tokens", "underlined", "bars"):
        cell.outputs.locator(f"#{name}").screenshot(path=shots / f"direction-{name}.png")
    directions = "es => es.map(e => getComputedStyle(e).direction)"
    assert cell.outputs.locator("#underlined > div").evaluate_all(directions) == ["rtl", "rtl", "ltr"]
    assert cell.outputs.locator("#bars code").evaluate_all(directions) == ["rtl", "rtl", "rtl", "ltr", "ltr"]
    lefts = cell.outputs.locator("#underlined > div:first-child span").evaluate_all(
        "es => es.map(e => e.getBoundingClientRect().left)"
    )
    assert lefts[0] == max(lefts) and lefts[1] < lefts[0], "the first word stands on the right"
    lines = cell.outputs.locator("#tokens > div")
    assert {d["unicodeBidi"] for d in lines.evaluate_all("es => es.map(e => ({...getComputedStyle(e)}))")} == {
        "plaintext"
    }


def rated(notebook: Notebook, criteria: str = "()") -> Cell:
    cell = notebook.run(
        "import os\nif os.path.exists('rtl.db'): os.remove('rtl.db')\n"
        f"asked = [{HEBREW!r}, {ENGLISH!r}]\n"
        f"one = score_texts([{ARABIC!r} * 3, MIXED], ['', ''], ('chrf',), None, asked, 'one', 100)\n"
        f"two = score_texts([{ENGLISH!r}, {HEBREW!r}], ['', ''], ('chrf',), None, asked, 'two', 100)\n"
        f"rate(one, two, file='rtl.db', criteria={criteria})"
    )
    until(lambda: cell.outputs.locator(".ftnb-rate").count() == 1, f"the screen is there: {cell.text}")
    return cell


def test_rating_screen(shown: Notebook, shots: Path) -> None:
    cell = rated(shown)
    direction = "e => getComputedStyle(e).direction"
    for n in range(2):
        texts = cell.outputs.locator(".ftnb-prompt, .ftnb-text")
        assert texts.count() == 3
        for text in texts.all():
            said = text.inner_text()
            wanted = "ltr" if said.startswith("Hello") else "rtl"
            assert text.evaluate(direction) == wanted, said
            assert text.evaluate("e => getComputedStyle(e).unicodeBidi") == "plaintext"
            if said == MIXED:
                check_lines(text.locator(".."), "an answer")
        cell.outputs.locator(".ftnb-rate").screenshot(path=shots / f"direction-rate-{n}.png")
        lefts = [b.bounding_box()["x"] for b in cell.outputs.locator("button").all() if b.is_visible()]
        assert lefts == sorted(lefts), "the buttons stand in their order"
        sides = [s.bounding_box()["x"] for s in cell.outputs.locator(".ftnb-side").all()]
        assert sides[0] < sides[1], "A is on the left"
        cell.outputs.locator("button", has_text="tie").click()
        count = cell.outputs.locator(".ftnb-count")
        until(lambda count=count, n=n: count.inner_text() != f"{n + 1} of 2", "the next one comes")
    shown.page.evaluate("document.documentElement.dir = 'rtl'")
    try:
        cell = rated(shown, "['שטף', 'truth']")
        cell.outputs.locator(".ftnb-rate").screenshot(path=shots / "direction-rate-criteria.png")
        names = cell.outputs.locator(".ftnb-criterion").all()
        assert [n.evaluate(direction) for n in names] == ["rtl", "ltr"]
        assert cell.outputs.locator(".ftnb-rate").evaluate(direction) == "ltr", "also on a page that runs to the left"
    finally:
        shown.page.evaluate("document.documentElement.removeAttribute('dir')")


def test_what_is_typed(shown: Notebook, shots: Path) -> None:
    cell = shown.run("window = ChatWindow(Chat(lm, max_new_tokens=4))\nwindow.box")
    line = cell.outputs.locator("input").first
    until(lambda: line.count() == 1, f"the window is there: {cell.text}")
    line.fill(HEBREW)
    style = line.evaluate("e => { const s = getComputedStyle(e); return [s.unicodeBidi, s.textAlign]; }")
    assert style == ["plaintext", "start"]
    cell.picture(shots / "direction-typed.png")
