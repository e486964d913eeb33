"""From a model to a small, proven artifact for a given car computer, evaluated on the file that ships."""
