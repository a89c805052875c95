"""The page, tab by tab: layout and listeners alone."""
