"""Vision models made int8, and proven on the file that ships."""
