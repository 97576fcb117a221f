"""Sound files, resampling and features."""
