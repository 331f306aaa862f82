"""Engines compute the same features as the plain network, faster."""
