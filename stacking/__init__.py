"""Candidates to answers with calibrated confidences; no torch."""
