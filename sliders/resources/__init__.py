"""What comes with the package, is fetched, or lies at a path."""
