"""Measurements of speed, cost and memory."""
