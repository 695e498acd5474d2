"""Photo features: an upload goes in, a task runs, a picture comes out, the credits are settled."""
