"""Hooks: code that runs inside a host (a WebUI, ComfyUI, a script with diffusers) and leaves the frames and ``run.json`` of every run.

Nothing here imports stepwatch, and nothing of stepwatch imports it: `stepwatch hook install` copies a hook as one file into its host.
"""
