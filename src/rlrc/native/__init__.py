"""This machine's processor, and C++ of our own that is compiled for it."""
