"""Teach a sentence encoder, patched for long texts, to find the text that holds a sentence; at short texts it stays what it was.

    accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/contrast.py \
        --config recipes/configs/minilm-recurrent-contrast.yaml

No labels are needed: the documents of a batch have the same background, and a passage from elsewhere in each. The options are
distill.py's, with `scale`, `keep`, `query_tokens` and `query_share`; one process. Before and after, on held-out text: the share
of documents found, and the agreement with the unpatched encoder.
"""

from pospatch.training.contrast import main

if __name__ == "__main__":
    main()
