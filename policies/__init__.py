"""The policy: features of a task, the learned judgement of what to do with it, and the shipped bundles."""
