"""Two real processes: trained together as one would train, sharded as whole; launches that fall back are refused."""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

import pospatch
from pospatch import registry
from pospatch.errors import BadOption, SeamChanged
from pospatch.methods._shards import allowed
from pospatch.training import processes
from pospatch.training.arguments import parse
from pospatch.training.run import run
from tests.test_recipes import MACHINES, RECIPES
from tests.test_training import _LLAMA

RUNS = {
    "full": {"tuning": "full", "patch": {"method": "yarn", "factor": 2.0}},
    "lora": {"tuning": "lora", "patch": "t5_bias"},
}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(RECIPES.parent)}


def _recipe(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    content = {
        "model": _LLAMA,
        "tokenizer": "bytes",
        "text": "topics",
        "train_tokens": 4096,
        "sequence_length": 48,
        "eval_last": 16,
        "learning_rate": 1e-2,
        "max_steps": 6,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "save_steps": 3,
        "use_cpu": True,
        "disable_tqdm": True,
        "output_dir": str(folder / "out"),
        **changes,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    return folder / "recipe.yaml"


def _port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def _torchrun(*words: Any, **environment: str) -> subprocess.Popen[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", _port()]
    return _start([*launch, *words], **environment)


def _start(words: list[Any], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(word) for word in words],
        env={**ENVIRONMENT, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=RECIPES.parent,
    )


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of two processes' runs, and what they computed of each method."""
    folder = tmp_path_factory.mktemp("two")
    configs = [_recipe(folder / name, num_processes=2, parallel="ddp", **changes) for name, changes in RUNS.items()]
    job = {"configs": [str(path) for path in configs], "output": str(folder / "found.json")}
    (folder / "job.json").write_text(json.dumps(job))
    started = _torchrun("-m", "tests.processes", folder / "job.json")
    said, _ = started.communicate()
    assert started.returncode == 0, said[-6000:]
    return folder, json.loads((folder / "found.json").read_text())


def _losses(out: Path) -> list[tuple[float, float]]:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [(line["loss"], line["grad_norm"]) for line in lines if "loss" in line]


def _weights(out: Path) -> dict[str, torch.Tensor]:
    return pospatch.from_pretrained(AutoModelForCausalLM, out / "model").state_dict()


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_as_one(name: str, together: Any, tmp_path: Path) -> None:
    one = _recipe(tmp_path / "one", **{**RUNS[name], "per_device_train_batch_size": 2})
    run(parse(["--config", str(one)]))
    found, wanted = _losses(together[0] / name / "whole"), _losses(tmp_path / "one" / "out")
    assert len(found) == 6
    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), rtol=0, atol=1e-4)
    ours, theirs = _weights(together[0] / name / "whole"), _weights(tmp_path / "one" / "out")
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_resume_to_the_bit(name: str, together: Any) -> None:
    whole, half = together[0] / name / "whole", together[0] / name / "half"
    assert _losses(half) == _losses(whole)
    ours, wanted = _weights(half), _weights(whole)
    assert all(torch.equal(ours[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("name", registry.names())
def test_weights_that_are_shared_out_compute_the_same(name: str, together: Any) -> None:
    found = together[1][name]
    if found is None:
        assert "packing" not in allowed(registry.method_class(name))  # images
        return
    assert found["fsdp"]["placed"]
    assert max(found["fsdp"]["logits"], found["fsdp"]["gradients"]) < 1e-5


@pytest.mark.parametrize("name", registry.names())
def test_the_table_says_what_sequences_in_parts_compute(name: str, together: Any) -> None:
    """What is allowed equals the whole; what is refused would not, or fails: no refusal is idle."""
    found = together[1][name] or {}
    for scheme, ways in {"ring": ("contiguous", "head-tail"), "ulysses": ("ulysses",)}.items():
        results = [found[way] for way in ways if found]
        same = bool(results) and all(
            "error" not in each and each["logits"] < 1e-4 and each["gradients"] < 1e-4 for each in results
        )
        assert same == (scheme in allowed(registry.method_class(name))), (scheme, results)


# launches -----------------------------------------------------------------------------------------------------------------


def test_launches_that_fall_back_end_before_training(tmp_path: Path) -> None:
    several = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_CPU", "use_cpu": True,
               "num_machines": 1, "num_processes": 2}  # fmt: skip
    sharded = {**yaml.safe_load((RECIPES / "accelerate" / "fsdp2_8gpu.yaml").read_text()), "use_cpu": True,
               "num_processes": 2, "mixed_precision": "no", "main_process_port": int(_port())}  # fmt: skip
    launched = []
    for name, content in {"several": several, "sharded": sharded}.items():
        path = _recipe(tmp_path / name, **RUNS["full"])
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", tmp_path / f"{name}.yaml"]
        launched.append(_start([*launch, RECIPES / "finetune.py", "--config", path]))
    said = [each.communicate()[0] for each in launched]
    assert all(each.returncode != 0 for each in launched)
    assert "accelerate was told to start several processes and started one" in said[0]
    assert "asks for fsdp and ddp is running on 2 processes" in said[1]
    for name in ("several", "sharded"):
        assert not (tmp_path / name / "out" / "metrics.jsonl").exists()


@pytest.mark.parametrize("path", MACHINES, ids=lambda path: path.stem)
def test_what_a_machines_file_asks_for_is_understood(path: Path) -> None:
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils import launch

    args = launch_command_parser().parse_args(["--config_file", str(path), "finetune.py"])
    args, _, _ = _validate_launch_command(args)
    made = _environment(args, launch)
    scheme = {"fsdp2": "fsdp", "zero3": "deepspeed", "ring": "ring", "ulysses": "ulysses"}
    assert processes.asked(made) == scheme.get(path.stem.partition("_")[0])


def _environment(args: argparse.Namespace, launch: Any) -> dict[str, str]:
    """What accelerate's own launchers hand to the processes."""
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ""
        return launch.prepare_deepspeed_cmd_env(args)[1]
    if args.use_fsdp or args.multi_gpu:
        return launch.prepare_multi_gpu_env(args)
    return launch.prepare_simple_launcher_cmd_env(args)[1]


def _accelerator(kind: str, version: int = 2, **config: bool) -> Any:
    parallel = SimpleNamespace(**{"cp_enabled": False, "sp_enabled": False, **config})
    return SimpleNamespace(
        distributed_type=SimpleNamespace(value=kind),
        parallelism_config=parallel if config else None,
        num_processes=2,
        device=torch.device("cpu"),
        is_fsdp2=version == 2,
    )


@pytest.mark.parametrize(
    ("accelerator", "scheme"),
    [
        (_accelerator("NO"), "one"),
        (_accelerator("MULTI_CPU"), "ddp"),
        (_accelerator("MULTI_GPU"), "ddp"),
        (_accelerator("FSDP"), "fsdp"),
        (_accelerator("DEEPSPEED"), "deepspeed"),
        (_accelerator("FSDP", cp_enabled=True), "ring"),
        (_accelerator("DEEPSPEED", sp_enabled=True), "ulysses"),
    ],
)
def test_what_runs_must_be_what_was_asked_for(accelerator: Any, scheme: str) -> None:
    assert processes.check(accelerator, scheme, {}) == scheme
    assert processes.check(accelerator, None, {}) == scheme
    with pytest.raises(BadOption, match=f"asks for .* and {scheme} is running"):
        processes.check(accelerator, "ddp" if scheme != "ddp" else "one", {})


def test_other_refusals() -> None:
    with pytest.raises(BadOption, match="fsdp_version: 2"):
        processes.check(_accelerator("FSDP", version=1), None, {})
    with pytest.raises(BadOption, match="num_processes is 3 and 2 are running"):
        processes.check_count(2, 3, {})
    processes.check_count(1, None, {"MASTER_ADDR": "a", "ACCELERATE_USE_CPU": "True", "WORLD_SIZE": "1"})
    with pytest.raises(SeamChanged, match=r"DistributedDataParallel.*left Linear"):
        processes.check_wrapped(torch.nn.Linear(1, 1), "ddp")
