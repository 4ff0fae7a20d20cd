"""Pre-training of the bundled model: the generator of few-shot families, the data stream, tokenizer and trainer."""
