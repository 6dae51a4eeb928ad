"Attention over packed documents, and the loss without a logits matrix."
