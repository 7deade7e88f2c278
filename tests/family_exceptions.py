"""What a family needs beyond the common shrinking, as data: config fields by `model_type`.

A group gives the same fields to several families; a field of a sub-config stands under that sub-config's name.
"""

from typing import Any

_PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
_HALF_MROPE = {**_MROPE, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 0]}
_WINDOWS = {"image_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4]}
_DIFFUSE = {"image_size": 32}

_TYPED = {"full_attention": _PLAIN, "sliding_attention": _PLAIN}
_CODES = {"channel_multiplier": [1, 1], "base_channels": 32}
_CODEC = {"upsample_groups": 32, "num_filters": 4, "num_quantizers": 2}

_MIXED = {"layer_types": ["linear_attention", "full_attention"]}

GROUPS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (  # every head has a key of its own, rebuilt from the latent
        ("axk1", "axk2", "deepseek_v3", "deepseek_v32", "dots3_note_text", "glm_moe_dsa", "longcat_flash",
         "mistral_large4_text", "youtu"),
        {"num_key_value_heads": 4, "head_dim": 8},
    ),
    (("kimi_k25", "dots3_note", "mistral_large4"), {"text_config": {"num_key_value_heads": 4, "head_dim": 8}}),
    (("glm5_next_text",), {"num_key_value_heads": 4, "head_dim": 8, "qk_rope_head_dim": 0}),
    (("glm5_next",), {"text_config": {"num_key_value_heads": 4, "head_dim": 8, "qk_rope_head_dim": 0}}),
    (("qwen2_vl_text", "qwen2_5_vl_text", "glm_image_text", "glm_ocr_text", "glm4v_text"),
     {"rope_parameters": _MROPE, "head_dim": 8}),
    (("glm4v_moe_text",), {"rope_parameters": _HALF_MROPE, "head_dim": 8}),
    (("qwen2_vl", "qwen2_5_vl", "glm4v", "glm_ocr", "glm46v", "glmga", "glm_image", "qwen2_5_omni_thinker"),
     {"text_config": {"rope_parameters": _MROPE, "head_dim": 8}}),
    (("glm4v_moe",), {"text_config": {"rope_parameters": _HALF_MROPE, "head_dim": 8}}),
    (("cosmos3_edge_text",), {"rope_parameters": _MROPE, "head_dim": 8}),
    (("cosmos3_edge",), {"text_config": {"rope_parameters": _MROPE, "head_dim": 8}}),
    (("paddleocr_vl",), {"text_config": {"rope_parameters": {**_MROPE, "mrope_section": [4, 2, 2]}, "head_dim": 16}}),
    (("swin", "donut-swin", "maskformer-swin"), _WINDOWS),
    (("swinv2",), {**_WINDOWS, "pretrained_window_sizes": [0, 0]}),
    (("swin2sr",),
     {"image_size": 16, "patch_size": 1, "window_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2]}),
    (("gpt_neox", "gpt_neox_japanese"), {"hidden_size": 64, "rope_parameters": {**_PLAIN, "partial_rotary_factor": 0.5}}),
    (("stablelm",), {"head_dim": 16, "hidden_size": 64, "partial_rotary_factor": 0.5}),
    (("helium",), {"head_dim": 8}),
    (("autoformer", "informer", "time_series_transformer"), {"prediction_length": 4, "context_length": 16}),
    (("gpt_neo",), {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 6}),
    (("gemma3n", ), {"text_config": {"intermediate_size": [64, 64], "activation_sparsity_pattern": [0.0, 0.0]}}),
    (("gemma3n_text",), {"intermediate_size": [64, 64], "activation_sparsity_pattern": [0.0, 0.0]}),
    (("reformer",), {"axial_pos_embds": False, "attn_layers": ["local", "lsh"]}),
    (
        ("zamba", "zamba2"),
        {"attention_hidden_size": 64, "num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2},
    ),
    (("esmc",), {"num_key_value_heads": 4, "head_dim": 8}),
    (("bamba",), {"attn_layer_indices": [1]}),
    (("jamba",), {"attn_layer_period": 2, "attn_layer_offset": 1, "num_hidden_layers": 2}),
    (("granitemoehybrid", "kimi_linear", "qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "olmo_hybrid", "minimax"), _MIXED),
    (("qwen3_5", "qwen3_5_moe", "minicpmv4_6", "minicpmv4_7", "minicpm_ocr"), {"text_config": _MIXED}),
    (("lfm2", "lfm3"), {"layer_types": ["conv", "full_attention"]}),
    (("lfm2_vl", "lfm3_vl"), {"text_config": {"layer_types": ["conv", "full_attention"]}}),
    (("bailing_hybrid",), {"layer_group_size": 2}),
    (("recurrent_gemma",), {"block_types": ["recurrent", "attention"]}),
    (("zaya",), {"num_experts_per_tok": 1}),
    (("laguna",), {"num_attention_heads_per_layer": [4, 4]}),
    (("lfm2_moe",), {"layer_types": ["full_attention", "conv"]}),
    (("falcon_h1",), {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16}),
    (("moonshine",), {"encoder_num_key_value_heads": 4, "decoder_num_key_value_heads": 4}),
    (("moonshine_streaming",), {"num_key_value_heads": 4}),
    (("lilt",), {"hidden_size": 48}),
    (("layoutlmv3",), {"coordinate_size": 6, "shape_size": 4, "hidden_size": 32, "input_size": 32}),
    (("led",), {"max_encoder_position_embeddings": 32, "max_decoder_position_embeddings": 32, "attention_window": 4}),
    (("xmod",), {"default_language": "en_XX"}),
    (("musicgen", "musicgen_melody"), {"decoder": {"num_codebooks": 1}}),
    (("pixtral",), {"head_dim": 8}),
    (("vitdet",), {"window_block_indices": []}),
    (("hunyuan_vl_text",), {"rope_parameters": {**_PLAIN, "mrope_section": [2, 2, 2, 2]}}),
    (("ernie4_5_vl_moe",), {"text_config": {"rope_parameters": {**_PLAIN, "mrope_section": [3, 3, 2]}, "head_dim": 16}}),
    (("cohere_compass_text",), {"rope_parameters": _TYPED}),
    (("cohere_compass",), {"text_config": {"rope_parameters": _TYPED}}),
    (("bridgetower",), {name: {"hidden_size": 64} for name in ("vision_config", "text_config")} | {"hidden_size": 64}),
    (("chameleon",), {"vocabulary_map": {"<image>": 8, "IMGIMGAZ": 9}, "vq_config": {**_CODES, "num_embeddings": 16}}),
    (("emu3",), {"vocabulary_map": {"<image>": 8, "<|extra_0|>": 9}, "vq_config": _CODES}),
    (("janus",), {"vq_config": {**_CODES, "num_embeddings": 16}}),
    (("mimi", "mimi_decoder", "pocket_tts_audio_tokenizer", "pocket_tts_audio_tokenizer_decoder"), _CODEC),
    (("csm",), {"codec_config": _CODEC}),
    (("kyutai_speech_to_text",),
     {"audio_pad_token_id": 98, "codebook_vocab_size": 33, "num_codebooks": 2, "codec_config": _CODEC}),
    (("pocket_tts", "gradium_phonon_tts"), {"flow_head_config": {"condition_dim": 32}}),
    (("dbrx",), {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0}}),
    (("fun_asr_nano",), {"adaptor_config": {"hidden_size": 32, "intermediate_size": 8}}),
    (("molmo2",), {"adapter_config": {"vision_feature_layer": [1, 0]}}),
    (("nemotron3_5_transcribe_word_timestamp",), {"blank_token_id": 98}),
    (("nemotron3_diarization",), {"head_config": {"audio_hidden_size": 32}}),
    (("nemotron_h_omni",), {"vision_config": {"video_temporal_patch_size": 2}}),
    (("t5gemma2_encoder",), {"text_config": {"dropout_rate": 0.0}}),
    (("luke",), {"entity_vocab_size": 50, "entity_emb_size": 32}),
    (("perceiver",),
     {"num_latents": 8, "d_latents": 32, "num_blocks": 1, "num_self_attends_per_block": 2, "num_self_attention_heads": 4,
      "num_cross_attention_heads": 4}),
    (("clap",),
     {"audio_config": {"depths": [1, 1], "num_attention_heads": [2, 2], "patch_embeds_hidden_size": 16, "spec_size": 32,
                       "window_size": 4, "hidden_size": 32, "patch_stride": [4, 4], "patch_size": 4}}),
    (("vjepa2",), {"crop_size": 32, "frames_per_clip": 4, "pred_hidden_size": 32, "pred_num_hidden_layers": 2,
                   "pred_num_attention_heads": 4}),
    (("convnext", "convnextv2", "dinov3_convnext"), {"hidden_sizes": [8, 16, 16, 32], "depths": [1] * 4}),
    (("resnet",), {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [1] * 4}),
    (("bit",), {"embedding_size": 8, "num_groups": 4, "hidden_sizes": [16, 16, 32, 32], "depths": [1] * 4}),
    (("efficientnet",), {"width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320}),
    (("align",), {"vision_config": {"width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 64}}),
    (("blt",), {"encoder_hash_byte_group_vocab": 50, "encoder_hash_byte_group_size": [3]}),
    (("patchtst", "patchtsmixer"), {"context_length": 32, "patch_length": 4, "patch_stride": 4}),
    (("swiftformer",), {}),
    (("mobilevitv2",), {"image_size": 64}),
    (("levit",),
     {"image_size": 64, "hidden_sizes": [16, 32, 48], "num_attention_heads": [2, 2, 2], "depths": [1] * 3, "key_dim": [8] * 3}),
    (("decision_transformer",), {}),
)  # fmt: skip

EXCEPTIONS: dict[str, dict[str, Any]] = {family: fields for families, fields in GROUPS for family in families}

# Variants whose sizes are not in fields that every config has: what is built is no tiny model (over 20 million parameters, or
# 20 seconds to build). They are not asked.
LARGE: frozenset[str] = frozenset((
    "edgetam_video-base", "evolla-composite", "pp_doclayout_v3-base", "pp_doclayout_v4-base", "rt_detr-base",
    "rt_detr_v2-base", "sam2-base", "sam2_hiera_det_model-base", "sam2_video-base", "sam2_vision_model-base",
    "tvp-base", "vibevoice-base", "vibevoice_acoustic_tokenizer-base", "vibevoice_acoustic_tokenizer_decoder-base",
    "vibevoice_acoustic_tokenizer_encoder-base", "vibevoice_asr-seq2seq",
))  # fmt: skip
