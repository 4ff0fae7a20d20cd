"""Few-shot tasks from random programs: the pre-training data of the bundled model, and held-out splits."""
