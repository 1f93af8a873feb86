"""What a VLA is, and how it is stored."""
