"""The ``shale`` command, also as ``python -m server``."""

from __future__ import annotations


def main() -> None:
    """Entry point of the console script."""
    from server.cli.commands import main as run_command

    run_command()


if __name__ == "__main__":
    main()
