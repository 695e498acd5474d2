"""What takes minutes to show: ``nox -s proof``."""
