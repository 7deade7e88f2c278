"""transformers' ModelTesterMixin on five tiny families: run by `python -m tests.foreign`, which brings the mixin."""

from __future__ import annotations

import unittest
from typing import Any

import torch
import transformers as tf
from theirs.test_modeling_common import ModelTesterMixin

from tests.foreign_hook import standing_for

SIZE = {"vocab_size": 99, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "num_labels": 2}
PLAIN = {**SIZE, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}


class Tester:
    """Config and inputs of one family, with the attributes that the mixin reads."""

    batch_size = 5
    seq_length = encoder_seq_length = decoder_seq_length = key_length = 7
    hidden_size, num_hidden_layers, num_attention_heads, num_choices = 32, 2, 4, 4
    is_training = True

    def __init__(self, config: Any) -> None:
        self._config = config

    def get_config(self) -> Any:
        """A fresh config."""
        return type(self._config).from_dict(self._config.to_dict())

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, Any]]:
        """A fresh config and inputs: no pads, the end of the text last, as classification by the last token wants it."""
        config = self.get_config()
        ids = torch.randint(3, config.vocab_size, (self.batch_size, self.seq_length))
        ids[:, -1] = config.eos_token_id
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if config.is_encoder_decoder:
            inputs |= {"decoder_input_ids": ids.flip(1), "decoder_attention_mask": torch.ones_like(ids)}
            if config.model_type == "bart":  # it classifies by the last end of text of the decoder, made from input_ids
                inputs["decoder_input_ids"] = ids.clone()
        return config, inputs


class Suite(ModelTesterMixin):
    """The mixin with a tester."""

    config: Any = None

    def setUp(self) -> None:
        """A tester for each test."""
        self.model_tester = Tester(self.config)


def _classes(*names: str) -> tuple[type, ...]:
    return tuple(standing_for(getattr(tf, name)) for name in names)


class LlamaTest(Suite, unittest.TestCase):
    config = tf.LlamaConfig(**PLAIN, num_key_value_heads=2, max_position_embeddings=64)
    all_model_classes = _classes(
        "LlamaModel",
        "LlamaForCausalLM",
        "LlamaForSequenceClassification",
        "LlamaForQuestionAnswering",
        "LlamaForTokenClassification",
    )


class GPT2Test(Suite, unittest.TestCase):
    config = tf.GPT2Config(**SIZE, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    all_model_classes = _classes(
        "GPT2Model",
        "GPT2LMHeadModel",
        "GPT2ForSequenceClassification",
        "GPT2ForQuestionAnswering",
        "GPT2ForTokenClassification",
    )


class BertTest(Suite, unittest.TestCase):
    config = tf.BertConfig(**PLAIN, max_position_embeddings=64)
    all_model_classes = _classes(
        "BertModel",
        "BertForMaskedLM",
        "BertForMultipleChoice",
        "BertForNextSentencePrediction",
        "BertForSequenceClassification",
        "BertForQuestionAnswering",
        "BertForTokenClassification",
    )


class BartTest(Suite, unittest.TestCase):
    is_encoder_decoder = True
    config = tf.BartConfig(
        **SIZE,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=37,
        decoder_ffn_dim=37,
        max_position_embeddings=64,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
    )
    all_model_classes = _classes("BartModel", "BartForConditionalGeneration", "BartForQuestionAnswering")


class T5Test(Suite, unittest.TestCase):
    is_encoder_decoder = True
    config = tf.T5Config(
        **SIZE, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, decoder_start_token_id=0, dropout_rate=0.1
    )
    all_model_classes = _classes("T5Model", "T5ForConditionalGeneration", "T5ForQuestionAnswering")
