"Prompts of different lengths are read one after another: no padding is computed, and the texts are the same."
from functools import partial
import pytest
import torch
from ftnb import add_lora, generate, label_probs
from ftnb.generation import kv_cache
from ftnb.generation.kv_cache import DecodingState, can_read_packed, prefill
from ftnb.models.from_scratch import tiny_lm
from ftnb.models.lm import eval_mode, quiet_transformers

PACKED = {'gpt2': {}, 'llama': {}, 'gemma2': dict(sliding_window=8), 'gemma3_text': dict(sliding_window=8),
          'mistral': dict(sliding_window=8), 'qwen3': {}, 'cohere': {}, 'granite': {}, 'opt': {}, 'mixtral': {}}
PADDED = {'mamba': {}, 'bart': {}, 'bloom': {}, 'lfm2': dict(layer_types=['conv', 'full_attention'])}
LENGTHS = (3, 60, 17, 1, 29, 8, 2, 33)
OPTIONS = [{}, dict(temperature=1.), dict(temperature=1., n=3), dict(stop=['a', 'e', 'o']), dict(pattern='[a-z ]+!'),
           dict(repetition_penalty=1.3, no_repeat_ngram_size=2, min_new_tokens=3), dict(num_beams=2),
           dict(penalty_alpha=.5, top_k=3), dict(batch_tokens=200)]

def some_rows(seed=0, lengths=LENGTHS):
    "Random prompts of these lengths."
    own = torch.Generator().manual_seed(seed)
    return [torch.randint(5, 250, (n,), generator=own).tolist() for n in lengths]

@pytest.fixture
def padded(monkeypatch):
    "Calls a function as if no model could read packed prompts."
    def call(f):
        with monkeypatch.context() as m:
            m.setattr(kv_cache, 'can_read_packed', lambda lm: False)
            return f()
    return call

def count_tokens(lm):
    "A list that gets the size of every pass, and what ends that."
    sizes = []
    module = lm.model.get_input_embeddings()
    return sizes, module.register_forward_hook(lambda m, args, out: sizes.append(args[0].numel()))

@pytest.mark.parametrize('arch', PACKED)
def test_the_state_is_that_of_padded_prompts(arch):
    lm, rows = tiny_lm(arch, seed=1, **PACKED[arch]), some_rows()
    with torch.inference_mode(), eval_mode(lm), quiet_transformers():
        assert can_read_packed(lm)
        sizes, hook = count_tokens(lm)
        state, logits = prefill(lm, [*rows, rows[1]])   # one comes twice
        hook.remove()
        assert sizes == [sum(LENGTHS)]
        plain = DecodingState(lm, [*rows, rows[1]])
        expected = plain.logits()
        for step in range(24):   # beyond the windows; some rows end, one comes twice
            assert (logits - expected).abs().max() < 1e-5
            if step == 12:
                for s in (state, plain): s.reorder(torch.tensor([7, 1, 1, 3]))
            tokens = torch.randint(5, 250, (len(state.ids),))
            for s in (state, plain): s.append(tokens)
            logits, expected = state.logits(), plain.logits()
        assert torch.equal(state.ids, plain.ids) and torch.equal(state.mask, plain.mask)

@pytest.mark.parametrize('arch', ['gpt2', 'llama', 'gemma2', 'qwen3', 'mamba', 'bart'])
def test_same_texts(arch, padded):
    lm, rows = tiny_lm(arch, seed=2, **(PACKED | PADDED)[arch]), some_rows(5)
    with quiet_transformers():
        seen = set()
        for options in OPTIONS:
            if 'penalty_alpha' in options and arch == 'bart': continue
            write = partial(generate, lm, rows, 8, progress=False, **options)
            texts = write()
            assert texts == padded(write), options
            seen |= set(map(str, texts))
        assert len(seen) > 20

@pytest.mark.parametrize('arch', PADDED)
def test_other_models_read_with_padding(arch):
    lm = tiny_lm(arch, **PADDED[arch])
    with torch.inference_mode(), eval_mode(lm), quiet_transformers():
        assert not can_read_packed(lm)
        assert prefill(lm, some_rows())[1].isfinite().all()

def test_adapters_and_half_precision(padded):
    adapted = add_lora(tiny_lm(seed=3))
    for name, p in adapted.model.named_parameters():
        if 'lora_B' in name: torch.nn.init.normal_(p, std=.1, generator=torch.Generator().manual_seed(1))
    rows = some_rows(2)
    write = lambda: generate(adapted, rows, 8, progress=False)
    assert write() == padded(write)
    labels = lambda: label_probs(adapted, ['x' * n for n in LENGTHS], ['yes', 'no'])
    for one, other in zip(labels(), padded(labels)): assert one == pytest.approx(other, abs=1e-5)
    half = tiny_lm(seed=3)
    half.model.bfloat16()
    with torch.inference_mode(), eval_mode(half):
        a = prefill(half, rows)[1]
        b = padded(lambda: prefill(half, rows)[1])
    assert a.dtype == b.dtype == torch.float32 and (a - b).norm() < .03 * b.norm()

def test_the_way_that_computes_less_is_taken():
    lm = tiny_lm()
    with torch.inference_mode(), eval_mode(lm):
        can_read_packed(lm)
        def read(rows, **options):
            sizes, hook = count_tokens(lm)
            prefill(lm, rows, **options)
            hook.remove()
            return sizes
        shared = [[*range(20, 120), *r[:5]] for r in some_rows(1, [5] * 12)]
        assert read(shared) == [100, 12 * 5]                               # a long beginning, read once
        longer = [[*range(20, 30), *r] for r in some_rows(1, [2] * 11 + [200])]
        assert read(longer) == [10 + 11 * 2 + 200]                         # a short one, in one pass with the rest
        assert read(some_rows(1, [9, 8, 9])) == [27]                       # hardly any padding: the model is not asked
        assert read(some_rows(), output_hidden_states=True) == [8 * 60]    # contrastive search wants all positions
        assert read(some_rows(1, [300])) == [300]

def test_a_batch_that_is_too_large_is_halved():
    lm, rows = tiny_lm(seed=3), some_rows()
    expected = generate(lm, rows, 6, progress=False)
    def little_memory(module, args, out):
        if args[0].numel() > 100: raise torch.OutOfMemoryError('no')
    hook = lm.model.get_input_embeddings().register_forward_hook(little_memory)
    try: assert generate(lm, rows, 6, progress=False) == expected
    finally: hook.remove()
