"""What we compute in bfloat16 faster than PyTorch, on processors with instructions for it."""
