"""Requests of the public APIs, validated before anything is loaded. Answers are plain dicts."""
