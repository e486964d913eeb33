"""Car computers as profiles, this machine measured as one, and what a model is expected to take on them."""
