"""Who our users are: registration, log-in, profile."""
