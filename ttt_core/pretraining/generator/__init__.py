"""Few-shot tasks from programs drawn at random: what the bundled model is trained on, and what it is held out from."""
