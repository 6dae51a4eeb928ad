"""Token ids as text, in whole characters: kinds of tokenizers, cuts after each token, streams, stop strings."""

import os
import random

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ftnb import generate, stream, tiny_lm
from ftnb.generation.likelihood import next_tokens
from ftnb.generation.streaming import StopStrings, cut_at_stop, text_pieces
from ftnb.models.lm import LM
from ftnb.models.tokens import GrowingText, TextDecoder, decode_continuation, token_texts

WORDS = ["the", "cat", " sat", "日本", "語", "é", "e\u0301", "🙂", "👨\u200d👩\u200d👧", "👍🏽", "שלום", "ไทย"]
WORDS += [" ", "\n", "...", "नमस्ते", "한국"]
BYTES = [f"<0x{b:02X}>" for b in range(256)]


def wrapped(backend: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def sentencepiece(strip: bool = True, scheme: str | None = None) -> PreTrainedTokenizerFast:
    """Llama 2's kind (a space is put before a text, and taken off) or Gemma's (none is), with bytes to fall back on."""
    pieces = ["<unk>", "<s>", "</s>", *BYTES, "▁", *"abcdefghijklmnopqrstuvwxyz.語", "▁t", "▁c", "日", "日本"]
    vocabulary, merges = {p: i for i, p in enumerate(pieces)}, [("▁", "t"), ("▁", "c")]
    backend = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>"))
    if scheme:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    else:
        before = [normalizers.Prepend("▁")] if strip else []
        backend.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", "▁")])
    cut = [decoders.Strip(" ", 1, 0)] if strip and scheme in (None, "first", "always") else []
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *cut])
    return wrapped(backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def byte_level() -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "t"), ("t", "h"), ("th", "e"), ("ð", "Ł"), ("ðŁ", "ĺ")]
    vocabulary = ["<s>", "</s>", *letters, *("".join(m) for m in merges)]
    backend = Tokenizer(models.BPE({p: i for i, p in enumerate(vocabulary)}, merges))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made = wrapped(backend, bos_token="<s>", eos_token="</s>")
    made.add_tokens(AddedToken("<tool>", special=False))
    return made


TOKENIZERS = {
    "byte level": byte_level,
    "llama 2": sentencepiece,
    "gemma": lambda: sentencepiece(strip=False),
    "metaspace first": lambda: sentencepiece(scheme="first"),
    "metaspace always": lambda: sentencepiece(scheme="always"),
    "metaspace never": lambda: sentencepiece(scheme="never"),
}


def on_tiny(tokenizer) -> LM:
    lm = tiny_lm("llama", seed=1)
    with torch.random.fork_rng():
        lm.model.resize_token_embeddings(len(tokenizer) + 7, mean_resizing=False)  # as a padded vocabulary
    lm.tokenizer = tokenizer
    lm.model.config.eos_token_id = lm.model.generation_config.eos_token_id = tokenizer.eos_token_id
    return lm


@pytest.fixture(scope="module", params=TOKENIZERS)
def lm(request) -> LM:
    return on_tiny(TOKENIZERS[request.param]())


def random_text(rng: random.Random, most: int = 9) -> str:
    return "".join(rng.choices(WORDS, k=rng.randint(1, most)))


def ids_of(lm: LM, text: str) -> list[int]:
    """The tokens of a text that goes on from `a`, so that no tokenizer puts a space before it."""
    ids = lambda t: lm.tokenizer(t, add_special_tokens=False)["input_ids"]
    return ids("a" + text)[len(ids("a")) :]


def bytes_of(lm: LM, token: int, special: bool = False) -> bytes:
    """The bytes of a token, by its name: the reference."""
    name = lm.tokenizer.convert_ids_to_tokens(token)
    if name is None or token in lm.tokenizer.all_special_ids:
        return name.encode() if special and name else b""
    if name in BYTES:
        return bytes([BYTES.index(name)])
    if name.startswith("<"):
        return name.encode()
    if lm.tokenizer.backend_tokenizer.decoder.__class__.__name__ == "ByteLevel":
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        letters = {c: b for b, c in bytes_to_unicode().items()}
        return bytes(letters[c] for c in name)
    return name.replace("▁", " ").encode()


CHARACTERS = (chr(c).encode() for c in range(0x80, 0x110000, 0x40) if not 0xD800 <= c < 0xE000)
BEGINNINGS = {c[:n] for c in CHARACTERS for n in range(1, len(c))}  # of characters, proper ones


def plainly(data: bytes) -> str:
    """Whole characters: one U+FFFD for each broken part, none for a character that is unfinished at the end."""
    tail = next((n for n in (1, 2, 3) if data[-n:] in BEGINNINGS), 0)
    return data[: len(data) - tail].decode("utf-8", "replace")


def test_texts_cut_after_each_token(lm):
    rng, tried = random.Random(0), 0
    for _ in range(60):
        text = random_text(rng)
        prompt, ids = ids_of(lm, "a" * 3), ids_of(lm, text)
        if b"".join(bytes_of(lm, i) for i in ids).decode() != text:
            continue  # the tokenizer changes a text
        tried += 1
        growing = GrowingText(lm, prompt)
        for n in range(1, len(ids) + 1):
            growing.add(ids[n - 1])
            so_far = b"".join(bytes_of(lm, i) for i in ids[:n])
            expected = so_far.decode("utf-8", "ignore")  # a text cut in the middle of a character
            assert decode_continuation(lm, prompt, ids[:n]) == expected == growing.text
            assert "".join(token_texts(lm, prompt, ids[:n])) == expected
    assert tried > 40


def test_a_character_belongs_to_its_last_token(lm):
    ids = ids_of(lm, "🙂")
    assert token_texts(lm, ids_of(lm, "a"), ids) == [*[""] * (len(ids) - 1), "🙂"]


def test_after_any_prompt(lm):
    """What tokens add to the text of a prompt that may be empty, or end within a character."""
    rng, size = random.Random(4), lm.model.config.vocab_size
    face = ids_of(lm, "🙂")
    ids_at_random = lambda most: [rng.randrange(size) for _ in range(rng.randint(0, most))]
    for _ in range(150):
        prompt = [*ids_of(lm, "a"), *ids_at_random(6), *face[: rng.randint(0, len(face) - 1)]]
        new, special = [*rng.choice([face, face[1:], []]), *ids_at_random(5)], rng.random() < 0.5
        join = lambda ids, special=special: plainly(b"".join(bytes_of(lm, i, special) for i in ids))
        before, both = join(prompt), join([*prompt, *new])
        expected = both[len(os.path.commonprefix([before, both])) :]
        assert decode_continuation(lm, prompt, new, skip_special=not special) == expected
        assert "".join(token_texts(lm, prompt, new, skip_special=not special)) == expected


def test_any_tokens(lm):
    rng, size = random.Random(1), lm.model.config.vocab_size
    prompt = ids_of(lm, "aaa")
    for _ in range(200):
        ids = [rng.randrange(size) for _ in range(rng.randint(1, 12))]
        data = b"".join(bytes_of(lm, i) for i in ids)
        written = decode_continuation(lm, prompt, ids)
        assert written == plainly(data), (ids, lm.tokenizer.convert_ids_to_tokens(ids))
        growing = GrowingText(lm, prompt)
        for i in ids:
            growing.add(i)
        assert growing.text == written == "".join(token_texts(lm, prompt, ids))
        assert len(token_texts(lm, prompt, ids)) == len(ids)


def test_pieces_are_the_text_and_stop_strings_are_found(lm):
    rng, prompt = random.Random(2), ids_of(lm, "aaa")
    found = 0
    for _ in range(300):
        text = random_text(rng)
        ids = ids_of(lm, text)
        stops = tuple(rng.choices([w for w in WORDS if w.strip()], k=rng.randint(0, 2)))
        whole = decode_continuation(lm, prompt, ids)
        should_stop = StopStrings(lm, [prompt], stops) if stops else None
        taken = []
        for i in ids:
            taken.append(i)
            if should_stop and should_stop(0, i):
                break
        stopped = len(taken) < len(ids) or any(s in decode_continuation(lm, prompt, taken) for s in stops)
        assert stopped == any(s in whole for s in stops), (text, stops)
        found += stopped
        pieces = list(text_pieces(lm, prompt, ({0: i} for i in taken), stops))
        assert "".join(pieces) == cut_at_stop(whole, stops), (text, stops)
        assert all(pieces)
    assert found > 40


def test_a_model_that_writes_anything(lm):
    prompts = [ids_of(lm, text) for text in ("aaa", "a語", "日本 a")]
    for n in (1, 2, 3, 5, 8):
        options = dict(temperature=3.0, seed=n)
        texts = generate(lm, prompts, n, details=True, **options)
        for prompt, done in zip(prompts, texts, strict=True):
            assert "".join(stream(lm, prompt, n, **options)) == done.text
            assert "".join(done.tokens) == done.text and len(done.tokens) == len(done.ids)
            kept = generate(lm, [prompt], n, skip_special_tokens=False, **options)[0]
            assert "".join(stream(lm, prompt, n, skip_special_tokens=False, **options)) == kept


def test_candidates_look_different(lm):
    size = lm.model.config.vocab_size
    tokens = next_tokens(lm, ids_of(lm, "aaa"), size).tokens
    assert len(set(tokens)) == size and not any("\ufffd" in t for t in tokens)
    if lm.tokenizer.convert_tokens_to_ids("▁t") not in (None, lm.tokenizer.unk_token_id):
        assert " t" in tokens


@pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS)
def test_whole_characters_before_a_cut_one(make):
    """The report: an emoji whose last byte is missing made a row of U+FFFD of all that stood before it."""
    lm = on_tiny(make())
    ids = ids_of(lm, "🙂🙂🙂")
    for cut in (1, 2, 3):
        assert TextDecoder(lm.tokenizer)([*ids_of(lm, "a"), *ids[:-cut]]).endswith("🙂🙂")
    assert TextDecoder(lm.tokenizer)([*ids, *ids_of(lm, "\ufffd")]).endswith("🙂\ufffd"), "written by the model: kept"


def test_tokens_without_bytes():
    """WordPiece and T5's kind: spaces and `##` as the tokenizer has them, unknown ids leave nothing."""
    vocabulary = ["[UNK]", "[CLS]", "[SEP]", "play", "##ing", "##s", "日", "本", "."]
    backend = Tokenizer(models.WordPiece({t: i for i, t in enumerate(vocabulary)}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    lm = on_tiny(wrapped(backend, unk_token="[UNK]", sep_token="[SEP]", eos_token="[SEP]"))
    ids = lm.tokenizer("playing plays 日本.")["input_ids"]
    expected = lm.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    growing = GrowingText(lm, ids[:1])
    for i in ids[1:]:
        growing.add(i)
    assert lm.tokenizer.decode(ids[:1]) + growing.text == expected
    assert "".join(token_texts(lm, ids[:1], ids[1:])) == growing.text
    pieces = list(text_pieces(lm, ids[:1], ({0: i} for i in ids[1:])))
    assert "".join(pieces) == growing.text


def test_a_tokenizer_of_t5s_kind():
    """Unigram, a space before each text, nothing to fall back on."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -2.0), ("▁ab", -1.0)]
    pieces += [(letter, -3.0) for letter in "abcdefg日本é"]
    backend = Tokenizer(models.Unigram(pieces, 2, False))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    lm = on_tiny(wrapped(backend, unk_token="<unk>", eos_token="</s>", pad_token="<pad>"))
    rng = random.Random(5)
    for _ in range(100):
        text = "".join(rng.choices(["ab", "c", " ", "日本", "é", "🙂", "d e"], k=6))
        prompt, ids = (lm.tokenizer(t, add_special_tokens=False)["input_ids"] for t in ("ab c", text))
        plain = lambda ids: lm.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        expected = plain(prompt + ids)[len(plain(prompt)) :]
        assert "".join(token_texts(lm, prompt, ids)) == expected == decode_continuation(lm, prompt, ids)
        assert "".join(text_pieces(lm, prompt, ({0: i} for i in ids))) == expected
