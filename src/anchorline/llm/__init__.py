"""Talking to models: which one an id names, where it runs, and its answers. Engines are imported by their own modules."""
