"""The KV cache: which cells hold which positions, where their bytes lie, who shares them."""
