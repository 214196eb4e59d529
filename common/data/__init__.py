"""Training data: which clips there are, which are used, and the batch of every step."""
