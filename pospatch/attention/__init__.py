"""Exact attention for what happens at the score site."""
