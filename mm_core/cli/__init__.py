"""The `mm` command."""


def main() -> None:
    """Run the `mm` command; its verbs are in `mm_core.cli.app`."""
    from mm_core.cli import app

    app.main()
