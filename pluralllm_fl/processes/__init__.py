"""Flower's processes: starting, watching and restarting them."""
