"""The engine: attaches methods to live transformers models, proves it, and takes them off again to the bit."""
