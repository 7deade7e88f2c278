"""Saving and loading patched models: native where transformers can express the result, refused elsewhere without pospatch."""

from pospatch.checkpoint._adopt import adopt, adopted
from pospatch.checkpoint._distance import load_distance_embeddings
from pospatch.checkpoint._load import from_pretrained
from pospatch.checkpoint._save import arm, disarm

__all__ = ["adopt", "adopted", "arm", "disarm", "from_pretrained", "load_distance_embeddings"]
