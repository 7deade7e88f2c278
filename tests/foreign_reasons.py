"""Why some of other people's tests do not apply to patched models: data for `python -m tests.foreign`, which holds it to them."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch

__all__ = ["PLAIN", "REASONS", "Reason"]


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Tests that fail somewhere, and why that is right.

    Args:
        tests: names; without brackets a name stands for all its parameters.
        places: "suite-method", or "suite" for what fails also unpatched; `*` stands for anything. Each test fails in each.
        says: part of what the failure says, so that no other failure hides behind the entry.
        why: for the reader of the page.
    """

    tests: tuple[str, ...]
    places: tuple[str, ...]
    says: str
    why: str

    def concerns(self, place: str) -> bool:
        """True where the tests fail in this place."""
        return any(fnmatch(place, pattern) for pattern in self.places)

    def names(self, test: str, found: str) -> bool:
        """True where a test that was found is the named one."""
        return found == test or ("[" not in test and found.partition("[")[0] == test)

    def explains(self, place: str, found: str, message: str) -> bool:
        """True where this entry speaks of this failure."""
        return self.concerns(place) and self.says in message and any(self.names(test, found) for test in self.tests)


MIXIN = ("llama-*", "gpt2-*", "bert-*", "bart-*", "t5-*")

REASONS: tuple[Reason, ...] = (
    Reason(
        tests=(
            "test_can_be_initialized_on_meta",
            "test_init_weights_can_init_buffers",
            "test_all_tensors_are_parameter_or_buffer",
        ),
        places=MIXIN,
        says="has no memory yet (device meta)",
        why="builds the model on the meta device; a patch is proven by a forward, so `apply` refuses until there are weights",
    ),
    Reason(
        tests=("test_resize_tokens_embeddings",),
        places=MIXIN,
        says="has a vocabulary of 4; a probe needs 8 ordinary tokens",
        why="its last part builds a model of 4 tokens; the proof needs 8 that differ, so `apply` refuses; all before it passed",
    ),
    Reason(
        tests=("test_model_rope_scaling_from_config_1_dynamic",),
        places=("llama-yarn", "llama-self_extend"),
        says="this model changes them with the length of its input",
        why="writes a dynamic scaling into the config; there is no fixed spectrum to scale or re-index, so `apply` refuses",
    ),
    Reason(
        tests=(
            "test_model_rope_scaling_from_config_0_linear",
            "test_model_rope_scaling_from_config_1_dynamic",
            "test_model_rope_scaling_from_config_2_yarn",
        ),
        places=("llama-alibi", "llama-t5_bias"),
        says="True is not false",
        why="wants a RoPE scaling written into the config to act; the method clears the rotation",
    ),
    Reason(
        tests=("test_model_weights_reload_no_missing_tied_weights",),
        places=("llama-t5_bias",),
        says="score__table",
        why="empties model.safetensors and wants every parameter reported as missing; the patch's own are read from "
        "pospatch.safetensors, which is whole",
    ),
    Reason(
        tests=("test_from_pretrained_no_checkpoint",),
        places=("gpt2-learned",),
        says="You set `ignore_mismatched_sizes` to `False`",
        why="hands the patched model's state to one built from the base's config; a longer table only fits through a saved patch",
    ),
    Reason(
        tests=tuple(
            f"{name}[PromptEncoderConfig-config_kwargs23-trl-internal-testing/tiny-random-LlamaForCausalLM]"
            for name in (
                "test_save_pretrained",
                "test_save_pretrained_pickle",
                "test_save_pretrained_selected_adapters",
                "test_save_pretrained_selected_adapters_pickle",
            )
        ),
        places=("peft-*",),
        says="this checkpoint's positions were changed by pospatch",
        why="saves and loads the adapter, and then calls peft's `get_peft_model_state_dict` itself, which reads the base's "
        "config.json by `LlamaConfig` to see whether the vocabulary was resized; no class but `Auto*` may read a patched "
        "checkpoint's. `save_pretrained` looks there for itself; with `save_embedding_layers` given peft does not look",
    ),
)

PLAIN: tuple[Reason, ...] = (
    Reason(
        tests=("test_generation_tester_mixin_inheritance",),
        places=("llama", "gpt2", "bart", "t5"),
        says="the tester must inherit from `GenerationTesterMixin`",
        why="the generation mixin is not in the distribution",
    ),
    Reason(
        tests=("test_model_base_model_prefix",),
        places=("t5",),
        says="False is not true",
        why="wants the headless model inside the one with a head under its prefix; T5's head holds its two stacks directly",
    ),
)
