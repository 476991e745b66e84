"""Deployment: the folders, keys, certificates and scripts of a federation on many machines."""
