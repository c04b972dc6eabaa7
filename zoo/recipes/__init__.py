"""Recipes of members that ship with the engine, one TOML file each."""
