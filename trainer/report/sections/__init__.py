"""The report's sections; each module adds its own to a page."""
