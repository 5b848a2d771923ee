"""Collections of vectors and texts, and how they are searched."""
