"""``stepwatch`` and ``python -m stepwatch``."""

import os
import signal


def main() -> None:
    """Run the command line and exit with its code; a signal that comes before it listens, or when it is done, ends the program without a word."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            # No frame has been read and nothing written yet: there is nothing to unwind, and a traceback out of an import helps nobody.
            signal.signal(number, lambda _number, _frame: os._exit(130))
    from stepwatch import cli

    cli.main()


if __name__ == "__main__":
    main()
