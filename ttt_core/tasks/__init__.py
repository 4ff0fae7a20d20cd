"""Tasks, their kinds and transformations, the files they are read from, and prompts. Knows nothing about models."""
