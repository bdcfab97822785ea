"""Decode all audio of manifests, find all that training or scoring would trip over."""

from speech_adapters.cli.check import add_arguments, run

__all__ = ["add_arguments", "run"]
