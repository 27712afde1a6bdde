"""The ``shale`` command. Nothing here is imported by the server itself."""
