"""Images to candidates: every member, whatever it is, ends in the same table."""
