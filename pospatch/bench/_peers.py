"""Other people's implementations of the same methods, run where they are installed, in a model of the same shape."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pospatch.bench._cell import Cell

__all__ = ["PEERS", "Peer", "peers_of"]


@dataclass(frozen=True)
class Peer:
    """Whose code, what it does, and how a model is made of it.

    Args:
        methods: names of ours that do the same.
        package: what must be importable.
        make: a model on the CPU for a cell and a length.
    """

    methods: tuple[str, ...]
    package: str
    make: Callable[[Cell, int], Any]
    works: tuple[str, ...] = ("prefill", "decode", "train")
    needs_gpu: bool = False

    def model(self, cell: Cell, length: int) -> Any:
        """The peer's model for a cell, with random weights."""
        torch.manual_seed(0)
        model = self.make(cell, length).to(getattr(torch, cell.dtype)).to(cell.device)
        return model.train() if cell.work == "train" else model.eval()


def peers_of(cell: Cell) -> list[str]:
    """Peers that do what a cell asks for and can be imported."""
    return [
        name
        for name, peer in PEERS.items()
        if cell.method in peer.methods
        and cell.work in peer.works
        and (cell.device != "cpu" or not peer.needs_gpu)
        and importlib.util.find_spec(peer.package)
    ]


def _exported(cell: Cell, length: int) -> Any:
    """Ours, exported: the same encoding by transformers' own code."""
    from tempfile import TemporaryDirectory

    from transformers import AutoModelForCausalLM

    from pospatch.bench._build import patched
    from pospatch.checkpoint.export import export

    with TemporaryDirectory() as folder:
        export(patched(cell, length), folder, verify=False)
        return AutoModelForCausalLM.from_pretrained(folder)


def _shaped(make: Callable[..., Any], **options: Any) -> Callable[[Cell, int], Any]:
    """A maker of models by sizes, as one by cells."""
    return lambda cell, length: make(_sizes(cell), length, **options)


def _sizes(cell: Cell) -> dict[str, int]:
    from pospatch.bench._build import config_of

    config = config_of(cell)
    width = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * width
    return {
        "width": width,
        "inner": inner,
        "heads": config.num_attention_heads,
        "layers": config.num_hidden_layers,
        "vocabulary": config.vocab_size,
    }


def _bloom(sizes: dict[str, int], length: int) -> Any:
    from transformers import BloomConfig, BloomForCausalLM

    return BloomForCausalLM(
        BloomConfig(
            hidden_size=sizes["width"],
            n_layer=sizes["layers"],
            n_head=sizes["heads"],
            vocab_size=sizes["vocabulary"],
            hidden_dropout=0.0,
        )
    )


def _mpt(sizes: dict[str, int], length: int) -> Any:
    from transformers import MptConfig, MptForCausalLM

    return MptForCausalLM(
        MptConfig(
            d_model=sizes["width"],
            n_layers=sizes["layers"],
            n_heads=sizes["heads"],
            vocab_size=sizes["vocabulary"],
            max_seq_len=length + 8,
        )
    )


def _neox(sizes: dict[str, int], length: int) -> Any:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            hidden_size=sizes["width"],
            intermediate_size=sizes["inner"],
            num_hidden_layers=sizes["layers"],
            num_attention_heads=sizes["heads"],
            vocab_size=sizes["vocabulary"],
            max_position_embeddings=length + 8,
            tie_word_embeddings=True,
            use_parallel_residual=False,
            hidden_act="gelu_new",
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
        )
    )


class _XTransformer(torch.nn.Module):
    """A decoder of x-transformers under the arguments that a transformers model takes."""

    def __init__(self, sizes: dict[str, int], length: int, **options: Any) -> None:
        super().__init__()
        from types import SimpleNamespace

        from x_transformers import Decoder, TransformerWrapper

        layers = Decoder(
            dim=sizes["width"],
            depth=sizes["layers"],
            heads=sizes["heads"],
            attn_dim_head=sizes["width"] // sizes["heads"],
            **options,
        )
        self.config = SimpleNamespace(vocab_size=sizes["vocabulary"])
        self.inner = TransformerWrapper(
            num_tokens=sizes["vocabulary"], max_seq_len=length + 8, use_abs_pos_emb=False, attn_layers=layers
        )

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None, **_: Any) -> Any:
        from types import SimpleNamespace

        logits = self.inner(input_ids)
        if labels is None:
            return SimpleNamespace(logits=logits)
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return SimpleNamespace(loss=loss)


class _Liger(torch.nn.Module):
    """A native llama that rotates with liger-kernel's Triton kernel, whose own patch would change every llama in the process:
    the name is swapped for the length of a call."""

    def __init__(self, sizes: dict[str, int], length: int) -> None:
        super().__init__()
        from transformers import LlamaConfig, LlamaForCausalLM

        self.inner = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=sizes["width"],
                intermediate_size=sizes["inner"],
                num_hidden_layers=sizes["layers"],
                num_attention_heads=sizes["heads"],
                vocab_size=sizes["vocabulary"],
                max_position_embeddings=length + 8,
            )
        )
        self.config = self.inner.config

    def forward(self, **kwargs: Any) -> Any:
        from liger_kernel.transformers.rope import liger_rotary_pos_emb
        from transformers.models.llama import modeling_llama

        own = modeling_llama.apply_rotary_pos_emb
        modeling_llama.apply_rotary_pos_emb = liger_rotary_pos_emb
        try:
            return self.inner(**kwargs)
        finally:
            modeling_llama.apply_rotary_pos_emb = own


_PASS = ("prefill", "train")  # their wrapper has a cache of its own

PEERS = {
    "transformers": Peer(("linear", "ntk", "yarn", "llama3", "longrope"), "transformers", _exported),
    "bloom": Peer(("alibi",), "transformers", _shaped(_bloom)),
    "mpt": Peer(("alibi",), "transformers", _shaped(_mpt)),
    "gpt_neox": Peer(("rope",), "transformers", _shaped(_neox)),
    "x-transformers alibi": Peer(("alibi",), "x_transformers", _shaped(_XTransformer, alibi_pos_bias=True), _PASS),
    "x-transformers rotary": Peer(("rope",), "x_transformers", _shaped(_XTransformer, rotary_pos_emb=True), _PASS),
    "x-transformers t5": Peer(("t5_bias",), "x_transformers", _shaped(_XTransformer, rel_pos_bias=True), _PASS),
    "liger-kernel rope": Peer(("rope",), "liger_kernel", _shaped(_Liger), needs_gpu=True),
}
