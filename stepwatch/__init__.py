"""stepwatch: a verified animation of every diffusion run, made from the frames its steps left on disk."""

__version__ = "0.1.0"
