"""Pictures and pages: what a network reuses, where a store's images lie, what a model is."""
