"""Extras: optional packages, and how to install the one that is missing."""

import sys

# learn2learn's last release ships C files that Python >= 3.11 cannot compile, so cython makes new ones.
BUILD_LEARN2LEARN = (
    "pip install cython 'setuptools<81' wheel && pip install --use-pep517 --no-build-isolation "
    "--config-settings '--global-option=build_ext' learn2learn==0.2.0"
)


def missing(package: str, user: str, extra: str | None = None) -> ImportError:
    """Returns the error to raise where an optional package can't be imported.

    Args:
        package: Its name on the package index.
        user: What needs it; the message begins with this.
        extra: The extra of maxl_l2l that installs it, if that has another name.
    """
    command = f"pip install 'maxl_l2l[{extra or package}]'"
    if package == "learn2learn" and sys.version_info >= (3, 11):
        return ImportError(
            f"{user} needs {package}, which is not installed. {command} can't build it on Python >= 3.11; this does: "
            f"{BUILD_LEARN2LEARN}"
        )
    return ImportError(f"{user} needs {package}, which is not installed. Install it with: {command}")
