"""From embeddings to memorization gaps."""
