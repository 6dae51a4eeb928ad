"A language model and its tokenizer: loaded from anywhere, new from nothing, saved safely, with adapters."
