"""Tune a model with a patch and, as controls, without: several arms and seeds, all scored on the same held-out tokens.

    OMP_NUM_THREADS=1 accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/effect.py \
        --config recipes/configs/effects/gpt2-rope-alibi.yaml

Each run is one of finetune.py (or distill.py) and leaves what that leaves, with its options in options.yaml. Started again, the
study goes on where it was. The output folder gets results.json, table.md and picture.png.
"""

from pospatch.training.effect import main

if __name__ == "__main__":
    main()
