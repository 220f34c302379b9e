"""Reads data files into records, and reports what is wrong with them by file and line."""
