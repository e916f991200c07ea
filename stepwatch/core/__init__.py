"""Decisions, pure: no file system, clock, process, thread, log, YAML, image or ffmpeg in here."""
