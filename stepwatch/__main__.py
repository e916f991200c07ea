"""``stepwatch`` and ``python -m stepwatch``."""

import contextlib
import os
import signal
import sys

INTERRUPTED = 130


def main() -> None:
    """Run the command line and exit with its code; a signal that comes before it listens, or when it is done, ends the program without a word."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            # No frame has been read and nothing written yet: there is nothing to unwind, and a traceback out of an import helps nobody.
            signal.signal(number, lambda _number, _frame: os._exit(INTERRUPTED))
    if sys.argv[1:] in (["--help"], ["-h"], ["--version"]) and sys.stdout is not None:
        from stepwatch import __version__, overview

        # What people and completion ask for most needs no more than this; the command line says the very same.
        sys.stdout.write(f"stepwatch {__version__}\n" if sys.argv[1] == "--version" else overview.overview(overview.columns()))
        return
    from stepwatch import cli

    try:
        cli.main()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            # While Python winds up, a further Ctrl-C would end it by the signal: who asked for the end twice still gets the code of the first.
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.flush()
            os._exit(INTERRUPTED)
        raise


if __name__ == "__main__":
    main()
