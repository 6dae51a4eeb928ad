"Load a pretrained language model, fine-tune it on your own text, and find out honestly whether it got better."
__version__ = "0.1.0"

import importlib
from typing import Any


def _homes(rooms: dict[str, str]) -> dict[str, str]:
    return {name: room for room, names in rooms.items() for name in names.split()}


# Where each public name lives. `import ftnb` is instant; a name's room is imported when the name is first used.
_STAR = _homes({  # what `from ftnb import *` gives
    'core.errors': 'FTNBError',
    'core.machine': 'doctor',
    'models.lm': 'LM',
    'models.from_scratch': 'tiny_lm',
    'models.loading': 'load_lm save_lm',
    'models.adapters': 'merge_adapter',
    'data.samples': 'sample_data',
    'data.tasks': 'Task',
    'data.applications': 'dialogue free_text sentiment summarization translation',
    'data.encoded': 'Encoded show_tokens',
    'data.encoding': 'encode',
    'generation.likelihood': 'label_probs',
    'generation.writing': 'generate stream',
    'generation.chat': 'Chat',
    'training.learner': 'Callback',
    'training.runs': 'Run',
    'training.finetuning': 'finetune',
    'training.resuming': 'resume',
    'training.preflight': 'find_lr preflight',
    'evaluation.metrics': 'metric',
    'evaluation.scores': 'Scores load_scores',
    'evaluation.comparison': 'Comparison compare',
    'evaluation.scoring': 'score score_texts',
    'evaluation.planning': 'rows_needed',
    'people.ratings': 'open_ratings rate',
})
_BY_NAME = _homes({  # what must be asked for: `from ftnb import playground`
    'core.texts': 'normalize_text',
    'core.machine': 'choose_device seeded',
    'models.from_scratch': 'new_lm train_tokenizer',
    'models.loading': 'random_gpt2',
    'models.adapters': 'add_lora lora_config without_adapter',
    'kernels.nats': 'held_out_loss',
    'generation.decoding': 'Decoding',
    'generation.likelihood': 'next_tokens',
    'generation.writing': 'Completion',
    'generation.windows': 'chat_window playground strategies',
    'training.learner': 'Learner StopTraining',
    'training.callbacks': 'Monitor Tracker',
    'training.resuming': 'load_checkpoint',
    'evaluation.metric': 'TextMetric',
    'evaluation.metrics': 'hub_metric text_metric',
    'evaluation.comparison': 'Comparisons',
    'evaluation.planning': 'RowsNeeded',
    'evaluation.watching': 'ScoreMonitor',
    'evaluation.benchmark': 'benchmark',
    'people.ratings': 'Ratings',
    'people.judge': 'judge',
})
__all__ = sorted(_STAR)


def __getattr__(name: str) -> Any:
    home = _STAR.get(name) or _BY_NAME.get(name)
    if home is None:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(f'{__name__}.{home}'), name)


def __dir__() -> list[str]:
    return sorted({*_STAR, *_BY_NAME})
