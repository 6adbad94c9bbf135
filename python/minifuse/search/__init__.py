"""Search among vectors: the index and its file, mining, similarity, other engines."""
