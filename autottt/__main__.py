"""Runs the command line, as `autottt` or as `python -m autottt`."""

import sys


def main() -> None:
    """Runs a command. The commands are imported inside, which takes seconds: an interruption then is one line, too."""
    try:
        from .controller.cli.main import main as run

        run()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
