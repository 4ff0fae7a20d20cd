"""A language model that knows when to learn: in-context answers where they are right, test-time training where it pays."""

__version__ = "0.1.0"
