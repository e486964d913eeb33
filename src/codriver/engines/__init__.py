"""Engines: one file per runtime, each an :class:`~codriver.core.engine.Engine`.

What a runtime needs is imported inside its own file, and that file is imported on use (``registry.py``): a missing
extra costs one engine, not the program. Every engine runs through the one suite in ``tests/contract/``.
"""
