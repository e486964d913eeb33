"""Codriver: the AI platform that rides in the vehicle and works with the cloud."""

__version__ = "0.1.0"
