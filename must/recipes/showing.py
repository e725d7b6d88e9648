"""The jobs that show labels to people and other tools: their quality where the truth is known, a gallery, files."""
