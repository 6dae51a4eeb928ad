"From rows of text to token rows, and an account of every row."
