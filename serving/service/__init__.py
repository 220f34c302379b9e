"""`trainer serve`: an HTTP service around a scorer, with batching, load limits, metrics and a page."""
