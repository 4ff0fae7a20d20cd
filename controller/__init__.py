"""The state machine that measures, decides, answers, judges and reverts; its results; the command line."""
