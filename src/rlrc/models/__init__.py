"""What a VLA is, and how it is stored. Importing any module of this room registers our classes with transformers."""

from rlrc.models import openvla  # noqa: F401
