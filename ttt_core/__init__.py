"""The learner: tasks, prompts, adapters, training, decoding, the proof that the base is unchanged; the bundled model.

Importing this package imports neither torch nor transformers.
"""
