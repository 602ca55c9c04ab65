"""Measures. Runs on the GPU box with no token and no network: gets paths, gives figures."""
