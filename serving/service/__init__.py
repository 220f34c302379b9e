"""`trainer serve`: HTTP in front of a scorer: requests admitted, batched, answered, counted; and the page."""
