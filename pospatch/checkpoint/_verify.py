"""Loads a checkpoint where pospatch is not installed and gives its logits. Run by `verify`, never imported."""

import sys

sys.modules["pospatch"] = None  # type: ignore[assignment]


def main(folder: str, model_class: str, asked: str, answered: str) -> None:
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    transformers.logging.set_verbosity_error()
    model = getattr(transformers, model_class).from_pretrained(folder, dtype="auto", local_files_only=True).eval()
    results = {}
    for name, ids in load_file(asked).items():
        kwargs = {"input_ids": ids}
        if model.config.is_encoder_decoder:
            kwargs["decoder_input_ids"] = ids
        if name.startswith("from_"):
            start = int(name.removeprefix("from_"))
            kwargs["position_ids"] = torch.arange(start, start + ids.shape[1])[None]
        with torch.no_grad():
            results[name] = model(**kwargs)[0].float().contiguous()
    save_file(results, answered)


if __name__ == "__main__":
    main(*sys.argv[1:])
