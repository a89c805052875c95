"""Pages, tables and pictures for people who would rather look than read."""
