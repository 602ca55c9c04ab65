"""What to measure, in which order, by whom: pure plans, files fetched, runners, the worker."""
