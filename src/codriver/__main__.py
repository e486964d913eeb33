"""``python -m codriver`` is the ``codriver`` command."""

from codriver.apps.cli.main import main

if __name__ == "__main__":
    main()
