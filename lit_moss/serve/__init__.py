"""Serving a model: sessions with batched steps, HTTP and websocket interfaces, and the web page."""
