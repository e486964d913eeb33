"""What may be done to a model before its weights are rounded; one file per method, by name in a recipe."""
