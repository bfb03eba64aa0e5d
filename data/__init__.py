"""Text corpora on disk, the byte vocabulary, and packed rows for training."""
