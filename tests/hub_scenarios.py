"""What is tried on the Hub, with huggingface_hub's own client over the loopback; one process runs all of it.

    python -m tests.hub_scenarios RESULTS

Its environment must be set before huggingface_hub is imported, which is why this is no ordinary test module.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from tests.hubstub import TOKEN, Hub

HUB = Hub()
ROOM = Path(tempfile.mkdtemp(prefix="hub-"))
os.environ |= {"HF_ENDPOINT": HUB.url, "HF_HOME": str(ROOM / "home"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
os.environ.pop("HF_TOKEN", None)
LOG = io.StringIO()
logging.basicConfig(stream=LOG, level=logging.INFO)

import pytest  # noqa: E402
import torch  # noqa: E402
from huggingface_hub import HfApi, ModelCard, constants  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

import pospatch  # noqa: E402
from pospatch.errors import CheckpointError, HubError  # noqa: E402
from tests import tiny  # noqa: E402
from tests.doctor_cases import gguf  # noqa: E402

IDS = tiny.ids(2, 48)


def same(one: Any, other: Any) -> None:
    with torch.no_grad():
        assert torch.equal(tiny.logits(one, IDS), tiny.logits(other, IDS))


def ordinary_call() -> None:
    """model.push_to_hub, then AutoModel* by the repository's name; native and not."""
    for name, model in (("native", yarn(2)), ("own", pospatch.apply(tiny.build("gpt2"), "rope"))):
        model.push_to_hub(f"tester/{name}", token=TOKEN)
        same(AutoModelForCausalLM.from_pretrained(f"tester/{name}"), model)
        same(pospatch.from_pretrained(AutoModelForCausalLM, f"tester/{name}"), model)


def yarn(factor: float) -> Any:
    return pospatch.apply(tiny.build("llama"), "yarn", factor=factor)


def with_card_and_evaluation() -> None:
    result = {
        "task": "perplexity",
        "label": "yarn",
        "text": {"name": "Persuasion"},
        "summary": {"ppl": 38.2},
        "model": {"path": "/home/someone/x"},
    }
    file = ROOM / "results" / "yarn.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"results": [result]}))
    file.with_suffix(".png").write_bytes(b"\x89PNG picture")
    model = yarn(4)
    commit = pospatch.push_to_hub(model, "tester/carded", evaluation=file, licence="apache-2.0", token=TOKEN)
    card = ModelCard.load("tester/carded")
    files = HUB.repos["tester/carded"].commits[commit]
    assert card.data.license == "apache-2.0"
    assert card.data.to_dict()["pospatch"]["stack"] == [{"method": "yarn", "factor": 4.0}]
    assert card.data.eval_results[0].metric_value == 38.2
    assert card.data.eval_results[0].dataset_name == "Persuasion"
    for words in (
        "--hf-overrides",
        '"rope_type": "yarn"',
        "--rope-scaling yarn --rope-scale 4 --yarn-orig-ctx 32",
        "![yarn](yarn.png)",
        "38.2",
    ):
        assert words in card.content, words
    assert files["yarn.png"] == b"\x89PNG picture"
    assert b"/home/" not in files["evaluation.json"]
    same(AutoModelForCausalLM.from_pretrained("tester/carded"), model)


def a_card_without_flags_names_the_export() -> None:
    model = pospatch.apply(tiny.build("llama"), "ntk_by_parts", factor=2)
    pospatch.push_to_hub(model, "tester/parts", token=TOKEN)
    content = ModelCard.load("tester/parts").content
    assert "--rope-scaling" not in content
    assert "pospatch export tester/parts --output model.gguf" in content


def licence_is_carried_over() -> None:
    base = tiny.build("llama")
    base.save_pretrained(ROOM / "base")
    (ROOM / "base" / "README.md").write_text("---\nlicense: mit\n---\n# base\n")
    loaded = AutoModelForCausalLM.from_pretrained(ROOM / "base")
    pospatch.push_to_hub(pospatch.apply(loaded, "alibi"), "tester/licensed", token=TOKEN)
    card = ModelCard.load("tester/licensed")
    assert card.data.license == "mit"
    assert "import pospatch" in card.content
    assert str(ROOM) not in card.content


def revisions_stay_what_they_were() -> None:
    first, second = yarn(2), pospatch.apply(tiny.build("llama"), "alibi")
    old = pospatch.push_to_hub(first, "tester/moving", token=TOKEN)
    new = pospatch.push_to_hub(second, "tester/moving", token=TOKEN)
    assert old != new
    same(pospatch.from_pretrained(AutoModelForCausalLM, "tester/moving", revision=old), first)
    same(pospatch.from_pretrained(AutoModelForCausalLM, "tester/moving", revision=new), second)
    same(AutoModelForCausalLM.from_pretrained("tester/moving"), second)


def private_with_a_token() -> None:
    model = pospatch.apply(tiny.build("gpt2"), "t5_bias")
    pospatch.push_to_hub(model, "tester/hidden", private=True, token=TOKEN)
    assert HUB.repos["tester/hidden"].private
    for load in (
        AutoModelForCausalLM.from_pretrained,
        lambda name: pospatch.from_pretrained(AutoModelForCausalLM, name),
    ):
        with pytest.raises(OSError, match="tester/hidden"):
            load("tester/hidden")
    same(pospatch.from_pretrained(AutoModelForCausalLM, "tester/hidden", token=TOKEN), model)


def saved_and_pushed_by_one_call() -> None:
    """model.save_pretrained(push_to_hub=True): what was asked for the upload and for the files holds on the Hub."""
    how = {"max_shard_size": "20KB", "variant": "small", "commit_message": "of mine", "token": TOKEN}
    for name, model in (("native", yarn(2)), ("own", pospatch.apply(tiny.build("gpt2"), "t5_bias"))):
        repo = f"tester/both-{name}"
        model.save_pretrained(ROOM / name, push_to_hub=True, repo_id=repo, private=True, **how)
        assert HUB.repos[repo].private
        files = HUB.repos[repo].at("main") or {}
        assert {path.name for path in (ROOM / name).iterdir()} == set(files) - {"README.md", ".gitattributes"}
        assert sum(path.startswith("model.small-") for path in files) > 1
        assert HUB.messages[-1] == "of mine"
        same(AutoModelForCausalLM.from_pretrained(repo, token=TOKEN, variant="small"), model)
    given = {"revision": "draft", "commit_description": "why", "create_pr": True, "tags": ["mine"]}
    asked: dict[str, Any] = {}
    model.push_to_hub = lambda repo, **options: asked.update(options)
    model.save_pretrained(ROOM / "own", push_to_hub=True, **given)
    assert given.items() <= asked.items()
    model.save_pretrained(ROOM / "again")  # the ordinary way is back
    same(AutoModelForCausalLM.from_pretrained(ROOM / "again"), model)


def sharded() -> None:
    model = pospatch.apply(tiny.build("gpt2"), "rope")
    commit = pospatch.push_to_hub(model, "tester/shards", token=TOKEN, max_shard_size="20KB")
    assert sum(name.startswith("model-") for name in HUB.repos["tester/shards"].commits[commit]) > 1
    same(AutoModelForCausalLM.from_pretrained("tester/shards"), model)


def a_download_that_is_cut_goes_on() -> None:
    model = yarn(3)
    pospatch.push_to_hub(model, "tester/cut", token=TOKEN)
    before = len(HUB.ranges)
    HUB.faults["cut download"] = 1
    constants.DOWNLOAD_CHUNK_SIZE = 1024  # the client keeps whole chunks only, of 10 MB unless told
    same(AutoModelForCausalLM.from_pretrained("tester/cut"), model)
    assert len(HUB.ranges) > before, "the rest was not asked for by a range"


def an_upload_that_is_cut_is_done_whole_or_not_at_all() -> None:
    model = pospatch.apply(tiny.build("llama", seed=7), "yarn", factor=5)  # weights that the Hub has not seen yet
    HUB.faults["cut upload"] = 100
    with pytest.raises(HubError, match="was not done") as caught:
        pospatch.push_to_hub(model, "tester/broken", token=TOKEN)
    assert TOKEN not in str(caught.value)
    assert list(HUB.repos["tester/broken"].commits.values()) == [{}]
    HUB.faults["cut upload"] = 0
    pospatch.push_to_hub(model, "tester/broken", token=TOKEN)
    same(AutoModelForCausalLM.from_pretrained("tester/broken"), model)


def a_refused_upload_says_why_and_no_token() -> None:
    HUB.faults["refuse commit"] = 1
    with pytest.raises(HubError, match="storage limit reached") as caught:
        pospatch.push_to_hub(yarn(2), "tester/refused", token=TOKEN)
    assert TOKEN not in "".join(traceback.format_exception(caught.value))
    assert isinstance(caught.value, OSError)
    assert list(HUB.repos["tester/refused"].commits.values()) == [{}]
    with pytest.raises(HubError, match="was not done"):
        pospatch.push_to_hub(yarn(2), "tester/nobody")


def adapters_by_name() -> None:
    model = pospatch.apply(tiny.build("gpt2"), "t5_bias")
    pospatch.save_adapter(model, ROOM / "adapter")
    api = HfApi(token=TOKEN)
    api.create_repo("tester/adapter")
    api.upload_folder(repo_id="tester/adapter", folder_path=ROOM / "adapter")
    same(pospatch.load_adapter(tiny.build("gpt2"), "tester/adapter"), model)


def the_doctor_reads_headers_alone() -> None:
    """Findings by a repository's name: small files and the headers of weights, nothing else is fetched."""
    model = pospatch.apply(tiny.build("gpt2"), "rope")
    sound = pospatch.push_to_hub(model, "tester/doctor", token=TOKEN, max_shard_size="20KB")
    tiny.build("gpt2").save_pretrained(ROOM / "short")
    config = json.loads((ROOM / "short" / "config.json").read_text())
    (ROOM / "short" / "config.json").write_text(json.dumps({**config, "n_positions": 64}))
    api = HfApi(token=TOKEN)
    api.create_repo("tester/short", private=True)
    api.upload_folder(repo_id="tester/short", folder_path=ROOM / "short")
    HUB.log.clear()
    seen: Any = pospatch.inspect("tester/doctor", revision=sound)
    assert seen.ok
    assert [item["method"] for item in seen.stack] == ["rope"]
    wrong: Any = pospatch.inspect("tester/short", token=TOKEN)
    assert [item.check for item in wrong.findings if item.severity == "error"] == ["table_rows"]
    cached = (ROOM / "home" / "hub").glob("models--tester--*/snapshots/*/*.safetensors")
    assert not [path for path in cached if "doctor" in str(path) or "short" in str(path)]
    scaling = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32}
    unreadable = gguf(ROOM / "gguf", factors=[1.0, 1.0, 4.0, 8.0], **scaling)
    api.create_repo("tester/gguf")
    api.upload_folder(repo_id="tester/gguf", folder_path=unreadable.parent)
    with pytest.raises(CheckpointError, match="GGUF files only"):
        pospatch.inspect("tester/gguf")
    with pytest.raises(CheckpointError, match="no counterpart among the methods"):
        pospatch.from_pretrained(AutoModelForCausalLM, "tester/gguf", gguf_file="model.gguf")
    for name, options in (("tester/short", {}), ("tester/short", {"token": "hf_wrong"}), ("tester/nowhere", {})):
        with pytest.raises(CheckpointError, match=name) as caught:
            pospatch.inspect(name, **options)
        assert "hf_" not in str(caught.value)


def no_token_anywhere() -> None:
    """Runs last: every file of every commit, every log line, everything on disk."""
    for name, repo in HUB.repos.items():
        for files in repo.commits.values():
            assert not [path for path, content in files.items() if TOKEN.encode() in content], name
    assert TOKEN not in LOG.getvalue()
    assert not [path for path in ROOM.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


SCENARIOS = [
    ordinary_call,
    with_card_and_evaluation,
    a_card_without_flags_names_the_export,
    licence_is_carried_over,
    revisions_stay_what_they_were,
    private_with_a_token,
    saved_and_pushed_by_one_call,
    sharded,
    a_download_that_is_cut_goes_on,
    an_upload_that_is_cut_is_done_whole_or_not_at_all,
    a_refused_upload_says_why_and_no_token,
    adapters_by_name,
    the_doctor_reads_headers_alone,
    no_token_anywhere,
]


def _main(answered: str) -> None:
    results = {}
    for scenario in SCENARIOS:
        try:
            scenario()
            results[scenario.__name__] = "as it should be"
        except Exception:  # noqa: BLE001  each is told apart by the test that reads this
            results[scenario.__name__] = traceback.format_exc()[-3000:] + "\n".join(HUB.log[-12:])
    Path(answered).write_text(json.dumps(results))


if __name__ == "__main__":
    _main(sys.argv[1])
