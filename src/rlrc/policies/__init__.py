"""Policies: what one is, the families that rlrc reads, and how they are stored."""
