"""One process that hosts one model: weights, caches, kernels and the engine that steps them."""
