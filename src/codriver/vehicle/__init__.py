"""The vehicle itself: what it tells of its computer's heat and power."""
