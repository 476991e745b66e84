"""Frozen language model -> one row of vectors per (question, option), kept in a cache on disk.

Reproducibility: vectors are read from the cache whenever they are there, so all runs on one
machine see the same bits. Between caches, equal versions and hardware (and for large models usable
cores) give equal bits if the same set of texts was missing at once (the caller's number of threads
takes no part); otherwise values differ by float32 noise (about 1e-6), because matrix products may
be summed in another order. Device type and precision take part in the
cache's key, so that one data set never mixes them, but not in the model's fingerprint: a predictor
can be used on another device.
"""

from pluralllm_fl.embedding.embedder import EmbeddingTable, Progress, TextEmbedder

__all__ = ["EmbeddingTable", "Progress", "TextEmbedder"]
