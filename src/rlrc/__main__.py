"""`python -m rlrc`, and `accelerate launch -m rlrc sft ...` for several processes."""

from rlrc.cli import main

main()
