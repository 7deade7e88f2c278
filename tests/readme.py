"""The README's generated tables; `python -m tests.readme` (`make readme`) writes them anew."""

from __future__ import annotations

import re
from pathlib import Path

from pospatch.inspection import catalogue_markdown, hosts_markdown
from tests import support

README = Path(__file__).parent.parent / "README.md"
TABLES = {"methods": catalogue_markdown, "hosts": hosts_markdown, "support": support.summary}


def updated(text: str) -> str:
    """The README's text with every table between its markers made anew.

    Raises:
        ValueError: a pair of markers is not there exactly once.
    """
    for name, table in TABLES.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise ValueError(f"{README.name} must hold <!-- {name} --> ... <!-- /{name} --> exactly once")
        made = table()
        text = pattern.sub(lambda found, made=made: found[1] + made + found[2], text)  # type: ignore[misc]
    return text


if __name__ == "__main__":
    README.write_text(updated(README.read_text(encoding="utf-8")), encoding="utf-8")
