"""Configurations that ship with the engine: cpu, gpu, tiny."""
