"""Several methods on one model and the same texts in one run, with the unpatched model as the control."""

from pospatch.comparison._entries import Entry, parse
from pospatch.comparison._report import html, markdown, table
from pospatch.comparison._run import compare

__all__ = ["Entry", "compare", "html", "markdown", "parse", "table"]
