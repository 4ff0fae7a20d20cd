"""Runs the command line as `python -m autottt`."""

from .controller.cli.main import main

if __name__ == "__main__":
    main()
