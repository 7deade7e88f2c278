"""`push_to_hub`: one commit with weights, card, measurements and pictures; either all of it is there or nothing changed."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from pospatch.checkpoint._config import MODEL_TYPE
from pospatch.checkpoint.card import card, licence_of, read_results
from pospatch.errors import HubError, PospatchError

__all__ = ["clean", "push_to_hub"]


def push_to_hub(
    model: Any,
    repo: str,
    *,
    evaluation: Any = None,
    tokenizer: Any = None,
    licence: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    remote_code: bool = False,
    commit_message: str = "Upload model with pospatch",
    max_shard_size: str = "5GB",
) -> str:
    """Upload a model with a card; returns the id of the commit, to be pinned with `from_pretrained(..., revision=...)`.

    Args:
        repo: "name" or "owner/name"; created where it is not there.
        evaluation: results of `pospatch.evaluate`, or paths to their JSON (a PNG of the same name goes along), or a list.
        tokenizer: saved along.
        licence: None carries over what the base's own card states.
        private: for a repository that is created now.
        revision: branch, by default main.
        token: None uses the login of huggingface_hub; it is never written anywhere.
        remote_code: add the shim for `trust_remote_code=True`.

    Raises:
        HubError: the upload failed or was refused; the repository is as it was.
    """
    from huggingface_hub import HfApi

    from pospatch.api import unwrap

    target = unwrap(model)
    results, pictures = read_results(evaluation)
    with tempfile.TemporaryDirectory(prefix="pospatch-") as room:
        folder = Path(room)
        _fill(folder, target, tokenizer, remote_code, max_shard_size)
        shown = [_picture(folder, number, path) for number, path in enumerate(pictures)]
        if results:
            (folder / "evaluation.json").write_text(json.dumps({"results": results}, indent=2) + "\n")
        native = json.loads((folder / "config.json").read_text())["model_type"] != MODEL_TYPE
        licence = licence or licence_of(target)
        api = HfApi(token=token)
        try:
            repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
            text = card(target, repo, results=results, pictures=shown, licence=licence, native=native)
            (folder / "README.md").write_text(text)
            done = api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                revision=revision,
                commit_message=commit_message,
                ignore_patterns=[".*"],
            )
        except PospatchError:
            raise
        except Exception as error:  # noqa: BLE001  whatever the Hub's HTTP client raises
            why = clean(f"{type(error).__name__}: {error}", token)
            raise HubError(
                f"the upload to {repo!r} was not done: {why}. No file there was changed; call again, what arrived whole is not "
                "sent twice"
            ) from None  # the cause may quote the request with its token
    return done.oid


def _fill(folder: Path, target: Any, tokenizer: Any, remote_code: bool, max_shard_size: str) -> None:
    from pospatch.checkpoint.remote import save_remote

    if remote_code:
        save_remote(target, folder, max_shard_size=max_shard_size)
    else:
        target.save_pretrained(folder, max_shard_size=max_shard_size)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _picture(folder: Path, number: int, path: Path) -> str:
    name = (
        f"{path.stem}.png" if number == 0 or not (folder / f"{path.stem}.png").exists() else f"{path.stem}-{number}.png"
    )
    shutil.copyfile(path, folder / name)
    return name


def _secrets(token: str | None) -> list[str]:
    from huggingface_hub import get_token

    found = (token, get_token(), os.environ.get("HF_TOKEN"))
    return [each for each in found if each]


def clean(text: str, token: Any) -> str:
    """A message without any token that this process knows."""
    for secret in _secrets(token if isinstance(token, str) else None):
        text = text.replace(secret, "***")
    return text[:1500]
