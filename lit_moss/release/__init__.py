"""Import and export of models: runs to folders that anyone can load, released folders to starting points of
runs."""
