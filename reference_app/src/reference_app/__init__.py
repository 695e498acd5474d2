"""The reference service: the only place that reads the environment and wires the libraries together."""
