"""Let a patched model learn from the same model unpatched, at lengths that it knows: decoders, masked models, sentence encoders.

    accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/distill.py \
        --config recipes/configs/tiny-bert-alibi-distill.yaml

The options are finetune.py's, with `match`, `temperature`, `mask_share`, `teacher` and `dropout`. No labels are needed, and what
the model knew is the measure: agreement with the unpatched model on held-out text, before and after.
"""

from pospatch.training.distill import main

if __name__ == "__main__":
    main()
