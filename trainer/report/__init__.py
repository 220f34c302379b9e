"""Reports as single HTML files: of a run, of data before training, of several runs side by side."""
