"""Conversations as people have them: what a chat template writes is learned, from every source of rows alike."""

import io
import json
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

from ftnb.core.errors import FTNBError
from ftnb.data.applications import dialogue, infer_task
from ftnb.data.encoded import Encoded
from ftnb.data.encoding import encode
from ftnb.evaluation.scoring import score
from ftnb.generation.chat import Chat
from ftnb.generation.likelihood import label_probs
from ftnb.generation.prompts import prompt_ids
from ftnb.generation.writing import generate, stream
from ftnb.models.from_scratch import tiny_lm
from ftnb.models.lm import LM, eos_ids
from ftnb.training.finetuning import finetune

EOS = "<|eos|>"
ASK = "{% if add_generation_prompt %}[A]{% endif %}"
CALLS = (
    "{% for m in messages %}[{{'A' if m.role=='assistant' else m.role}}]{{m.content}}"
    "{% for c in m.tool_calls or [] %}{{c.function.arguments|tojson}}{% endfor %}{{eos_token}}{% endfor %}" + ASK
)
TOOLS = "{% if tools %}{{tools|tojson}}{% endif %}" + CALLS
R1 = (  # opens a thought in the prompt, and cuts thoughts out of answers
    "{% for m in messages %}{% if m.role=='user' %}[U]{{m.content}}{% else %}[A]{{m.content.split('</think>')[-1]}}"
    "{{eos_token}}{% endif %}{% endfor %}{% if add_generation_prompt %}[A]<think>\n{% endif %}"
)
CLOSED = (  # closes an empty thought in the prompt
    "{% for m in messages %}[{{m.role}}]{% if m.role=='assistant' %}<think>\n{{m.reasoning_content or ''}}\n"
    "</think>\n\n{% endif %}{{m.content}}"
    "{% for c in m.tool_calls or [] %}<call>{{c.function|tojson}}</call>{% endfor %}"
    "{{eos_token}}{% endfor %}{% if add_generation_prompt %}[assistant]<think>\n\n</think>\n\n{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{m.role}}\n{{m.content}}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def templated(template: str) -> LM:
    lm = tiny_lm(chat=True)
    lm.tokenizer.chat_template = template
    return lm


def user(content: Any) -> dict:
    return {"role": "user", "content": content}


def assistant(content: Any, **more: Any) -> dict:
    return {"role": "assistant", "content": content, **more}


def call(name: str, arguments: Any) -> list[dict]:
    return [{"type": "function", "function": {"name": name, "arguments": arguments}}]


def parts(data: Encoded, row: int = 0) -> list[tuple[str, bool]]:
    """A row as texts, each with whether it is learned."""
    one, runs = data.train[row], []
    for token, label in zip(one["input_ids"], one["labels"], strict=True):
        if not runs or runs[-1][1] != (label != -100):
            runs.append(([], label != -100))
        runs[-1][0].append(token)
    return [(data.tokenizer.decode(ids), learned) for ids, learned in runs]


def learned(lm: LM, turns: list[dict], **row: Any) -> list[str]:
    """What is learned of a conversation, answer by answer; of several documents, all."""
    data = encode(lm, [{"messages": turns, **row}])
    return [text for i in range(len(data.train)) for text, supervised in parts(data, i) if supervised]


# A. What a template makes of a turn is what is learned


@pytest.mark.parametrize("before", ["<think>\n", "<think>", "\n<think>\n\n", ""])
def test_a_thought_that_the_prompt_opens_goes_on(before: str) -> None:
    data = encode(templated(R1), [{"messages": [user("Q"), assistant(f"{before}why\n</think>\n\nA1")]}])
    assert parts(data) == [("[U]Q[A]<think>\n", False), (f"why\n</think>\n\nA1{EOS}", True)]


@pytest.mark.parametrize("field", ["reasoning_content", "thinking", "reasoning"])
def test_a_thought_in_a_field_goes_where_the_template_looks_for_it(field: str) -> None:
    turns = [user("Q"), assistant("A1", **{field: "why"})]
    assert learned(templated(R1), turns) == [f"why\n</think>\n\nA1{EOS}"]
    assert learned(templated(CLOSED), turns) == [f"<think>\nwhy\n</think>\n\nA1{EOS}"]


def test_an_answer_without_a_thought_is_written_as_the_template_writes_it() -> None:
    for content in ("A1", "<b>A1", "<thin ice>"):
        data = encode(templated(R1), [{"messages": [user("Q"), assistant(content)]}])
        assert parts(data) == [("[U]Q[A]", False), (content + EOS, True)]


def test_several_answers_with_thoughts_are_several_documents() -> None:
    turns = [user("Q"), assistant("<think>\nw1</think>A1"), user("R"), assistant("<think>\nw2</think>A2")]
    data = encode(templated(R1), [{"messages": turns}])
    assert parts(data, 0) == [("[U]Q[A]<think>\n", False), (f"w1</think>A1{EOS}", True)]
    assert parts(data, 1) == [(f"[U]Q[A]A1{EOS}[U]R[A]<think>\n", False), (f"w2</think>A2{EOS}", True)]


def test_a_closed_thought_in_the_prompt_loses_neither_thought_nor_call() -> None:
    turns = [
        user("Q"),
        assistant("", reasoning_content="why", tool_calls=call("w", {"city": "Rome"})),
        {"role": "tool", "content": "sun"},
        assistant("A1", reasoning_content="hm"),
    ]
    first, second = learned(templated(CLOSED), turns)
    assert first == f'<think>\nwhy\n</think>\n\n<call>{{"name": "w", "arguments": {{"city": "Rome"}}}}</call>{EOS}'
    assert second == f"<think>\nhm\n</think>\n\nA1{EOS}"


NOT_WRITTEN: dict[str, tuple[LM, list[dict], str]] = {
    "a call, and a template without calls": (
        tiny_lm(chat=True),
        [assistant("", tool_calls=call("w", {"a": 1}))],
        "call",
    ),
    "a call beside a content": (tiny_lm(chat=True), [assistant("text", tool_calls=call("w", {"a": 1}))], "call"),
    "a call, and no template": (tiny_lm(), [assistant("", tool_calls=call("w", {"a": 1}))], "call"),
    "a thought alone": (templated(CALLS), [assistant("", reasoning_content="why")], "thought"),
    "a thought alone, no template": (tiny_lm(), [assistant("", thinking="why")], "thought"),
    "a content": (templated("{% for m in messages %}{{m.content[:1]}}{% endfor %}"), [assistant("text")], "content"),
    "an argument": (
        templated(CALLS.replace("arguments|tojson", "name")),
        [assistant("", tool_calls=call("w", {"a": "Rome"}))],
        "call",
    ),
}


@pytest.mark.parametrize("case", NOT_WRITTEN)
def test_what_a_template_does_not_write_is_refused(case: str) -> None:
    lm, answers, what = NOT_WRITTEN[case]
    rows = [{"messages": [user("Q"), *answers]}, {"messages": [user("Q"), assistant("x")]}]
    with pytest.raises(FTNBError, match=rf"train\[0\]: a {what} of the assistant"):
        encode(lm, rows)
    data = encode(lm, rows, bad_rows="drop")
    assert (data.report["dropped_bad_row"], data.report["used"]) == (1, 1)


def test_a_thought_beside_a_content_is_counted() -> None:
    for lm in (tiny_lm(), tiny_lm(chat=True)):
        data = encode(lm, [{"messages": [user("Q"), assistant("x", reasoning_content="why")]}])
        assert data.report["lost_thoughts"] == 1
        assert "lost  " not in repr(data)


def test_a_thought_that_is_there_is_not_lost() -> None:
    inline, field = assistant("<think>why</think>Yes"), assistant("Yes", thinking="Yes, clouds.")
    for lm, turn in ((tiny_lm(), inline), (tiny_lm(chat=True), inline), (templated(CLOSED), field)):
        assert encode(lm, [{"messages": [user("Q"), turn]}]).report["lost_thoughts"] == 0


def test_a_prompt_that_the_row_s_own_options_ask_for_is_no_other_prompt() -> None:
    switched = CLOSED.replace(
        "[assistant]<think>\n\n</think>\n\n{% endif %}", "[assistant]{{ '<think>\n\n</think>\n\n' if off }}{% endif %}"
    )
    for options in ({}, {"off": True}):
        row = {"messages": [user("Q"), assistant("A")], "chat_template_kwargs": options}
        data = encode(templated(switched), [row])
        assert data.report["other_prompts"] == 0
        assert parts(data)[0][0].endswith("</think>\n\n") == bool(options)


def test_an_empty_turn_is_not_learned() -> None:
    empty = assistant("", tool_calls=[])
    with pytest.raises(FTNBError, match="it is empty"):
        encode(tiny_lm(chat=True), [{"messages": [user("Q"), empty]}])
    data = encode(tiny_lm(chat=True), [{"messages": [user("Q"), empty, user("P"), assistant("fine")]}])
    assert [text for text, supervised in parts(data) if supervised] == [f"fine{EOS}"]
    assert data.report["empty_answers"] == 1
    with pytest.raises(FTNBError, match="which is empty"):
        encode(tiny_lm("t5"), [{"messages": [user("Q"), assistant("", tool_calls=call("w", {}))]}])


def test_context_that_a_template_leaves_out_is_counted() -> None:
    turn = "{% if m.role != 'system' %}[{{m.role}}]{{m.content}}{{eos_token}}{% endif %}"
    deaf = f"{{% for m in messages %}}{turn}{{% endfor %}}"
    row = {"messages": [user("Q"), assistant("x")]}
    with_system = {"messages": [{"role": "system", "content": "Be brief."}, *row["messages"]]}
    with_tools = row | {"tools": [{"type": "function", "function": {"name": "weather", "parameters": {}}}]}
    for rows, count in (([row], 0), ([row, with_system], 1), ([with_tools], 1)):
        assert encode(templated(deaf), rows).report["lost_context"] == count


PICKY = (
    "{% for m in messages %}{% if 'x' in m.content %}{{ FAULT }}{% endif %}"
    "[{{m.role}}]{{m.content}}{{eos_token}}{% endfor %}"
)
FAULTS = ["raise_exception('no x')", "1 // 0", "nothing.at.all", "'a' + 1", "[].pop()", "messages[99].role"]


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_a_template_raises_is_the_trouble_of_that_row(fault: str) -> None:
    lm = templated(PICKY.replace("FAULT", fault))
    rows = [{"messages": [user(q), assistant("a")]} for q in "abxd"]
    flow = datasets.Dataset.from_list(rows).to_iterable_dataset()
    for split, given in (("train", rows), ("valid", {"train": rows[:2], "valid": rows})):
        with pytest.raises(FTNBError, match=rf"{split}\[2\]: .*the chat template refuses it"):
            encode(lm, given)
        data = encode(lm, given, bad_rows="drop")
        assert data.report[("" if split == "train" else "valid_") + "dropped_bad_row"] == 1
    with pytest.raises(FTNBError, match=r"train\[2\]"):
        list(encode(lm, flow).train)
    streamed = encode(lm, flow, bad_rows="drop")
    assert len(list(streamed.train)) == 3
    assert streamed.report["dropped_bad_row"] == 1
    with pytest.raises(FTNBError, match=r"rows\[2\]"):
        score(lm, rows, dialogue(), progress=False)
    with pytest.raises(FTNBError, match="cannot be used.*the chat template refuses it"):
        encode(lm, rows[2:3], bad_rows="drop")


def test_dropped_duplicates_do_not_shift_the_numbers_of_rows() -> None:
    rows = [{"messages": [user(q), assistant("a")]} for q in "aabx"]
    with pytest.raises(FTNBError, match=r"train\[3\]"):
        encode(templated(PICKY.replace("FAULT", FAULTS[0])), rows, drop="duplicates")


def test_a_greeting_is_learned() -> None:
    turns = [assistant("Hi"), user("Q"), assistant("A")]
    assert learned(tiny_lm(chat=True), turns) == [f"Hi{EOS}", f"A{EOS}"]
    with pytest.raises(FTNBError, match="must alternate. Begin with a user turn"):
        first = "{% if messages[0].role!='user' %}{{raise_exception('roles must alternate')}}{% endif %}"
        encode(templated(first + CALLS), [{"messages": turns}])


@pytest.mark.parametrize("special", [None, True, False])
def test_the_end_of_a_turn_is_the_template_s_own(special: bool | None) -> None:
    lm = templated(CHATML)
    if special is not None:
        lm.tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=special)
        lm.model.resize_token_embeddings(len(lm.tokenizer), mean_resizing=False)
        assert lm.tokenizer.convert_tokens_to_ids("<|im_end|>") in eos_ids(lm)
    row = {"messages": [user("ab"), assistant("cd")]}
    ends = "<|im_end|>" + ("" if special is not None else EOS)
    assert learned(lm, row["messages"]) == [f"cd{ends}"]
    assert learned(lm, [*row["messages"], *row["messages"]]) == ["cd<|im_end|>", f"cd{ends}"]
    finetune(lm, encode(lm, [row] * 8), epochs=60, lr=3e-3, progress=False)
    prompt = lm.tokenizer.apply_chat_template(row["messages"][:1], tokenize=False, add_generation_prompt=True)
    written = [Chat(lm)("ab"), generate(lm, prompt, 30), "".join(stream(lm, prompt, 30))]
    assert written == ["cd"] * 3
    assert score(lm, [row] * 2, dialogue(), progress=False).rows["prediction"][0] == "cd"


def test_a_chat_begins_as_generation_does() -> None:
    chat = Chat(templated(R1), max_new_tokens=4)
    assert chat.lm.tokenizer.decode(chat._prompt([user("Q")])) == "[U]Q[A]<think>\n"


def test_what_to_do_about_a_system_turn_that_is_refused() -> None:
    refusing = (
        "{% for m in messages %}{% if m.role=='system' %}{{raise_exception('System role not supported')}}{% endif %}"
    )
    lm = templated(refusing + "[{{m.role}}]{{m.content}}{{eos_token}}{% endfor %}")
    with pytest.raises(FTNBError, match="System role not supported. Leave `system` out"):
        Chat(lm, system="Be brief.")
    with pytest.raises(FTNBError, match="System role not supported. Leave the system turn out"):
        encode(lm, [{"messages": [user("a"), assistant("b")]}], dialogue(system="Be brief."))


# B. The same row from every source

DIFFERENT = [
    {"messages": [user("q"), assistant("", tool_calls=call("w", {"city": "Rome"}))]},
    {"messages": [user("q"), assistant("", tool_calls=call("add", {"x": 1, "deep": {"l": [1, 2], "z": {"k": "a"}}}))]},
    {
        "messages": [
            user("q"),
            assistant("none"),
            user("r"),
            assistant("", tool_calls=call("w", {"city": "Ely", "x": 2})),
        ]
    },
]
FIELDS = {"a": {"type": "string"}, "b": {"type": "integer", "enum": [1, 2]}}
WITH_TOOLS = [
    {
        "prompt": [user(f"q{name}")],
        "completion": [assistant(name)],
        "tools": [
            {
                "type": "function",
                "function": {"name": name, "parameters": {"type": "object", "properties": {name: field}}},
            }
        ],
    }
    for name, field in FIELDS.items()
] + [{"prompt": [user("q")], "completion": [assistant("c")], "tools": None}]


def sources(rows: list[dict], folder: Path) -> dict[str, Any]:
    dataset = datasets.Dataset.from_list(rows)
    buffer = io.BytesIO()
    dataset.to_parquet(buffer)
    table = pd.read_parquet(io.BytesIO(buffer.getvalue()))
    dataset.to_parquet(folder / "rows.parquet")
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {
        "Dataset": dataset,
        "parquet": folder / "rows.parquet",
        "JSON lines": str(folder / "rows.jsonl"),
        "pandas from parquet": table,
        "its records": table.to_dict("records"),
        "pandas": pd.DataFrame(rows),
        "list of a Dataset": list(dataset),
        "stream": dataset.to_iterable_dataset(),
        "NumPy format": dataset.with_format("numpy"),
        "JSON text": [row | {k: json.dumps(v) for k, v in row.items() if v} for row in rows],
    }


@pytest.mark.parametrize("rows", [DIFFERENT, WITH_TOOLS], ids=["calls", "tools"])
def test_every_source_gives_the_same_tokens(rows: list[dict], tmp_path: Path) -> None:
    expected = [row["input_ids"] for row in encode(templated(TOOLS), rows).train]
    for name, source in sources(rows, tmp_path).items():
        assert [row["input_ids"] for row in encode(templated(TOOLS), source).train] == expected, name


def test_arguments_are_written_as_json_once() -> None:
    wanted = ['{"city": "Rome"}' + EOS]
    for arguments in ({"city": "Rome"}, '{"city": "Rome"}'):
        for template in (CALLS, CALLS.replace("|tojson", ""), CALLS.replace("c.function.", "c.")):
            turns = [user("q"), assistant("", tool_calls=call("w", arguments))]
            assert learned(templated(template), turns) == wanted
    flat = [{"name": "w", "arguments": {"city": "Rome"}}]
    for turn in (
        assistant("", tool_calls=flat),
        assistant(None, function_call=flat[0]),
        assistant("", tool_calls=json.dumps(flat)),
    ):
        assert learned(templated(CALLS), [user("q"), turn]) == wanted
    null = call("w", '{"city": null}')  # as JSON text, a null is what was meant
    assert learned(templated(CALLS), [user("q"), assistant("", tool_calls=null)]) == ['{"city": null}' + EOS]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": '[{"role"'},
        {"messages": [assistant("a")], "tools": "[{"},
        {"messages": [assistant("", tool_calls="[{")]},
    ],
)
def test_json_that_is_none_says_so(row: dict) -> None:
    with pytest.raises(FTNBError, match=r"it is not JSON .*json\.loads"):
        encode(templated(TOOLS), [row])


def test_a_task_and_the_columns_say_the_same() -> None:
    row = DIFFERENT[0] | {
        "tools": WITH_TOOLS[0]["tools"],
        "chat_template_kwargs": {"mood": "kind"},
        "system": "Be brief.",
    }
    lm = templated("{{mood}}" + TOOLS)
    assert encode(lm, [row], dialogue()).train[:] == encode(lm, [row]).train[:]
    assert parts(encode(lm, [row]))[0][0].startswith("kind[{")


def test_columns_that_nobody_reads_are_named() -> None:
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    data = encode(
        templated(CALLS), [{"system": "Be brief.", "conversations": turns, "images": [1], "score": 0.5, "empty": None}]
    )
    assert parts(data)[0][0] == f"[system]Be brief.{EOS}[user]q{EOS}[A]"
    assert "columns not read  images, score" in repr(data)
    assert not [k for k in data.report if "empty" in k and data.report[k]]


def test_sharegpt_calls() -> None:
    turns = [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": json.dumps({"name": "w", "arguments": {"city": "Rome"}})},
        {"from": "observation", "value": "sun"},
        {"from": "gpt", "value": "a"},
    ]
    data = encode(templated(CALLS), [{"conversations": turns, "tools": "[]"}])
    assert parts(data) == [
        (f"[user]q{EOS}[A]", False),
        ('{"city": "Rome"}' + EOS, True),
        (f"[tool]sun{EOS}[A]", False),
        (f"a{EOS}", True),
    ]


PREFERENCES = [
    {"prompt": "q", "chosen": "a", "rejected": "b"},
    {"chosen": "a", "rejected": "b"},
    {"chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]},
    {"prompt": "q", "chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]},
    {"prompt": [user("q")], "chosen": [assistant("a")], "rejected": [assistant("b")]},
    {"prompt": "q", "chosen": [assistant("a")], "rejected": [assistant("b")]},
]


@pytest.mark.parametrize("row", PREFERENCES)
def test_the_remedy_for_preferences_works(row: dict) -> None:
    lm = templated(CALLS)
    for rows in ([row], datasets.Dataset.from_list([row])):
        with pytest.raises(FTNBError) as error:
            encode(lm, rows)
        remedy = error.value.remedy.removeprefix("To learn the preferred answers: ").removesuffix(".")
        data = eval(remedy, {"encode": encode, "lm": lm, "rows": rows})
        assert parts(data)[-1][0].rstrip("|<>eos").endswith("a")


def starting() -> LM:
    from tokenizers import processors

    lm = templated("{{bos_token}}{% for m in messages %}[{{m.role}}]{{m.content}}{{eos_token}}{% endfor %}")
    start = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 1)])
    lm.tokenizer.backend_tokenizer.post_processor = start
    return lm


def test_one_start_token_everywhere() -> None:
    lm = starting()
    text = lm.tokenizer.apply_chat_template([user("Q"), assistant("A")], tokenize=False)
    assert lm.tokenizer(text)["input_ids"][:2] == [1, 1]
    for row in ({"text": text}, {"prompt": text, "completion": "x"}):
        ids = encode(lm, [row], allow_special=True).train[0]["input_ids"]
        assert (ids[0], ids.count(1), ids[-1], ids[-2] == ids[-1]) == (1, 1, 2, False)
    (ids,) = prompt_ids(lm, [text])
    assert (ids[0], ids.count(1)) == (1, 1)
    same = [label_probs(lm, [x], ["a", "b"])[0]["a"] for x in (text, text.removeprefix("<|bos|>"))]
    assert same[0] == pytest.approx(same[1], abs=1e-6)


def test_rendered_text_is_what_the_card_leads_with() -> None:
    lm = starting()
    text = lm.tokenizer.apply_chat_template([user("Q"), assistant("A")], tokenize=False)
    card = repr(encode(lm, [{"text": text}, {"text": "plain"}])).splitlines()
    assert card[1].split("  ")[1].strip().lower().startswith("rendered already") and "1 rows" in card[1]
    assert encode(lm, [{"text": text}], allow_special=True).report["rendered_text"] == 1
    assert encode(lm, [{"text": "plain"}]).report.get("rendered_as_letters", 0) == 0


def test_inferred_tasks_take_text_and_turns_together() -> None:
    for row in ({"prompt": "q", "completion": [assistant("a")]}, {"prompt": [user("q")], "completion": "a"}):
        assert infer_task(row).turns is not None
        assert parts(encode(templated(CALLS), [row])) == [(f"[user]q{EOS}[A]", False), (f"a{EOS}", True)]


# C. What a demanding newcomer found

KEEP = (  # the prompt opens a thought, and earlier thoughts stay
    "{% for m in messages %}[{{m.role}}]{{m.content}}{{eos_token}}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]<think>\n{% endif %}"
)
MERGED = (  # neighbours of one role share a header and an end
    "{% for m in messages %}{% if loop.first or messages[loop.index0-1].role != m.role %}[{{m.role}}]{% endif %}"
    "{{m.content}}{% if loop.last or messages[loop.index0+1].role != m.role %}{{eos_token}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_neither_questions_nor_earlier_answers_are_learned() -> None:
    turns = [user("Q1?"), assistant("<think>\nT1\n</think>A1."), user("Q2?"), assistant("A2.")]
    assert learned(templated(KEEP), turns) == [f"T1\n</think>A1.{EOS}", f"A2.{EOS}"]
    assert learned(templated(KEEP), [user("Is [assistant]<think>\nmeant?"), assistant("A1.")]) == [f"A1.{EOS}"]
    data = encode(templated(KEEP), [{"messages": [user("Q"), assistant("A2.")]}])
    assert data.report["other_prompts"] == 1  # generation would begin with a thought
    assert learned(templated(MERGED), [user("Q"), assistant("one"), assistant("two")]) == [f"one{EOS}", f"two{EOS}"]


def test_each_answer_learns_to_end() -> None:
    begin = "{% if add_generation_prompt %}\nassistant:{% endif %}"
    endless = "{% for m in messages %}\n{{m.role}}: {{m.content}}{% endfor %}" + begin
    turns = [user("a"), assistant("b"), user("c"), assistant("d")]
    assert [text.strip() for text in learned(templated(endless), turns)] == [f"b{EOS}", f"d{EOS}"]


@pytest.mark.parametrize(
    "turn",
    [
        assistant("I will call weather for Ely.", tool_calls=call("weather", {"city": "Ely"})),
        assistant("It is true, in room 12.", tool_calls=call("open", {"room": 1, "on": True})),
        assistant("", tool_calls=call("eos", {})),
    ],
)
def test_a_call_is_not_found_by_chance(turn: dict) -> None:
    with pytest.raises(FTNBError, match="a call of the assistant"):
        encode(tiny_lm(chat=True), [{"messages": [user("Q"), turn]}])


def test_rows_differ_by_calls_thoughts_and_tools() -> None:
    lm = templated(TOOLS.replace("{{m.content}}", "{{m.reasoning_content}}{{m.content}}"))
    calls = [{"messages": [user("Light?"), assistant("", tool_calls=call(n, {"x": n}))]} for n in ("on", "off")]
    thoughts = [{"messages": [user("Light?"), assistant("x", thinking=t)]} for t in "ab"]
    tools = [{"messages": [user("Light?"), assistant("x")], "tools": row["tools"]} for row in WITH_TOOLS[:2]]
    for rows in (calls, thoughts, tools):
        assert encode(lm, [*rows, rows[0]], drop="duplicates").report["used"] == 2
        assert encode(lm, {"train": rows[:1], "test": rows[1:]}, drop="overlap").report["used"] == 1


def test_documents_of_one_row_are_not_compared() -> None:
    story = "Please tell me the long story of the old fox and the {} crows in the tall trees by the wide river."
    turns = [
        turn for n in range(4) for turn in (user(story.format(n)), assistant(f"<think>\nt{n}</think>{story.format(n)}"))
    ]
    lm = templated(R1)
    lm.model.config.max_position_embeddings = 4096
    data = encode(lm, [{"messages": turns}], max_len=4096, drop="near_duplicates")
    assert (len(data.train), data.report["near_duplicates"]) == (4, 0)


BROKEN = {
    "a weight": ([assistant("a", weight=0.5)], "it must be 0 or 1"),
    "arguments that are no JSON": ([assistant("", tool_calls=call("w", '{"city": "Ely"'))], r"json\.loads"),
    "arguments that are a list": ([assistant("", tool_calls=call("w", [1]))], "they must be a dict"),
    "a call without a name": ([assistant("", tool_calls=call(" ", {}))], "the name of a function"),
    "calls that are a number": ([assistant("", tool_calls=3)], "it must be a list of calls"),
    "a date": ([assistant("", tool_calls=call("w", {"day": pd.Timestamp("2020-01-01")}))], "does not write it"),
    "text before a thought": ([assistant("Well. <think>b</think>c")], "a content of the assistant"),
    "a late system turn": ([assistant("a"), {"role": "system", "content": "b"}], "Move it to the beginning"),
    "only weights of 0": ([assistant("a", weight="0")], "whose weight is not 0"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_turns_are_refused(case: str) -> None:
    turns, words = BROKEN[case]
    with pytest.raises(FTNBError, match=rf"train\[0\].*{words}"):
        encode(
            templated(CALLS.replace("{{m.content}}", "{{m.content.split('Well.')[-1]}}")),
            [{"messages": [user("Q"), *turns]}],
        )


def test_other_refusals() -> None:
    lm, row = templated(TOOLS), {"messages": [user("Q"), assistant("a")]}
    with pytest.raises(FTNBError, match="must be a list of dicts"):
        encode(lm, [row | {"tools": 3}])
    assert parts(encode(lm, [row | {"tools": "", "chat_template_kwargs": ""}])) == parts(encode(lm, [row]))
    with pytest.raises(FTNBError, match="the rows of a stream are not compared"):
        encode(lm, datasets.Dataset.from_list([row]).to_iterable_dataset(), drop="duplicates")
    with pytest.raises(FTNBError, match="all are dropped: also in valid or test"):
        encode(lm, {"train": [row], "test": [row]}, drop="overlap")
    with pytest.raises(FTNBError, match=r"if row\['label'\]"):
        encode(lm, [{"prompt": "q", "completion": "a", "label": False}])
    with pytest.raises(FTNBError, match=r"Give dialogue\('talk'\)"):
        encode(lm, [{"talk": row["messages"]}])
    assert parts(encode(lm, [{"prompt": user("q"), "completion": assistant("a")}]))[-1] == (f"a{EOS}", True)


def test_the_reference_of_a_call_is_the_call() -> None:
    scores = score(templated(CALLS), [DIFFERENT[0]], dialogue(), progress=False, max_new_tokens=2)
    assert scores.rows["reference"] == ['{"city": "Rome"}']


def test_floats_stay_floats() -> None:
    rows = [{"messages": [user("q"), assistant("", tool_calls=call("w", {"y": y}))]} for y in (2.0, 3.0)]
    buffer = io.BytesIO()
    datasets.Dataset.from_list(rows).to_parquet(buffer)
    table = pd.read_parquet(io.BytesIO(buffer.getvalue()))
    assert encode(templated(CALLS), table).train[:] == encode(templated(CALLS), rows).train[:]
