"""Open-set landmark recognition: from photos to a ranked, validated submission."""

__version__ = "0.1.0"
