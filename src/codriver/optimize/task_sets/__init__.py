"""Questions with known answers, asked of the file that ships: MMLU, GSM8K, and sets of the user's own.

``reading.py`` has the shapes of files, ``asking.py`` the protocols, ``judging.py`` the figures.
"""
