"""The suite that ships with the package, on every database there is."""

from daydo_pipeline.testing import RunsConformance


class TestRuns(RunsConformance):
    """SQLite and MySQL through the fixture ``db``."""
