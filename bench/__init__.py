"""Speed as ratios within one run: against PyTorch, and against the machine."""
