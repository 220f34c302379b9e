"""AutoMode: chooses models and settings for the data and the hardware."""
