"""Slow float64 restatements of each method's equation, written from the papers; tests find them by the method's name."""
