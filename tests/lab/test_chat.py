"""Talking with a model, and trying ways of decoding, in a real JupyterLab."""

from pathlib import Path

from labdriver import Notebook, until

CHAT = """
import torch
from ftnb import Chat, chat_window, tiny_lm
lm = tiny_lm(chat=True, context=4096, tie_word_embeddings=False)
plain = [t for t in range(3, 259) if lm.tokenizer.decode([t]).isascii() and lm.tokenizer.decode([t]).isprintable()]
with torch.no_grad():  # it never ends, and writes what can be read
    lm.model.lm_head.weight[[t for t in range(259) if t not in plain]] = 0
chat = Chat(lm, max_new_tokens=3000)
chat_window(chat)
""".strip()


def test_chat_window(notebook: Notebook, shots: Path) -> None:
    cell = notebook.run(CHAT)
    line, said = cell.show().outputs.locator("input[type=text]"), cell.outputs.locator(".widget-html").first
    assert "nothing has been said" in said.inner_text()
    line.fill("Is <b>this</b> it?")
    line.press("Enter")
    until(lambda: "Is <b>this</b> it?" in said.inner_text(), "what was said is shown, escaped")
    before = len(said.inner_text())
    until(lambda: len(said.inner_text()) > before + 20, "the answer grows while it is written")
    assert "2" in notebook.run("1 + 1").text, "the kernel is free"
    assert cell.button("send").is_disabled() and not cell.button("stop").is_disabled()
    cell.button("stop").click()
    until(lambda: not cell.button("send").is_disabled(), "stop ends the answer")
    assert notebook.ask("len(chat.turns)") == "2"

    cell.button("again").click()  # a greedy model says the same; it must say it anew
    until(lambda: notebook.ask("chat.attempt") == "1", "another answer")
    until(lambda: not cell.button("stop").is_disabled(), "it is being written")
    cell.button("stop").click()
    until(lambda: not cell.button("send").is_disabled(), "stop ends it")
    for theme in ("Light", "Dark"):
        notebook.lab.theme(f"JupyterLab {theme}")
        cell.picture(shots / f"chat-{theme.lower()}.png")
    notebook.lab.theme("JupyterLab Light")

    cell.button("back").click()
    until(lambda: notebook.ask("len(chat.turns)") == "0", "the turn is taken back")
    notebook.ask("setattr(chat, 'max_new_tokens', 5)")
    line.fill("Short")
    cell.button("send").click()
    until(lambda: notebook.ask("len(chat.turns)") == "2", "send sends")
    until(lambda: not cell.button("done").is_disabled(), "it is done")
    cell.button("done").click()
    until(lambda: not cell.show().outputs.locator("button").count(), "the transcript stays alone")
    assert "Short" in cell.text
    assert "Short" in notebook.save()


def test_playground(notebook: Notebook, shots: Path) -> None:
    cell = notebook.run("from ftnb import playground, tiny_lm\nplayground(tiny_lm(), 'To be', 8)")
    bars, prompt = cell.show().outputs.locator(".widget-html").first, cell.outputs.locator("textarea")
    shown = bars.inner_html()
    slider = cell.outputs.locator(".noUi-handle").first
    slider.focus()
    for _ in range(6):
        slider.press("ArrowLeft")
    until(lambda: bars.inner_html() != shown, "the bars move with the temperature")
    shown = bars.inner_html()
    prompt.fill("Or not <i>to be</i>")
    prompt.blur()
    until(lambda: "Or not <i>to be</i>" in bars.inner_text(), "and with the prompt, escaped")
    cell.button("write").click()
    until(lambda: "contrastive" in cell.text, "every way is written")
    for theme in ("Light", "Dark"):
        notebook.lab.theme(f"JupyterLab {theme}")
        cell.picture(shots / f"playground-{theme.lower()}.png")
    notebook.lab.theme("JupyterLab Light")


def test_browse(notebook: Notebook, shots: Path) -> None:
    texts = "[f'answer {i} of twelve' for i in range(12)], ['answer 3 of twelve'] * 12"
    cell = notebook.run(f"s = score_texts({texts}, metrics=('chrf', 'exact_match'))\ns.browse()")
    until(lambda: "answer 3 of twelve" in cell.show().text, "rows are shown")
    find = cell.outputs.locator("input[type=text]").first
    find.fill("answer 11")
    find.press("Enter")
    until(lambda: "answer 11" in cell.text and "answer 5" not in cell.text, "the filter finds one row")
    cell.picture(shots / "browse.png")
