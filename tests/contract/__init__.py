"""One suite per contract, run through by every implementation."""
