"Load a pretrained language model, fine-tune it on your own text, and find out honestly whether it got better."
__version__ = "0.1.0"

import importlib
from typing import Any

# Where each public name lives. `import ftnb` is instant; a name's module is imported when the name is first used.
_HOME = {name: module for module, names in {
    'core': 'FTNBError choose_device doctor seeded',
    'models': 'LM load_lm new_lm random_gpt2 save_lm tiny_lm train_tokenizer',
    'decoding': 'Decoding',
    'generation': 'Completion generate label_probs next_tokens stream',
    'samples': 'sample_data',
    'tasks': 'Task dialogue free_text sentiment summarization translation',
    'data': 'Encoded encode show_tokens',
    'chat': 'Chat chat_window playground strategies',
    'learner': 'Callback Learner StopTraining',
    'callbacks': 'Tracker Watch',
    'adapters': 'add_lora lora_config merge_adapter without_adapter',
    'finetuning': 'Run find_lr finetune held_out_loss load_checkpoint preflight resume',
    'metrics': 'TextMetric hub_metric metric text_metric',
    'scores': 'Comparison Comparisons Scored Scores benchmark compare load_scores save_scores score score_texts',
    'human': 'Ratings check_failures from_csv judge judge_agreement mark_differences means metric_agreement open_ratings '
             'ranking rate rater_agreement to_csv win_rates',
}.items() for name in names.split()}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(f'{__name__}.{_HOME[name]}'), name)


def __dir__() -> list[str]: return __all__
