"""Models in and out: runs -> folders that anyone can load, released folders -> what runs start from."""
