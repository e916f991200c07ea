"""``stepwatch`` and ``python -m stepwatch``."""

import gc
import os
import signal
import sys

INTERRUPTED = 130
GARBAGE = 50_000
"""Containers that come to be before those are looked for that nobody refers to."""


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
        said = f"stepwatch {__version__}\n" if sys.argv[1] == "--version" else overview.overview(overview.columns())
        try:
            sys.stdout.write(said)
            sys.stdout.flush()
        except OSError:  # Nobody reads on, or the disk is full: there is no better place to say so.
            leave(1)
        leave(0)
        return
    # Most of what a start makes stays; to look through it again and again for what could go would take a sixth of the time.
    gc.set_threshold(GARBAGE)
    from stepwatch import cli

    try:
        cli.main()
    except SystemExit as end:
        code = 0 if end.code is None else end.code
        if not isinstance(code, int) or not (_flushed() or code == INTERRUPTED):
            raise
        leave(code)


def leave(code: int) -> None:
    """End the program at once.

    Python would wind up for as long as it takes to read ten frames, and has nothing to tidy that is not tidied. Meanwhile a further Ctrl-C would end
    it by the signal: who asked for the end twice still gets the code of the first.
    """
    os._exit(code)


def _flushed() -> bool:
    """Write out what was printed; whether all of it could be."""
    written = True
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            written = False
    return written


if __name__ == "__main__":
    main()
