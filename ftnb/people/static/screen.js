// The screen of a blind rating, an anywidget (https://anywidget.dev). It knows the present item and
// nothing else. The kernel sets `state`:
//   id, prompt   of the item
//   texts        [A, B]; [text, ""] where criteria are rated
//   criteria     their names; [] for pairs
//   done, total  how many items are rated, and of how many
//   over         all are rated
//   error        why the last verdict was refused, or ""
//   focus        take the keys at the start
//   at           a time stamp, so that each state is a new one
// A key or a click sends {id, choice, seconds}; the choice is one of A, B, tie, skip, undo and
// next, or a mark for each criterion.

const PAIR_KEYS = {
  ArrowLeft: "A",
  1: "A",
  a: "A",
  ArrowRight: "B",
  3: "B",
  b: "B",
  ArrowDown: "tie",
  2: "tie",
  t: "tie",
};
const COMMON_KEYS = { s: "skip", u: "undo", Backspace: "undo" };
const LABELS = {
  A: "← A is better",
  tie: "↓ tie",
  B: "B is better →",
  next: "↵ next",
  skip: "S skip",
  undo: "U undo",
};
const SHORTCUTS = {
  A: "1 A ArrowLeft",
  tie: "2 T ArrowDown",
  B: "3 B ArrowRight",
  skip: "S",
  undo: "U Backspace",
  next: "Enter",
};
const OWN = { dir: "auto" }; // the direction of the text itself: Arabic and Hebrew run to the left
const MARKS = [1, 2, 3, 4, 5];
const PATIENCE = 4000; // milliseconds without an answer of the kernel, until the screen says so
const NO_ANSWER =
  "No answer yet. If the kernel is busy, wait; " +
  "if it was restarted, run the cell again: what was rated is kept.";

/** Add an element. Its text is set as text: a model's output cannot become a part of the page. */
function make(parent, tag, kind, text = "", attributes = {}) {
  const node = parent.appendChild(document.createElement(tag));
  node.className = "ftnb-" + kind;
  node.textContent = text;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

/** All elements of the screen, still empty. */
function layout(el, criteria) {
  const box = make(el, "div", "rate", "", {
    tabindex: 0,
    role: "group",
    "aria-label": "Blind rating",
    "data-lm-suppress-shortcuts": "true", // JupyterLab's own keys would insert cells
  });
  const head = make(box, "div", "head");
  const count = make(head, "span", "count", "", { "aria-live": "polite" });
  const bar = make(head, "progress", "bar", "", { "aria-label": "rated" });
  const main = make(box, "div", "main");
  const prompt = make(main, "div", "prompt", "", {
    role: "region",
    "aria-label": "Question",
    ...OWN,
  });
  const texts = make(main, "div", "texts");
  const sides = (criteria.length ? [""] : ["A", "B"]).map((name) => {
    const label = name ? `Answer ${name}` : "Answer";
    const side = make(texts, "div", "side", "", { role: "region", "aria-label": label });
    if (name) make(side, "div", "name", name);
    return make(side, "div", "text", "", OWN);
  });
  const rows = criteria.map((name) => {
    const row = make(main, "div", "row", "", { role: "radiogroup", "aria-label": name });
    make(row, "span", "criterion", name, OWN);
    const button = (mark) =>
      make(row, "button", "mark", String(mark), { role: "radio", type: "button" });
    return { name, row, marks: MARKS.map(button) };
  });
  if (criteria.length) {
    make(main, "div", "scale", "1 very bad · 2 bad · 3 fair · 4 good · 5 very good");
  }
  const actions = make(box, "div", "actions");
  const names = [...(criteria.length ? [] : ["A", "tie", "B"]), "next", "skip", "undo"];
  const button = (name) =>
    make(actions, "button", "button", LABELS[name], {
      type: "button",
      "aria-keyshortcuts": SHORTCUTS[name],
    });
  const buttons = Object.fromEntries(names.map((name) => [name, button(name)]));
  const note = make(box, "div", "note", "", { role: "status" });
  return { box, count, bar, main, prompt, sides, rows, buttons, note };
}

function render({ model, el }) {
  const { criteria, focus } = model.get("state");
  const { box, count, bar, main, prompt, sides, rows, buttons, note } = layout(el, criteria);
  let marks = {}; // of the present item, by criterion
  let current = 0; // the criterion that the next digit marks
  let waiting = 0; // a timer: a verdict has been sent, and the kernel has not answered yet
  let since = Date.now(); // when the present item was shown

  function send(choice) {
    if (waiting) return;
    waiting = setTimeout(() => (note.textContent = NO_ANSWER), PATIENCE);
    const seconds = Math.max(0, Math.round((Date.now() - since) / 100) / 10);
    model.send({ id: model.get("state").id, choice, seconds });
  }

  function mark(value) {
    marks[criteria[current]] = value;
    current = Math.min(current + 1, criteria.length - 1);
    note.textContent = "";
    drawMarks();
  }

  function sendMarks() {
    const missing = criteria.findIndex((name) => !(name in marks));
    if (missing < 0) return send(marks);
    current = missing;
    drawMarks();
    note.textContent = "Not yet rated: " + criteria[missing];
  }

  function act(action) {
    if (model.get("state").over) {
      if (action === "undo" || action === "next") send(action);
    } else if (action === "undo" && Object.keys(marks).length) {
      [marks, current] = [{}, 0]; // first take back what was not sent yet
      drawMarks();
    } else if (action !== "next") {
      send(action);
    } else if (criteria.length) {
      sendMarks();
    }
  }

  function drawMarks() {
    rows.forEach(({ name, row, marks: each }, i) => {
      row.classList.toggle("ftnb-now", i === current);
      each.forEach((button, k) => button.setAttribute("aria-checked", marks[name] === MARKS[k]));
    });
  }

  function drawTexts({ texts }) {
    prompt.scrollTop = 0;
    sides.forEach((side, i) => {
      side.textContent = texts[i] || "(an empty answer)";
      side.classList.toggle("ftnb-empty", !texts[i]);
      side.scrollTop = 0;
    });
    requestAnimationFrame(() => {
      const long = [prompt, ...sides].some((text) => text.scrollHeight > text.clientHeight + 4);
      if (long && !note.textContent) note.textContent = "Page ↓ and Page ↑ scroll the texts.";
    });
  }

  function drawButtons({ over }) {
    for (const [name, button] of Object.entries(buttons)) {
      button.hidden = name === "next" ? !over && !criteria.length : over && name !== "undo";
    }
    buttons.next.textContent = over ? "↵ see the result" : LABELS.next;
  }

  function draw() {
    const state = model.get("state");
    clearTimeout(waiting);
    [marks, current, waiting, since] = [{}, 0, 0, Date.now()];
    count.textContent = state.over
      ? `All ${state.total} are rated`
      : `${state.done + 1} of ${state.total}`;
    [bar.value, bar.max] = [state.done, state.total];
    main.hidden = state.over;
    prompt.textContent = state.prompt;
    note.textContent = state.error;
    drawTexts(state);
    drawButtons(state);
    drawMarks();
  }

  box.onkeydown = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.key === "Tab") return;
    event.stopPropagation(); // JupyterLab's own keys would insert cells
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (key === "Escape") return box.blur();
    const page = { PageDown: 1, PageUp: -1 }[key];
    const enter = key === "Enter" && event.target.tagName !== "BUTTON"; // a button is clicked by it
    const action = enter ? "next" : (COMMON_KEYS[key] ?? (!criteria.length && PAIR_KEYS[key]));
    const step = criteria.length && { ArrowDown: 1, ArrowUp: -1 }[key];
    const value = criteria.length && MARKS.find((mark) => String(mark) === key);
    if (!(action || page || step || value)) return;
    event.preventDefault();
    if (event.repeat && !page) return;
    if (page) {
      for (const text of [prompt, ...sides]) text.scrollBy({ top: page * 0.8 * text.clientHeight });
    } else if (step) {
      current = Math.max(0, Math.min(criteria.length - 1, current + step));
      drawMarks();
    } else if (value) {
      if (!model.get("state").over) mark(value);
    } else {
      act(action);
    }
  };

  for (const [name, button] of Object.entries(buttons)) {
    button.onclick = () => {
      act(name);
      box.focus({ preventScroll: true });
    };
  }
  rows.forEach(({ marks: each }, i) =>
    each.forEach((button, k) => {
      button.onclick = () => {
        current = i;
        mark(MARKS[k]);
        box.focus();
      };
    }),
  );
  model.on("change:state", draw);
  draw();
  if (focus) requestAnimationFrame(() => box.focus());
  return () => model.off("change:state", draw);
}

export default { render };
