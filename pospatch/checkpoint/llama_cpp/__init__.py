"""GGUF: a model whose rotary spectrum llama.cpp computes exactly, with its vocabulary, in one file."""

from pospatch.checkpoint.llama_cpp._export import GgufExport, export_gguf, hindrance

__all__ = ["GgufExport", "export_gguf", "hindrance"]
