"""Network and images to named features."""
