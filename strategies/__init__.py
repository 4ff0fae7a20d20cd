"""Strategies: one way to answer a task per file, and the registry that finds them."""
