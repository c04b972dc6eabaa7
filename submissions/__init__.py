"""Answers to a checked file, and a file to its score; no torch, no lightgbm."""
