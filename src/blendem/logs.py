"""Logging of workflow scripts: a `script:` rule's log is empty unless it is set up here."""

import logging
import sys
from pathlib import Path


def configure_logging(path: str | Path) -> None:
    """Send log records, warnings and uncaught errors to `path` and errors to stderr."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    to_file = logging.FileHandler(path, mode="w")
    to_screen = logging.StreamHandler()
    to_screen.setLevel(logging.WARNING)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        handlers=[to_file, to_screen],
        force=True,
    )
    logging.captureWarnings(True)

    def report(kind, value, trace):
        to_file.emit(
            logging.LogRecord(
                "blendem", logging.ERROR, "", 0, str(value), (), (kind, value, trace)
            )
        )
        sys.__excepthook__(kind, value, trace)

    sys.excepthook = report
