"""Studies that answer a question about models."""
