"""Talking to a model: sessions with batched steps, HTTP and websocket interfaces, the page."""
