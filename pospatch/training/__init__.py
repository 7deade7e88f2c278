"""Adapting a patched model to longer context: a YAML file, transformers' Trainer under accelerate, exact resume."""

from pospatch.training.run import main, run

__all__ = ["main", "run"]
