"""Experiments: one file each, with `get_config() -> base.Config`."""
