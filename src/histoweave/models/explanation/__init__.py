"""Explanations of image networks: crops in, maps of the evidence out."""
