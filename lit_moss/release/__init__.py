"""Import and export of models: runs to folders for anyone, released folders to starting points of runs."""
