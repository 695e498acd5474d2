"""What administrators do about users and roles."""
