"""``quantcard doctor``: looks for what would go wrong, each with its cure in a sentence."""
