"""LoRA adapters: their weights, batched training, dropout and cross-validation. Knows nothing about strategies."""
