"""The ``codriver`` command: one thin file per verb."""
