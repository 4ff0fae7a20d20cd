"""Tasks: what they are, how they are read from files, and how they become prompts. Knows nothing about models."""
