"""Who answers: signals, quality, link estimate, decision and execution.

``HybridEngine`` is an Engine whose every answer is a plan (``core/plan.py``) made by ``decide.py`` and run by
``execute.py``.
"""
