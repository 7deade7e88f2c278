"""LongRoPE's divisors found by evolutionary search on the model itself.

found = search(model, tokenizer, text, length=16384, minutes=60, path="factors")
pospatch.apply(model, "longrope", **found.options)
"""

from pospatch.factors._evolution import Evolution, Population
from pospatch.factors._found import Found
from pospatch.factors._search import search

__all__ = ["Evolution", "Found", "Population", "search"]
