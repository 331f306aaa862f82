"""Engines that compute what the plain networks compute, faster."""
