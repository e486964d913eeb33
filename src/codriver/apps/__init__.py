"""What runs: a car and a cloud, each a table of services, and the command line."""
