"""Jobs, and the forms of the files that they are read from."""
