"""Search spaces: the values that each hyperparameter may take."""
