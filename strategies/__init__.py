"""Strategies: one way to answer a task per file, and the registry that finds them.

| name | cost class | needs | what it does |
|---|---|---|---|
| `zero_shot` | read | 0 | the query alone, with the instruction if there is one |
| `in_context` | read | 0 | one greedy answer from all demonstrations |
| `in_context_vote` | sample | 1 | orders and transformations of the prompt, a vote |
| `ttt_direct` | train | 1 | an adapter trained on single pairs |
| `ttt_in_context` | train | 2 | an adapter trained on leave-one-out prompts in many orders |
| `ttt_augmented` | train | 2 | the same with transformations, and a vote |
| `ttt_crossfit` | train | 3 | an adapter per fold of the demonstrations, judged by those left out, and a vote of all |
| `ttt_race` | train | 3 | the same with two folds, given up after a few steps where it does not pay |
| `ttt_warm` | train | 2 | `ttt_in_context`, from the adapter of the nearest known task |
"""
