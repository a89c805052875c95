"""Which laws methods of editing obey, one table for all."""
