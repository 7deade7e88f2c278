"""Vision encoders."""

from pospatch.hosts._base import Host

__all__ = ["VISION"]

PACKED = "patches of many images stand in one sequence"
MASKED = "keyword arguments stop before its attention function: tables and additive biases reach it, rotations do not"

VISION: tuple[Host, ...] = (
    Host(
        wiring="vit",
        families=(
            "altclip_vision_model", "chinese_clip_vision_model", "clip_vision_model", "clipseg_vision_model", "deit", "dinov2",
            "dinov2_with_registers", "dpt", "ijepa", "internvl_vision", "metaclip_2_vision_model", "mlcd", "mlcd_vision_model",
            "vit", "vit_msn", "vivit", "xclip_vision_model", "yolos",
        ),
        table=("embeddings.position_embeddings", "embeddings.position_embedding", "mid_position_embeddings"),
        note="a table with a row for each patch; methods for grids know rows and columns",
    ),
    Host(
        wiring="vit, masked",
        families=("vit_mae",),
        table=("embeddings.position_embeddings",),
        order="patches are dropped and shuffled at random in every forward",
    ),
    Host(
        wiring="clip text",
        families=(
            "clip_text_model", "clipseg_text_model", "groupvit_text_model", "metaclip_2_text_model", "owlv2_text_model",
            "owlvit_text_model", "xclip_text_model",
        ),
        table=("embeddings.position_embedding",),
        buffers=("position_ids",),
    ),
    Host(
        wiring="siglip",
        families=(
            "aimv2_text_model", "aimv2_vision_model", "granite_docling_vision", "idefics2_vision", "idefics3_vision",
            "siglip2_text_model", "siglip2_vision_model", "siglip_text_model", "siglip_vision_model", "smolvlm_vision",
        ),
        table=("embeddings.position_embedding",),
        buffers=("position_ids",),
        attention=("self_attn", "layers.*.attention"),
        carrier="attention_mask",
        note=MASKED,
    ),
    Host(wiring="rotary vision", families=("dinov3_vit", "pixtral"), note="patches turn by two coordinates"),
    Host(
        wiring="rotary vision, packed",
        families=(
            "cohere_compass_vision", "cosmos3_edge_vision", "exaone4_5_vision", "glm4v_moe_vision",
            "glm4v_vision", "glm5_next_vision", "glm_image_vision", "glm_ocr_vision", "hunyuan_vl_vision", "qwen2_5_vl_vision",
            "qwen2_vl_vision", "qwen3_5_moe_vision", "qwen3_5_vision", "qwen3_vl_moe_vision", "qwen3_vl_vision",
            "qwen4_exp_vision", "video_llama_3_vision",
        ),
        table=("pos_embed", "embeddings.position_embedding"),
        order=PACKED,
    ),
    Host(
        wiring="window bias",
        families=("beit", "donut-swin", "maskformer-swin", "swin"),
        table=("embeddings.position_embeddings",),
        bias=("relative_position_bias_table",),
        order="windows and merged patches",
        note="windows keep an order of their own",
    ),
)  # fmt: skip
