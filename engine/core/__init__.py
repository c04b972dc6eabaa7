"""The shared language of the project: configuration, tables, files and the GAP metric; no torch."""
