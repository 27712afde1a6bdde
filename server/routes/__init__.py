"""The public HTTP routes: what both API families share, and one package for each."""
