"""Files shipped with the program that are not code."""

from pathlib import Path


def themes_directory() -> Path:
    """The directory of the shipped themes, in an installed wheel as well as in a source tree."""
    package = Path(__file__).resolve().parent
    installed = package / "_themes"
    return installed if installed.is_dir() else package.parent / "themes"
