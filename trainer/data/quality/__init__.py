"""Examines valid data for what usually goes wrong: duplicates, leakage, imbalance, suspicious boxes."""
