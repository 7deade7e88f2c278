"""llama.cpp, through the package xllamacpp, in a process of its own: log-probabilities of given tokens, and its tokenizer.

    python -m tests.llama_engine ASKED ANSWERED

ASKED is a JSON list of jobs {"file", "ids", "texts", "params"}. The server gives log-probabilities of what it generates alone, so
each token is made the one it generates by a bias, which its log-probabilities do not count; the cache keeps what was read, so
that a token is a step. It holds back a token that ends inside a character, so the text of `ids` must be plain ASCII.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

FORCED = 1e6  # nats added to a token's logit


def ask(jobs: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """For each job {"logprobs": of ids[1:], each after all before it, "tokens": of each text}, from one new process."""
    asked, answered = folder / "asked.json", folder / "answered.json"
    asked.write_text(json.dumps([{**job, "file": str(job["file"])} for job in jobs]))
    done = subprocess.run(
        [sys.executable, "-m", "tests.llama_engine", str(asked), str(answered)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(answered.read_text())


def _server(file: str, context: int, threads: int, params: dict[str, Any]) -> Any:
    import xllamacpp

    wanted = xllamacpp.CommonParams()
    wanted.model.path = file
    wanted.n_ctx, wanted.n_parallel, wanted.warmup, wanted.verbosity = context, 1, False, 0
    wanted.cache_type_k = wanted.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    wanted.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    wanted.cpuparams.n_threads, wanted.cpuparams.poll = threads, 0  # no spinning where cores are shared
    for name, value in params.items():
        setattr(wanted, name, getattr(xllamacpp.llama_rope_scaling_type, value) if isinstance(value, str) else value)
    return xllamacpp.Server(wanted)


def _step(server: Any, ids: list[int], number: int) -> float:
    answer = server.handle_completions(
        {
            "prompt": ids[:number],
            "n_predict": 1,
            "n_probs": 1,
            "temperature": 0.0,
            "logit_bias": [[ids[number], FORCED]],
            "cache_prompt": True,
        }
    )
    content = json.loads(answer) if isinstance(answer, str) else answer
    assert "choices" in content, content
    (given,) = content["choices"][0]["logprobs"]["content"]
    assert given["id"] == ids[number], given
    return float(given["logprob"])


def _tokens(server: Any, text: str) -> list[int]:
    request = urllib.request.Request(
        f"{server.listening_address}/tokenize",
        json.dumps({"content": text, "add_special": True, "parse_special": True}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())["tokens"]


def _job(job: dict[str, Any], threads: int) -> dict[str, Any]:
    ids = job.get("ids", [])
    server = _server(job["file"], len(ids) + 64, threads, job.get("params", {}))
    return {
        "logprobs": [_step(server, ids, number) for number in range(1, len(ids))],
        "tokens": [_tokens(server, text) for text in job.get("texts", [])],
    }


def _main(asked: str, answered: str) -> None:
    threads = int(os.environ.get("OMP_NUM_THREADS", "2"))
    found = [_job(job, threads) for job in json.loads(Path(asked).read_text())]
    Path(answered).write_text(json.dumps(found))
    os._exit(0)  # the server's threads do not end by themselves


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2])
