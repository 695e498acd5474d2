"""``nox -s bench -- NAME``: how fast we are beside the limit and the strongest rivals, in one run on one machine."""
