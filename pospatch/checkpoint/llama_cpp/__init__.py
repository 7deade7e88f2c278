"""GGUF: a model whose rotary spectrum llama.cpp computes exactly, with its vocabulary, in one file."""

from pospatch.checkpoint.llama_cpp._export import CLASSES, GgufExport, export_gguf

__all__ = ["CLASSES", "GgufExport", "export_gguf"]
