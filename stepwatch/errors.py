"""Every error that stepwatch raises on purpose.

    StepwatchError              what happened, to what; ``hint``: what to do; ``exit_code``
    |- UsageError          2    the command line asks for something that cannot be
    |- NoFramesError      66    there is no run, or no frame that can be read
    |- MissingToolError   69    ffmpeg, or one of its encoders, is not there
    |- BusyError          75    another stepwatch has the folder, or the run
    |- ConfigError        78    YAML files that do not say what they mean
    |- Interrupted       130    the user said stop
    `- RunError            1    one run could not be rendered; others go on
       |- FramesChangedError    frames that were rewritten or went away meanwhile
       |- DamagedFramesError    frames that do not decode, and policy says fail
       |- EncodeError           ffmpeg stopped, hung or refused
       |  `- UnwovenError       what an encoder writes cannot be woven into cross-fades
       |- VerifyError           the file ffmpeg left is not the animation that was planned
       |- SizeLimitError        no encode fits ``max_size``
       |- PublishError          the finished file cannot be given its name
       `- EnvironmentFault      disk full, read-only, lost mount: not the run's fault

Programming mistakes stay ordinary exceptions and keep their traceback.
"""

from __future__ import annotations


class StepwatchError(Exception):
    """Something a user can understand and act on; never shown as a traceback."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(StepwatchError):
    """The command line asks for something that cannot be."""

    exit_code = 2


class NoFramesError(StepwatchError):
    """There is no run in the folder, or none of its frames can be read."""

    exit_code = 66


class MissingToolError(StepwatchError):
    """ffmpeg, or an encoder that the policy asks for, is not on this machine."""

    exit_code = 69


class BusyError(StepwatchError):
    """Another stepwatch watches the folder, or visits the run; the message says which one where that is known."""

    exit_code = 75


class ConfigError(StepwatchError):
    """One or more YAML files are wrong; ``complaints`` has a line for every fault found."""

    exit_code = 78

    def __init__(self, complaints: tuple[str, ...], *, hint: str = "") -> None:
        super().__init__("\n".join(complaints), hint=hint)
        self.complaints = complaints


class Interrupted(StepwatchError):
    """The user pressed Ctrl-C, or the process was told to stop."""

    exit_code = 130


class RunError(StepwatchError):
    """One run could not be rendered; its frames are as they were."""


class FramesChangedError(RunError):
    """Frames were rewritten or went away while they were being rendered; nothing is wrong with either."""


class DamagedFramesError(RunError):
    """Frames that do not decode, and the policy says that this fails the render."""


class EncodeError(RunError):
    """ffmpeg stopped, hung or refused; ``stderr`` holds the end of what it said."""

    def __init__(self, message: str, *, hint: str = "", stderr: str = "") -> None:
        super().__init__(message, hint=hint)
        self.stderr = stderr


class UnwovenError(EncodeError):
    """What an encoder has made of the ends of cross-fades is nothing that they can be written between: it has to encode all of it."""


class VerifyError(RunError):
    """The file that ffmpeg left is not the animation that was planned."""


class SizeLimitError(RunError):
    """No encode of the run fits into the policy's ``max_size``."""


class PublishError(RunError):
    """The finished animation cannot be given its final name."""


class EnvironmentFault(RunError):
    """The machine, not the run, is at fault: a full disk, a read-only or lost file system."""
