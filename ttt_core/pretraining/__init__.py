"""Pre-training of the bundled model: generator of few-shot tasks, data stream, tokenizer and trainer."""
