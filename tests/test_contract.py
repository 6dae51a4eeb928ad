"""The names, first arguments and attributes of the design: other programs call them."""

import inspect
import math
from pathlib import Path

import datasets
import pandas as pd
import pytest

import ftnb

FIRST = {  # verb: its first parameters
    "load_lm": ["name"],
    "save_lm": ["lm", "folder"],
    "sample_data": ["task"],
    "encode": ["lm", "rows", "task"],
    "show_tokens": ["data", "n"],
    "finetune": ["lm", "data"],
    "resume": ["run", "lm", "data"],
    "preflight": ["lm", "data"],
    "find_lr": ["lm", "data"],
    "generate": ["lm", "prompt", "max_new_tokens"],
    "stream": ["lm", "prompt"],
    "score": ["lm", "rows", "task"],
    "score_texts": ["predictions", "references", "metrics", "baseline"],
    "compare": ["a", "b"],
    "metric": ["name"],
    "free_text": ["text"],
    "sentiment": ["text", "label"],
    "summarization": ["text", "summary"],
    "translation": ["source", "target"],
}


@pytest.mark.parametrize("verb", FIRST)
def test_first_arguments(verb: str) -> None:
    assert list(inspect.signature(getattr(ftnb, verb)).parameters)[: len(FIRST[verb])] == FIRST[verb]


def test_every_public_name_resolves() -> None:
    for name in ftnb.__all__:
        assert getattr(ftnb, name).__doc__, name
    with pytest.raises(AttributeError):
        ftnb.no_such_name  # noqa: B018


def test_the_line(tmp_path: Path) -> None:
    """From rows to a comparison, with every attribute of the contract on the way."""
    lm = ftnb.tiny_lm()
    sums = [{"prompt": f"{n}+1=", "completion": str(n + 1)} for n in range(40)]
    rows = {"train": sums, "valid": [sums[7]]}
    task = ftnb.Task(
        "sum",
        ("prompt", "completion"),
        prompt=lambda r: r["prompt"],
        target=lambda r: r["completion"],
        metrics=("exact_match",),
        max_new_tokens=4,
    )
    data = ftnb.encode(lm, rows)
    assert isinstance(data.train, datasets.Dataset) and data.train.column_names == ["input_ids", "labels"]
    assert len(data.valid) == 1
    assert all(isinstance(v, int) for v in data.report.values()) and data.report["rows"] == 40

    before = ftnb.score(lm, rows["train"], task, progress=False)
    run = ftnb.finetune(lm, data, epochs=30, lr=1e-2, progress=False)
    assert run.lm is lm and run.status == "finished" and run.checkpoint is None
    assert len(run.losses) == 150 and all(isinstance(x, float) for x in run.losses)
    assert run.tokens == 30 * data.report["tokens"] and math.isclose(run.tokens_per_s, run.tokens / run.seconds)
    more = "settings learner packed valid samples pause go_on stop say wait"
    assert all(hasattr(run, name) for name in more.split())

    after = ftnb.score(lm, rows["train"], task, progress=False)
    assert set(after.values) == set(after.intervals) == {"exact_match", "perplexity"}
    assert {"prompt", "prediction", "reference"} <= set(after.rows.column_names)
    assert isinstance(after.to_pandas(), pd.DataFrame)
    result = ftnb.compare(before, after)
    assert list(result.table.columns)[:6] == ["a", "b", "difference", "low", "high", "p_value"]
    assert result.verdict("exact_match") == result.verdict("perplexity") == "better"

    ftnb.save_lm(lm, tmp_path / "out")
    again = ftnb.load_lm(tmp_path / "out")
    prompts = [r["prompt"] for r in rows["train"]]
    assert ftnb.generate(again, prompts, 4) == ftnb.generate(lm, prompts, 4)
    answer = ftnb.generate(lm, "3+1=", 4)
    assert isinstance(answer, str) and "".join(ftnb.stream(lm, "3+1=", 4)) == answer

    for noun in (lm, data, run, before, result, task, ftnb.show_tokens(data)):
        assert "<" in noun._repr_html_() and "object at 0x" not in repr(noun)


def test_training_from_a_converted_model_keeps_the_context(tmp_path: Path) -> None:
    """What `save_lm` writes has the same configuration, tokenizer and chat template."""
    lm = ftnb.tiny_lm(chat=True)
    again = ftnb.load_lm(ftnb.save_lm(lm, tmp_path / "out"))
    assert again.tokenizer.chat_template == lm.tokenizer.chat_template
    assert {k: v for k, v in again.model.config.to_dict().items() if not k.startswith("_")} == {
        k: v for k, v in lm.model.config.to_dict().items() if not k.startswith("_")
    } | {"architectures": ["LlamaForCausalLM"], "dtype": again.model.config.to_dict()["dtype"]}
