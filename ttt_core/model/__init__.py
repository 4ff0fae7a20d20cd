"""The base model: loading, encoding, generation, memory, the proof that it is unchanged. Knows nothing about LoRA."""
