"""Patch a model, adapt it to longer context, measure it before and after, save it.

    accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/finetune.py \
        --config recipes/configs/tiny-gpt2-rope.yaml

Every name of the YAML file is a flag too (`--max_steps 20`), and flags win; `--help` lists them, `--print_config` shows
what would be used, `--dry_run` tries it out. A run that was interrupted goes on where it stopped when it is started again.

The output folder gets config.yaml, metrics.jsonl (a line a step), results.json, checkpoint-N (for resuming),
model (load it with from_pretrained) and, with LoRA, adapter.
"""

from pospatch.training import main

if __name__ == "__main__":
    main()
