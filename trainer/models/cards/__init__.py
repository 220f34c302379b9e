"""One module per family: its card and an entry for each of its models.

Free of torch and of every model library.
"""
