"""Chat templates in Jinja, their sandbox, and the engines of vocabularies."""
