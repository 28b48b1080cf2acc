"""What is scored: photometry, shapes, metrics against the truth, calibration."""
