"""The parts of a learner: answering, training and keeping adapters around one guarded model."""
