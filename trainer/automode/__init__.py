"""AutoMode: chooses models, settings and budgets for the data, the hardware and the time."""
