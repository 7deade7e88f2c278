"""The positional methods: pure torch, one file each, registry name = file stem. See pospatch.registry to find them by name."""
